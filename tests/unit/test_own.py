"""Your own images and questions: the table's forms, the split, and that no patient's name gets out."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_dicom import PERSON, make

from rarl.data.adapters import own
from rarl.data.release import Images, Release, Row, read
from rarl.errors import UserError
from rarl.params import Own, Params, load_params
from rarl.records import image_file, write_records

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "dev", "test")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project's folder with an empty `raw/own/`, which is returned as data.root."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw/own").mkdir(parents=True)
    return tmp_path / "raw"


def image(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey % 256).resize((8, 8 + grey // 256)).save(path)


def csv_table(root: Path, text: str, name: str = "rows.csv") -> None:
    (root / "own" / name).write_text(text, encoding="utf-8")


def json_table(root: Path, rows: list, name: str = "rows.jsonl") -> None:
    (root / "own" / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def benchmark(root: Path, table: str = "rows.csv") -> Release:
    return read(own, root, "test", table=table)


def params(**changes) -> Params:
    return load_params(ROOT / "params.yaml").model_copy(update={"own": Own(**changes)})


def split(root: Path, **changes) -> dict[str, Release]:
    return own.training(root, params(**changes), Images(root))


def refusal(function, *args, **more) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **more)
    return error.value.format_message()


# ------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_in_three_dialects_and_a_byte_order_mark(root, mark):
    image(root / "own/a.png", 1)
    lines = ["Image;Question;Answer;Modality;Reasoning;Category;Shoe size",
             'a.png;"Is it; a gizzard, or\tnot?";Yes | indeed;T2 MRI;Because.;parts;44']  # fmt: skip
    text = "\r\n".join(lines).replace(";", mark).replace("\tnot", " not") + "\r\n"
    csv_table(root, "\ufeff" + text)
    release = benchmark(root)
    (sample,) = release.samples
    assert sample.answers == ["Yes", "indeed"] and sample.kind == "yes_no"
    assert (sample.modality, sample.reasoning, sample.category) == ("mri", "Because.", "parts")
    assert (sample.id, sample.image, sample.split) == ("own/test/row1", "own/a.png", "test")
    assert release.notes["columns_not_read"] == 1


def test_json_lines(root):
    image(root / "own/deep/a b.png", 1)
    json_table(root, [
        {"image": "deep/a b.png", "question": "What is it?", "answer": ["gizzard|1", "gear"], "patient": 12},
        {"image": "deep\\a b.png", "question": "How many?", "answer": 3, "reasoning": "", "modality": None},
    ])  # fmt: skip
    first, second = benchmark(root, "rows.jsonl").samples
    assert first.answers == ["gizzard|1", "gear"] and first.modality == "unknown"
    assert second.answers == ["3"] and second.kind == "number" and second.reasoning is None


def test_choices_are_answered_by_text_or_letter_and_asked_with_the_question(root):
    image(root / "own/a.png", 1)
    csv_table(root, "image,question,answer,choices\n"
              "a.png,Of what?,brass,copper|brass|tin\n"
              "a.png,Of what?,(C),copper|brass|tin\n"
              "a.png,Copper or brass?,copper,copper|brass\n"
              "a.png,Of what?,wood,copper|brass\n"
              "a.png,Of what?,copper,copper\n")  # fmt: skip
    release = benchmark(root)
    by_text, by_letter, named = release.samples
    assert by_text.answers == ["brass", "(B)"] and by_letter.answers == ["tin", "(C)"]
    assert by_text.question.splitlines()[1:] == ["(A) copper", "(B) brass", "(C) tin"]
    assert by_text.kind == "choice" and by_text.choices == ["copper", "brass", "tin"]
    assert named.question == "Copper or brass?"
    assert release.refused == [("row4, line 5", "the answer is none of the choices"),
                               ("row5, line 6", "`choices` are not 2 to 26 texts")]  # fmt: skip


@pytest.mark.parametrize("words, modality", [
    ("MRI", "mri"), ("mr", "mri"), ("T1-weighted", "mri"), ("Magnetic Resonance Imaging", "mri"), ("FLAIR", "mri"),
    ("CT", "ct"), ("ct angiography", "ct"), ("computed tomography", "ct"), ("HRCT chest", "ct"),
    ("X-Ray", "xray"), ("x ray", "xray"), ("chest_xray", "xray"), ("CXR", "xray"), ("Radiograph", "xray"),
    ("DX", "xray"), ("histopathology", "pathology"), ("H&E slide", "pathology"), ("WSI", "pathology"),
    ("ultrasound", "other"), ("PET/CT", "other"), ("optical coherence tomography", "other"), ("fundus photo", "other"),
    ("contact", "other"), ("direct", "other"), ("?", "other"), ("", "unknown"),
])  # fmt: skip
def test_modality_words(words, modality):
    assert own.modality_of(words) == modality


def test_every_row_is_accounted_for(root):
    image(root / "own/a.png", 1)
    (root / "own/b.png").write_bytes(b"gizzard")
    csv_table(root, "image,question,answer\n"
              "a.png,What?,gear\n"
              "a.png,,gear\n"
              'a.png,"What,\nnow?",\n'
              ",What?,gear\n"
              "gone.png,What?,gear\n"
              "b.png,What?,gear\n"
              "\n"
              "a.png,What?,gear,more\n"
              "../a.png,What?,gear\n"
              "a.png\n")  # fmt: skip
    release = benchmark(root)
    assert release.rows == 9 == len(release.samples + release.refused + release.missing_images)
    assert release.missing_images == [("row5", "own/gone.png")]
    reasons = dict(release.refused)
    assert reasons["row7, line 10"] == reasons["row9, line 12"] == "more or fewer cells than the header has"
    assert reasons["row2"] == "empty question" and reasons["row3"] == "empty answer"
    assert "does not decode" in reasons["row6"] and "leads out" in reasons["row8"]


def test_lines_that_are_no_row(root):
    image(root / "own/a.png", 1)
    good = '{"image": "a.png", "question": "What?", "answer": "gear"}'
    lines = [good, good[:-9], "[1]", "", '{"image": ["a.png"], "question": "What?", "answer": "gear"}',
             '{"image": "a.png", "question": "What?", "answer": true}', '{"image": "a.png", "answer": "gear"}',
             '{"image": "a.png", "question": "What?", "answer": "gear", "reasoning": "\\ud800"}',
             "[" * 99999]  # fmt: skip
    (root / "own/rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    release = benchmark(root, "rows.jsonl")
    assert len(release.samples) == 1 and release.rows == 8
    assert dict(release.refused) == {
        "row2, line 2": "not a JSON object", "row3, line 3": "not a JSON object", "row4, line 5": "`image` is no text",
        "row5, line 6": "`answer` is no text", "row6": "empty question", "row7": "text that is not UTF-8",
        "row8, line 9": "not a JSON object",
    }  # fmt: skip


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.lists(st.dictionaries(st.sampled_from(own.COLUMNS), JUNK | st.just("a.png")), max_size=5))
def test_any_json_is_read_or_refused(root, rows):
    image(root / "own/a.png", 1)
    needed = {"image": "a.png", "question": "What?", "answer": "gear"}
    json_table(root, [needed, *rows])
    release = benchmark(root, "rows.jsonl")
    assert release.rows == len(rows) + 1
    assert release.rows == len(release.samples + release.refused + release.missing_images)
    write_records(root / "out.jsonl", release.samples)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.text(alphabet='a.png,;|"\n\t\x00é', max_size=60))
def test_any_csv_is_read_or_refused(root, text):
    image(root / "own/a.png", 1)
    csv_table(root, "image,question,answer\na.png,What?,gear\n" + text)
    try:
        release = benchmark(root)
    except UserError as error:
        assert "rows.csv, line " in error.format_message()
    else:
        assert release.rows == len(release.samples + release.refused + release.missing_images)


def test_wrong_tables_are_named_with_the_remedy(root):
    assert "no rows" not in (said := refusal(benchmark, root)) and "rows.csv" in said
    json_table(root, [{"image": "a.png"}])
    assert "set own.table to rows.jsonl" in refusal(benchmark, root)
    said = refusal(benchmark, root, "rows.jsonl")
    assert "no column question, answer (there: image)" in said and "reasoning" in said
    csv_table(root, "image,question,text\n")
    assert "rows.csv, line 1" in (said := refusal(benchmark, root)) and "no column answer" in said
    csv_table(root, "image,question,answer,answer\n")
    assert "column answer twice" in refusal(benchmark, root)
    csv_table(root, 'image,question,answer\na.png,"What?,gear\na.png,What?,gear\n')
    assert "rows.csv, line 2" in refusal(benchmark, root)
    (root / "own/rows.csv").write_bytes("image,question,answer\na.png,Größe?,x\n".encode("cp1252"))
    assert "UTF-8" in refusal(benchmark, root)
    csv_table(root, "")
    assert "no column image, question, answer" in refusal(benchmark, root)
    (root / "own/rows.xlsx").touch()
    assert "an unknown format" in refusal(benchmark, root, "rows.xlsx")


def test_first_line_of_a_table_without_header_is_not_shown(root):
    csv_table(root, "a.png,What?,gear,Wilhelmina Gizzard\n")
    assert "Wilhelmina" not in refusal(benchmark, root)


def test_benchmark_has_a_test_split_only(root):
    csv_table(root, "image,question,answer\n")
    assert "'train'" in refusal(read, own, root, "train")


# ------------------------------------------------------------------------------------------ the split


def write_study(root: Path, rows: list[dict]) -> None:
    for grey in {row["grey"] for row in rows}:
        image(root / f"own/{grey}.png", grey)
    named = [{"image": f"{row['grey']}.png", "question": f"What {i}?"} for i, row in enumerate(rows)]
    json_table(root, [{**name, "answer": "gear", **row} for name, row in zip(named, rows)])


def study(patients: int, seed: int = 1) -> list[dict]:
    """Patients with one to four images of one modality each, and one to three questions an image."""
    random = np.random.default_rng(seed)
    rows, grey = [], 0
    for patient in range(patients):
        modality = ["CT", "MRI", "MRI", "X-ray", "X-ray", "X-ray"][random.integers(6)]
        for _ in range(random.integers(1, 5)):
            rows += [{"grey": grey, "patient": f"p{patient}", "modality": modality}] * random.integers(1, 4)
            grey += 1
    return rows


def places(releases: dict[str, Release], rows: list[dict], key: str) -> dict:
    """What the rows have under a key -> the splits that it occurs in."""
    found = defaultdict(set)
    for name, release in releases.items():
        for sample in release.samples:
            found[rows[int(sample.source_id.removeprefix("row")) - 1].get(key)].add(name)
    return found


def test_patients_stay_together_and_shares_are_near_in_every_modality(root):
    rows = study(150)
    write_study(root, rows)
    releases = split(root, table="rows.jsonl")
    assert sum(release.rows for release in releases.values()) == len(rows)
    assert all(len(found) == 1 for found in places(releases, rows, "patient").values())
    for modality in ("ct", "mri", "xray"):
        counts = {name: sum(s.modality == modality for s in releases[name].samples) for name in SPLITS}  # fmt: skip
        total = sum(counts.values())
        for name, share in zip(SPLITS, (0.7, 0.15, 0.15)):
            assert abs(counts[name] - share * total) <= 12, (modality, counts)
    for name, share in zip(SPLITS, (0.7, 0.15, 0.15)):
        assert abs(len(releases[name].samples) - share * len(rows)) <= 8
    assert {s.id.split("/")[1] for s in releases["dev"].samples} == {"dev"}


def test_same_seed_same_split_and_another_seed_another(root):
    write_study(root, study(30))
    first, again, other = (
        [[s.id for s in split(root, table="rows.jsonl", seed=seed)[name].samples] for name in SPLITS]
        for seed in (7, 7, 8)
    )  # fmt: skip
    assert first == again != other


def test_order_of_the_rows_does_not_matter(root):
    rows = [row | {"question": f"Question {i}?"} for i, row in enumerate(study(30))]
    outcomes = []
    for table in (rows, rows[::-1]):
        write_study(root, table)
        releases = split(root, table="rows.jsonl")
        outcomes.append([{s.question for s in releases[name].samples} for name in SPLITS])
    assert outcomes[0] == outcomes[1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    rows=st.lists(
        st.fixed_dictionaries({
            "grey": st.integers(0, 9), "patient": st.sampled_from(["", "a", "b", "c", "D", "d ", "e"]),
            "modality": st.sampled_from(["CT", "MRI"]), "question": st.sampled_from(["", "Why?", "What?"]),
        }), min_size=1, max_size=25,
    ),
    split_by=st.sampled_from(["patient", "image"]), dev_share=st.sampled_from([0, 0.1, 0.3]),
)  # fmt: skip
def test_no_patient_and_no_image_in_two_splits(root, rows, split_by, dev_share):
    write_study(root, rows)
    try:
        releases = split(root, table="rows.jsonl", split_by=split_by, dev_share=dev_share)
    except UserError as error:
        assert "groups of the same" in error.message or "no usable row" in error.message
        return
    assert sum(release.rows for release in releases.values()) == len(rows)
    for release in releases.values():
        assert release.rows == len(release.samples + release.refused + release.missing_images)
    assert releases["train"].samples and releases["test"].samples
    assert bool(releases["dev"].samples) == bool(dev_share)
    hashes = Counter(h for r in releases.values() for h in {s.image_sha256 for s in r.samples})
    assert set(hashes.values()) == {1}
    if split_by == "patient":
        for patient, found in places(releases, rows, "patient").items():
            assert not patient or len(found) == 1
        assert len(places(releases, rows, "patient")["D"] | places(releases, rows, "patient")["d "]) <= 1  # fmt: skip


def test_copies_of_one_image_tie_their_patients(root):
    """a and b share an image by content under two names, b and c another."""
    names = {"a1": 1, "a2": 2, "b1": 1, "b2": 3, "c1": 3, "d1": 4, "e1": 5, "f1": 6, "g1": 7}
    for name, grey in names.items():
        image(root / f"own/{name}.png", grey)
    csv_table(
        root, "image,question,answer,patient\n" + "".join(f"{name}.png,What?,gear,{name[0]}\n" for name in names)
    )
    for seed in range(6):
        releases = split(root, seed=seed)
        where = {Path(s.image).stem: name for name in SPLITS for s in releases[name].samples}
        assert len({where[name] for name in names if name[0] in "abc"}) == 1
        assert set(where.values()) == set(SPLITS)


def test_rows_without_a_patient_go_by_their_image_and_are_counted(root):
    rows = [{"grey": i // 2} for i in range(20)]
    write_study(root, rows)
    releases = split(root, table="rows.jsonl")
    assert sum(release.notes["rows_without_patient"] for release in releases.values()) == 20
    assert all(len(found) == 1 for found in places(releases, rows, "grey").values())


def test_many_small_modalities_are_spread(root):
    rows = [{"grey": i, "modality": ["CT", "MRI", "X-ray", "slide", "PET", ""][i]} for i in range(6)]
    write_study(root, rows)
    assert all(release.samples for release in split(root, table="rows.jsonl").values())


def test_given_split_is_obeyed(root):
    names = ["train", "Validation", "TEST", "train"]
    write_study(root, [{"grey": i, "split": name, "patient": i} for i, name in enumerate(names)])
    releases = split(root, table="rows.jsonl")
    assert [len(releases[name].samples) for name in SPLITS] == [2, 1, 1]
    assert releases["dev"].samples[0].id == "own/dev/row2"
    assert len(benchmark(root, "rows.jsonl").samples) == 4


def test_given_split_without_development_rows(root):
    write_study(root, [{"grey": 0, "split": "train"}, {"grey": 1, "split": "test"}])
    assert [len(split(root, table="rows.jsonl")[name].samples) for name in SPLITS] == [1, 0, 1]


def test_given_splits_that_cannot_be(root):
    def said(*rows, **changes):
        write_study(root, [{"grey": i} | row for i, row in enumerate(rows)])
        return refusal(split, root, table="rows.jsonl", **changes)

    assert "row2" in (text := said({"split": "train"}, {})) and "in every row, or in none" in text
    assert "another `split`" in said({"split": "train"}, {"split": "Wilhelmina"})
    assert "Wilhelmina" not in said({"split": "train"}, {"split": "Wilhelmina"})
    assert "no usable row for `test`" in said({"split": "train"}, {"split": "dev"})
    two = ({"split": "train", "patient": "Ottokar"}, {"split": "test", "patient": "ottokar "})
    text = said(*two)
    assert "row1 (train) and row2 (test) are of one patient" in text and "ttokar" not in text
    write_study(root, [{"grey": i} | row for i, row in enumerate(two)])
    assert split(root, table="rows.jsonl", split_by="image")["test"].samples


def test_splits_that_cannot_be_drawn(root):
    write_study(root, [{"grey": i, "patient": i % 2} for i in range(9)])
    said = refusal(split, root, table="rows.jsonl")
    assert "9 of 9 rows" in said and "in 2 groups of the same patient" in said and "at least 3" in said
    assert split(root, table="rows.jsonl", split_by="image")["dev"].samples
    with pytest.raises(ValueError, match="a sum below 1"):
        params(dev_share=0.5, test_share=0.5)
    for path in (root / "own").glob("*.png"):
        path.unlink()
    assert "0 of 9 rows with a usable image" in refusal(split, root, table="rows.jsonl")


def test_unusable_rows_count_with_their_patient_or_in_training(root):
    rows = [{"grey": i, "patient": i} for i in range(8)]
    write_study(root, rows)
    with (root / "own/rows.jsonl").open("a") as file:
        for patient in range(8):
            file.write(json.dumps({"image": "gone.png", "question": "What?", "answer": "gear"}) + "\n")  # fmt: skip
            file.write(
                json.dumps({"image": f"{patient}.png", "question": "", "answer": "gear", "patient": patient}) + "\n"
            )
        file.write("{\n")
    releases = split(root, table="rows.jsonl")
    assert sum(release.rows for release in releases.values()) == 8 + 16 + 1
    assert len(releases["train"].missing_images) == 8
    for release in releases.values():
        assert Counter(reason for _, reason in release.refused)["empty question"] == len(release.samples)  # fmt: skip
    assert ("row25, line 25", "not a JSON object") in releases["train"].refused


def test_missing_folder(tmp_path):
    said = refusal(split, tmp_path)
    assert "no folder own/" in said and "Your own images" in said


# ------------------------------------------------------------------------------------------ privacy


def test_no_patient_reaches_any_output(root, capfd, recwarn, caplog, monkeypatch):
    """Names, ids, dates and institutions in DICOM headers and in the table's patient column."""
    monkeypatch.setattr("rarl.data.release.KEPT", Path(".cache/pictures.jsonl"))
    patients = ["Wilhelmina Gizzard", "Ottokar ^ Sprocket", "ZQ-4711-XK", "19310217"]
    lines = []
    for i, patient in enumerate(patients * 2):
        pixels = np.full((9, 9), i, np.uint8)
        pixels[i] = 200
        make(root / f"own/{i}.dcm", pixels)
        lines.append(f"{i}.dcm,Is the gear bent?,yes,CT,{patient},")
    make(root / "own/8.dcm", NumberOfFrames=2, PixelData=bytes(512))
    (root / "own/9.dcm").write_bytes((root / "own/0.dcm").read_bytes()[:-9])
    make(root / "own/IM000010")
    lines += [f"{name},Is it?,yes,CT,{patients[0]}," for name in ("8.dcm", "9.dcm", "IM000010", "gone.dcm")]
    lines += [f"0.dcm,Is it?,yes,CT,{patients[1]},,surplus", f"0.dcm,,yes,CT,{patients[2]},"]
    csv_table(root, "image,question,answer,modality,patient,split\n" + "\n".join(lines))

    unpack = Path("data/curated/pictures")
    releases = own.training(root, params(), Images(root, unpack))
    for name, release in releases.items():
        write_records(f"data/curated/{name}.jsonl", release.samples)
        Path(f"data/curated/{name}.txt").write_text(repr(release))
        for sample in release.samples:
            assert image_file(root, sample.image).is_file()
            assert sample.image.startswith("data/curated/pictures/") and sample.modality == "ct"
    assert sum(len(release.samples) for release in releases.values()) == 9
    assert sum(len(release.refused) for release in releases.values()) == 4
    row = {"image": "0.dcm", "question": "?", "answer": "a", "patient": patients[0]}
    json_table(root, [{**row, "split": name} for name in SPLITS])
    Path("data/message.txt").write_text(refusal(split, root, table="rows.jsonl"))

    produced = [path for folder in ("data", ".cache") for path in Path(folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in produced} == {".jsonl", ".png", ".txt"} and len(produced) >= 17
    heard = [str([str(warning.message) for warning in recwarn]), caplog.text, *capfd.readouterr()]
    everything = b"".join(path.read_bytes() + path.name.encode() for path in produced)
    everything = (everything + "".join(heard).encode()).lower()
    for secret in {*patients, *PERSON.values(), "Wilhelmina", "Sprocket", "Infirmary"}:
        assert secret.lower().encode() not in everything, secret


def test_dicom_files_of_one_image_are_one_whatever_their_headers_say(root):
    make(root / "own/a.dcm")
    make(root / "own/b.dcm", PatientName="Another^Person", PatientID="2")
    csv_table(root, "image,question,answer\na.dcm,What?,gear\nb.dcm,Why?,gear\n")
    first, second = benchmark(root).samples
    assert first.image_sha256 == second.image_sha256 and first.image == second.image


def test_a_dicom_file_is_decoded_once_for_all_its_rows(root, monkeypatch):
    from rarl.data import dicom

    calls = []
    original = dicom.to_png
    monkeypatch.setattr(dicom, "to_png", lambda path: calls.append(path) or original(path))
    make(root / "own/a.dcm")
    csv_table(root, "image,question,answer\n" + "a.dcm,What?,gear\n" * 5)
    assert len(benchmark(root).samples) == 5 and len(calls) == 1


def test_rows_are_rows(root):
    csv_table(root, "image,question,answer\na.png,What?,gear\n")
    (row,) = own.rows(root / "own", "test", Counter())
    assert isinstance(row, Row) and row.source_id == "row1"
