"""The audit: what is counted, what splits share, and the data card; on made-up releases and, where
RARL_DATA_ROOT names them, on the real ones."""

import csv
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sample_images import draw_bars
from test_dicom import PERSON, RAMP, make

from rarl.data.adapters import load_adapter, silvar_med, slake, vqa_rad
from rarl.data.audit import Split, declared, deviations, measure, near_duplicates, own_splits_apart, refuse
from rarl.data.data_card import binned, top
from rarl.data.release import Images, Release, read
from rarl.errors import UserError
from rarl.params import Phantom, load_params
from rarl.phantom.releases import write_releases
from rarl.records import read_json
from stages.audit import main as audit
from stages.benchmark import main as benchmark
from stages.curate import main as curate

REPOSITORY = Path(__file__).parents[2]
REAL = os.environ.get("RARL_DATA_ROOT")


def slake_row(qid, image, question="Is the crop healthy?", answer="Yes", content="Abnormality"):
    return {
        "img_name": f"xmlab{image}/source.jpg", "question": question, "answer": answer, "q_lang": "en",
        "modality": "CT", "content_type": content, "qid": qid,
    }  # fmt: skip


def rad_row(qid, image, phrase, question="Is it bent?", answer="no"):
    return {"qid": qid, "phrase_type": phrase, "image_name": image, "question": question, "answer": answer,
            "question_type": "PRES"}  # fmt: skip


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """SLAKE with a near duplicate across its splits, VQA-RAD with its leak and a training image of ours."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "releases"
    for number in range(5):
        draw_bars(root / f"slake/imgs/xmlab{number}/source.jpg", number)
    draw_bars(root / "slake/imgs/xmlab5/source.jpg", 0, quality=60)  # looks like xmlab0
    put(root / "slake/train.json", [slake_row(1, 0), slake_row(2, 1), slake_row(3, 1, answer="No")])
    put(root / "slake/validate.json", [slake_row(4, 2), slake_row(5, 3, answer="")])
    put(
        root / "slake/test.json",
        [slake_row(6, 4), slake_row(7, 5), slake_row(8, 5, "Which plane?", "Axial", "Plane"),
         slake_row(9, 9, "Which plane?", "Axial", "Plane")],
    )  # fmt: skip
    images = root / "vqa_rad/VQA_RAD Image Folder"
    draw_bars(images / "a.jpg", 1)  # xmlab1, byte for byte
    named = [("a.jpg", "freeform"), ("a.jpg", "test_para"), ("a.jpg", "test_para"), ("gone.jpg", "test_para")]
    named += [("gone.jpg", "test_para"), ("gone.jpg", "freeform")]
    rows = [rad_row(qid, image, phrase) for qid, (image, phrase) in enumerate(named, 1)]
    rows[2]["answer"] = "Yes"
    rows.append(rad_row(7, "other.jpg", "test_para", "Ho\tt?", "<b>hot</b>"))
    put(root / "vqa_rad/VQA_RAD Dataset Public.json", rows)
    counts = {
        "slake": {"train": {"rows": 3, "conflicting_groups": 1, "groups_with_yes_and_no": 1}},
        "silvar_med": {"train": {"rows": 3, "ct": 3}, "test": {"rows": 2, "annotated": 0}},
        "vqa_rad": {"test": {"rows": 5, "images_also_in_train": 2, "rows_with_training_image": 4}},
    }
    put(root / "declared.json", counts)
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\n  root: .*", "\n  root: releases", text)
    text = re.sub(r"\nbenchmarks:\n(- .*\n)+", "\nbenchmarks:\n- slake\n- vqa_rad\n- path_vqa\n", text)  # fmt: skip
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def run():
    return CliRunner().invoke(audit)


def test_counts_of_a_split_are_those_of_its_rows_with_or_without_image(project):
    test, train = (read(vqa_rad, "releases", split) for split in ("test", "train"))
    counts = measure(test, train)
    assert counts["rows"] == 5 and counts["read"] == 2 and counts["missing_rows"] == 3
    assert counts["images"] == 3 and counts["missing_images"] == 2
    assert counts["yes_no"] == 4 and counts["open"] == 1 and counts["unknown"] == 5
    assert counts["categories"] == {"PRES": 5}
    assert (counts["images_also_in_train"], counts["rows_with_training_image"]) == (2, 4)
    assert counts["conflicting_groups"] == 1 and counts["rows_in_conflicting_groups"] == 2
    assert counts["groups_with_yes_and_no"] == 1 and counts["duplicate_rows"] == 1
    assert "images_also_in_train" not in measure(test)


def test_a_lists_order_and_the_case_are_no_conflict(tmp_path):
    draw_bars(tmp_path / "slake/imgs/xmlab1/source.jpg", 1)
    answers = ("Edema, Tumor", "tumor and edema", "Bend")
    put(tmp_path / "slake/test.json", [slake_row(k, 1, answer=a) for k, a in enumerate(answers[:2])])
    assert measure(read(slake, tmp_path, "test"))["conflicting_groups"] == 0
    put(tmp_path / "slake/test.json", [slake_row(k, 1, answer=a) for k, a in enumerate(answers)])
    counts = measure(read(slake, tmp_path, "test"))
    assert (counts["conflicting_groups"], counts["rows_in_conflicting_groups"]) == (1, 3)


def test_declared_json_takes_the_place_of_the_published_counts(project):
    release = read(vqa_rad, "releases", "train")
    assert declared("releases", vqa_rad, release) == {}
    assert declared("elsewhere", vqa_rad, release)["rows"] == 1797
    for text in ("[1]", '{"slake": 3}', '{"slake": {"test": {"rows": "many"}}}', "{"):
        Path("releases/declared.json").write_text(text)
        with pytest.raises(UserError, match=r"declared\.json"):
            declared("releases", vqa_rad, release)


def test_deviations_name_what_differs_and_leave_out_what_cannot_be_counted():
    release = Release("vqa_rad", "test", rows=5)
    measured = measure(release)
    assert deviations(release, measured, {"rows": 5, "images_also_in_train": 202}) == []
    assert deviations(release, measured, {"rows": 451}) == ["vqa_rad test: 5 rows, declared 451"]
    assert "nothing known as gears" in deviations(release, measured, {"gears": 1})[0]
    refuse("root", ["a deviation"], "report")
    with pytest.raises(UserError, match="a deviation"):
        refuse("root", ["a deviation"], "stop")


def test_annotated_rows_are_compared_on_all_images_only(project):
    release = silvar_med.training(Path("releases"), load_params(), Images("releases"))["test"]
    assert deviations(release, measure(release), {"annotated": 1})
    Path("releases/slake/imgs/xmlab4/source.jpg").unlink()
    release = silvar_med.training(Path("releases"), load_params(), Images("releases"))["test"]
    assert deviations(release, measure(release), {"annotated": 1}) == []


def test_a_shared_own_image_is_named_by_both_its_rows(project):
    images = Images("releases")
    releases = silvar_med.training(Path("releases"), load_params(), images)
    own_splits_apart("releases", releases)
    Path("releases/slake/imgs/xmlab4/source.jpg").write_bytes(
        Path("releases/slake/imgs/xmlab2/source.jpg").read_bytes()
    )
    releases = silvar_med.training(Path("releases"), load_params(), Images("releases"))
    with pytest.raises(
        UserError, match=r"dev and test rows\n.*first that of silvar_med/validate/4 and silvar_med/test/6"
    ):
        own_splits_apart("releases", releases)


def test_near_duplicates_leave_out_the_image_itself(project):
    images = Images("releases")
    train, test = (
        Split("slake", split, read(slake, "releases", split, images=images), images) for split in ("train", "test")
    )
    assert [(train.images[a], test.images[b]) for a, b, *_ in near_duplicates(train, test)] == [
        ("slake/imgs/xmlab0/source.jpg", "slake/imgs/xmlab5/source.jpg")
    ]
    assert near_duplicates(test, test) == []


def test_the_stage_finds_what_was_put_there(project):
    result = run()
    assert result.exit_code == 0, result.output
    sets = read_json("metrics/audit.json")["sets"]
    assert list(sets) == ["silvar_med", "slake", "vqa_rad"]
    assert list(sets["silvar_med"]) == ["train", "dev", "test"]
    assert sets["silvar_med"]["test"]["near_duplicates_of_own_train"] == 1
    test = sets["slake"]["test"]
    assert (test["rows"], test["missing_rows"], test["rows_of_own_test"]) == (4, 1, 2)
    assert (test["images_in_own_train"], test["rows_with_own_test_image"]) == (0, 3)
    assert sets["slake"]["validate"]["refused"] == 1
    rad = sets["vqa_rad"]["test"]
    assert (rad["images_in_own_train"], rad["rows_with_own_train_image"]) == (1, 2)
    assert (rad["images_also_in_train"], rad["rows_with_training_image"]) == (2, 4)
    assert read_json("metrics/audit.json")["deviations"] == []
    with open("data/audit/shared_images.csv", encoding="utf-8", newline="") as file:
        pairs = Counter((r["first_set"], r["first_split"], r["second_set"], r["second_split"])
                        for r in csv.DictReader(file))  # fmt: skip
    assert pairs == {
        ("vqa_rad", "train", "vqa_rad", "test"): 2,
        ("silvar_med", "test", "slake", "test"): 2,
        ("silvar_med", "train", "vqa_rad", "test"): 1,
    }
    with open("data/audit/near_duplicates.csv", encoding="utf-8", newline="") as file:
        near = list(csv.DictReader(file))
    assert {row["second_set"] for row in near} == {"silvar_med", "slake"}
    assert all(int(row["dhash_bits"]) <= 4 and int(row["phash_bits"]) <= 4 for row in near)


def test_images_are_decoded_once(project, monkeypatch):
    import rarl.data.release as release

    decoded, real = Counter(), release.decode
    monkeypatch.setattr(release, "decode", lambda data: decoded.update([hash(data)]) or real(data))
    assert run().exit_code == 0
    # VQA-RAD's one image is xmlab1, and nothing asks for xmlab3: its row has no answer.
    assert len(decoded) == 5 and set(decoded.values()) == {1}
    assert run().exit_code == 0
    assert set(decoded.values()) == {1}


def test_a_deviation_ends_the_stage_after_its_files_are_written(project):
    put(project / "releases/declared.json", {"silvar_med": {}, "slake": {}, "vqa_rad": {"train": {"rows": 9}}})
    result = run()
    assert result.exit_code != 0 and "vqa_rad train: 2 rows, declared 9" in result.output
    assert "Traceback" not in result.output
    assert "declared 9" in Path("data/audit/data_card.html").read_text(encoding="utf-8")
    assert read_json("metrics/audit.json")["deviations"] == ["vqa_rad train: 2 rows, declared 9"]
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("deviation: stop", "deviation: report"), "utf-8")
    assert run().exit_code == 0


def test_the_data_card_is_one_page_that_needs_no_network(project):
    assert run().exit_code == 0
    page = Path("data/audit/data_card.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe)|@import|url\(", page)
    assert set(re.findall(r'src="(.{10})', page)) == {"data:image"}
    assert "CC BY 4.0" in page and "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert "202 of 203 test images" in page  # what is known of the published set
    assert "4 of the 5 test rows show an image that is also in the set&#39;s own training split" in page  # fmt: skip
    assert "Not available: Path-VQA" in page
    assert "&lt;b&gt;hot" in page and "<b>hot" not in page
    assert str(project) not in page
    # One of VQA-RAD's three images is there: it is shown once, though two rows and two splits have it.
    section = page[page.index('id="vqa_rad"') :]
    assert section.count("<article") == 1
    markdown = Path("data/audit/data_card.md").read_text(encoding="utf-8")
    assert "| Rows in the file | 2 | 5 ✓ |" in markdown and "data:image" not in markdown
    before = page, markdown
    assert run().exit_code == 0
    assert before == tuple(Path(f"data/audit/data_card.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))


def test_no_patient_and_no_file_name_reaches_the_data_card_of_own_data(project):
    folder, patients = project / "releases/own", ["Sprocket", "Flange", "Grommet", "Ratchet"]
    folder.mkdir()
    for k, patient in enumerate(patients):
        make(folder / f"{patient}.dcm", np.roll(RAMP, 3 * k, axis=k % 2))
    lines = [f"{patient}.dcm,Is the gear bent?,no,{patient}" for patient in patients]
    table = "\n".join(["image,question,answer,patient", *lines])
    (folder / "rows.csv").write_text(table, encoding="utf-8")
    text = Path("params.yaml").read_text(encoding="utf-8")
    text = text.replace("source: silvar_med", "source: own")
    Path("params.yaml").write_text(re.sub(r"\n- (slake|path_vqa)\b", "", text), encoding="utf-8")
    for stage in (curate, audit):
        result = CliRunner().invoke(stage)
        assert result.exit_code == 0, result.output
        for secret in (*patients, *PERSON.values()):
            assert secret not in result.output
    page = Path("data/audit/data_card.html").read_text(encoding="utf-8")
    own = page[page.index('<section id="own"') : page.index('<section id="vqa_rad"')]
    assert own.count("data:image/jpeg") == 4
    for path in [*Path("data").rglob("*"), *Path("metrics").rglob("*")]:
        if path.is_file():
            for secret in (*patients, *PERSON.values()):
                assert secret.encode() not in path.read_bytes(), path


def test_refusals_are_counted_by_cause_with_the_first_rows():
    release = Release("slake", "test")
    release.refused = [("1", "empty answer"), *((str(k), f"cut (at byte {k})") for k in range(2, 302)), ("9", "cut")]
    assert release.refusals == {"cut": (301, "2: at byte 2; 3: at byte 3; 4: at byte 4"), "empty answer": (1, "1")}


def test_one_cause_is_one_line_and_one_key_and_every_row_is_in_a_table(project):
    """Images that differ in what is wrong with them, but not in why: sizes, modes, frames, bytes left over."""
    folder = project / "releases/own"
    folder.mkdir()
    for k in range(3):
        draw_bars(folder / f"good{k}.jpg", k)
    lines = [f"good{k}.jpg,Is it?,no,{split}" for k, split in enumerate(("train", "dev", "test"))]
    whole = (folder / "good0.jpg").read_bytes()
    frames = [Image.new("L", (9, 9), k) for k in range(12)]
    for k in range(5):
        Image.new("L", (3000 + k, 10)).save(folder / f"strip{k}.png")
        (folder / f"cut{k}.jpg").write_bytes(whole[: len(whole) // 2 + 9 * k])
        frames[0].save(folder / f"film{k}.gif", save_all=True, append_images=frames[1 : 2 + k])
        make(folder / f"film{k}.dcm", NumberOfFrames=2 + k, PixelData=bytes(256 * (2 + k)))
        names = (f"strip{k}.png", f"cut{k}.jpg", f"film{k}.gif", f"film{k}.dcm")
        lines += [f"{name},Is it?,no,train" for name in names]
    own_data(project, lines)
    results = [CliRunner().invoke(stage) for stage in (curate, audit)]
    assert [result.exit_code for result in results] == [0, 0], results
    warnings = [line for line in results[0].output.splitlines() if "refused: " in line]
    assert len(warnings) == 3 and "train: 10 rows refused: multi-frame: export the frame" in warnings[0]
    assert warnings[0].endswith(" (first row6: 2 frames; row7: 2 frames; row10: 3 frames)")
    with open("data/audit/refused.csv", encoding="utf-8", newline="") as file:
        refused = [row for row in csv.DictReader(file) if row["set"] == "own"]
    assert len(refused) == 20 and "each of the 20 refused rows: data/audit/refused.csv" in results[1].output
    assert list(refused[0].values()) == ["own", "train", "row4", "a longer strip than 200:1 (3000 x 10 pixels)"]
    text = Path("params.yaml").read_text(encoding="utf-8").replace("source: own", "source: silvar_med")
    Path("params.yaml").write_text(text.replace("- vqa_rad", "- own"), encoding="utf-8")
    assert CliRunner().invoke(benchmark, ["--set", "own"]).exit_code == 0
    assert list(read_json("metrics/benchmark/own.json")["refused"].values()) == [5, 5, 10]


def own_data(project, lines: list[str]) -> None:
    """Make the project train on rows of its own: `lines` are image, question, answer and split."""
    (project / "releases/own").mkdir(exist_ok=True)
    table = "\n".join(["image,question,answer,split", *lines])
    (project / "releases/own/rows.csv").write_text(table, encoding="utf-8")
    text = Path("params.yaml").read_text(encoding="utf-8")
    text = text.replace("source: silvar_med", "source: own")
    Path("params.yaml").write_text(re.sub(r"\n- (slake|path_vqa)\b", "", text), encoding="utf-8")


def written() -> dict[Path, bytes]:
    files = [path for folder in ("data", "metrics") for path in Path(folder).rglob("*")]
    return {path: path.read_bytes() for path in files if path.is_file()}


def test_no_name_of_a_refused_missing_or_outside_file_reaches_any_output(project):
    """Whatever is wrong with it: damaged, deep, DICOM, absent, absolute, above the folder, in two splits."""
    folder = project / "releases/own"
    folder.mkdir()
    for k in range(3):
        draw_bars(folder / f"good{k}.jpg", k)
    secrets = ["Sprocket", "Flange", "Grommet", "Ratchet", "Gasket", "Bushing", "Camshaft"]
    (folder / "Sprocket.png").write_bytes(b"gear")
    Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(folder / "Flange.png")
    make(folder / "Grommet.dcm", NumberOfFrames=2, PixelData=bytes(512))
    make(folder / "Camshaft", PixelData=None)
    names = ["Sprocket.png", "Flange.png", "Grommet.dcm", "Camshaft", "Ratchet.png", "/home/Gasket/Gasket.png",
             "../Bushing.png"]  # fmt: skip
    lines = [f"good{k}.jpg,Is it?,no,{split}" for k, split in enumerate(("train", "dev", "test"))]
    lines += [f"{name},Is it?,no,{split}" for name in names for split in ("train", "test")]
    own_data(project, lines)

    for stage in (curate, audit):
        result = CliRunner().invoke(stage)
        assert result.exit_code == 0, result.output
        assert not [secret for secret in secrets if secret in result.output], result.output
    for path, content in written().items():
        assert not [secret for secret in secrets if secret.encode() in content], path
    page = Path("data/audit/data_card.md").read_text(encoding="utf-8")
    assert "2 of the 8 train rows refused: image path leads out of the release (first row14; row16)." in page
    with open("data/audit/shared_images.csv", encoding="utf-8", newline="") as file:
        shared = {(r["first_image"], r["second_image"]) for r in csv.DictReader(file) if r["first_set"] == "own"}
    assert ("own/train/row4", "own/test/row5") in shared, "still counted as one image"

    # The same rows as a benchmark; then what stops the run.
    text = Path("params.yaml").read_text(encoding="utf-8").replace("source: own", "source: silvar_med")
    Path("params.yaml").write_text(text.replace("- vqa_rad", "- own"), encoding="utf-8")
    said = [CliRunner().invoke(benchmark, ["--set", "own"])]
    assert said[0].exit_code == 0, said[0].output
    counts = read_json("metrics/benchmark/own.json")["refused"]
    assert counts["image path leads out of the release"] == 4 and sum(counts.values()) == 12
    Path("params.yaml").write_text(
        text.replace("- vqa_rad", "- own").replace("missing: skip", "missing: stop"), "utf-8"
    )
    said.append(CliRunner().invoke(benchmark, ["--set", "own"]))
    assert said[1].exit_code == 1 and "2 of 17 rows without their image (first row12)" in said[1].output
    for result in said:
        assert not [secret for secret in secrets if secret in result.output], result.output
    for path, content in written().items():
        assert not [secret for secret in secrets if secret.encode() in content], path


def test_text_burned_into_dicom_images_is_counted_and_warned_of(project):
    folder = project / "releases/own"
    folder.mkdir()
    for k, flag in enumerate(("YES", "NO", None, "YES", " yes")):
        make(folder / f"{k}.dcm", np.roll(RAMP, 3 * k, axis=0), BurnedInAnnotation=flag)
    splits = ("train", "train", "dev", "test", "test")
    own_data(project, [f"{k}.dcm,Is it?,no,{split}" for k, split in enumerate(splits)])
    results = [CliRunner().invoke(stage) for stage in (curate, audit)]
    assert [result.exit_code for result in results] == [0, 0], results[0].output
    assert "WARNING: train: 1 rows: the image's DICOM header" in results[0].output
    assert "WARNING: test: 2 rows" in results[0].output and "dev: " not in results[0].output
    assert read_json("metrics/curate.json")["rows_with_burned_in_text"] == 3
    card = Path("data/audit/data_card.md").read_text(encoding="utf-8")
    assert "1 of the 2 train rows: the image's DICOM header says" in card and "look at these" in card
    text = Path("params.yaml").read_text(encoding="utf-8").replace("source: own", "source: silvar_med")
    Path("params.yaml").write_text(text.replace("- vqa_rad", "- own"), encoding="utf-8")
    result = CliRunner().invoke(benchmark, ["--set", "own"])
    assert "WARNING: benchmark own: 3 rows: the image's DICOM header" in result.output
    assert read_json("metrics/benchmark/own.json")["notes"]["rows_with_burned_in_text"] == 3


def test_bars_leave_nothing_out():
    assert binned([1, 4, 5, 99], ((1, 4), (5, 6), (7, 8), (9, None))) == [
        ("1 to 4", 2), ("5 to 6", 1), ("7 to 8", 0), ("9+", 1)
    ]  # fmt: skip
    assert binned([6], ((1, 4), (5, 6), (7, None))) == [("5 to 6", 1)] and binned([], ((1, 2),)) == []  # fmt: skip
    assert top(Counter("aabbc"), 2) == [("a", 2), ("b", 2), ("1 others", 1)]


def test_the_drawings_are_what_the_phantom_declares_of_them(tmp_path):
    write_releases(tmp_path, Phantom(benchmark_rows=40, image_size=56))
    counts = read_json(tmp_path / "declared.json")
    images = Images(tmp_path)
    releases = list(silvar_med.training(tmp_path, None, images).values())
    for name, splits in counts.items():
        if name != "silvar_med":
            releases += [read(load_adapter(name), tmp_path, split, images=images) for split in splits]
    training = {release.dataset: release for release in releases if release.split == "train"}
    assert {(release.dataset, release.split) for release in releases} == {
        (name, split) for name, splits in counts.items() for split in splits
    }
    for release in releases:
        measured = measure(release, training.get(release.dataset))
        assert deviations(release, measured, counts[release.dataset][release.split]) == []
    assert counts["silvar_med"]["train"] | {"annotated": 0} == {
        "rows": 716, "images": 304, "mri": 162, "ct": 122, "xray": 432, "annotated": 0,
    }  # fmt: skip
    assert counts["path_vqa"]["test"]["conflicting_groups"] > 0


@pytest.mark.skipif(not REAL, reason="RARL_DATA_ROOT is not set")
def test_the_known_leaks_and_conflicts_are_found_in_the_real_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    root = (REPOSITORY / REAL).resolve()
    Path("params.yaml").write_text(re.sub(r"\n  root: .*", f"\n  root: {root}", text), "utf-8")
    result = run()
    assert result.exit_code == 0, result.output
    sets = read_json("metrics/audit.json")["sets"]
    for splits in sets.values():
        for count in splits.values():
            assert count["rows"] == count["read"] + count["refused"] + count["missing_rows"]
    if "slake" in sets:
        assert (sets["slake"]["test"]["rows_of_own_test"], sets["slake"]["test"]["rows"]) == (150, 1061)  # fmt: skip
        assert sets["slake"]["test"]["images_in_own_train"] == 0
    if "vqa_rad" in sets:
        rad = sets["vqa_rad"]["test"]
        assert (rad["images_also_in_train"], rad["rows_with_training_image"]) == (202, 446)
    if "path_vqa" in sets:
        path = sets["path_vqa"]["test"]
        assert (path["conflicting_groups"], path["groups_with_yes_and_no"]) == (236, 3)
