"""Each adapter on a small made-up release in the Hugging Face hub's form."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_datasets_adapters import read, slake_row

from rarl.data import release
from rarl.data.adapters import cv_bench, path_vqa, sat, silvar_med, slake, vqa_med, vqa_rad
from rarl.data.audit import compare_with_declared
from rarl.data.release import Images, MissingRelease
from rarl.errors import UserError


def png(number, mode="RGB", form="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), (number, 90, 7)).convert(mode).save(buffer, form)
    return buffer.getvalue()


def cell(number, **more):
    """A cell of the hub's image columns."""
    return {"bytes": png(number, **more), "path": f"{number}.png"}


def put(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def asked(number, question, answer, **more):
    return {"image": cell(number), "question": question, "answer": answer, **more}


def test_vqa_rad(tmp_path):
    folder = tmp_path / "vqa-rad/data"
    put(folder / "train-00000-of-00002-0123.parquet", [asked(1, "Is it bent?", "yes"), asked(2, "Is it bent?", "no")])
    put(folder / "train-00001-of-00002-4567.parquet", [asked(3, "How many\tgears?", "4")])
    put(
        folder / "test-00000-of-00001-89ab.parquet",
        [
            asked(1, "Is it old?", "YES"),
            {"image": {"bytes": b"", "path": "a.jpg"}, "question": "Bent?", "answer": "no"},
            {"image": {"bytes": None, "path": "a.jpg"}, "question": "Bent?", "answer": "no"},
            {"image": None, "question": "Bent?", "answer": "no"},
            asked(1, None, "no"),
        ],
    )
    put(folder / "embeddings.parquet", [{"vector": [0.5]}])
    train = read(vqa_rad, tmp_path, "train")
    assert [sample.source_id for sample in train.samples] == ["row1", "row2", "row3"]
    assert train.form == "hub" and train.samples[2].kind == "number"
    test = read(vqa_rad, tmp_path)
    assert len(test.samples) == 1 and test.samples[0].image_sha256 == train.samples[0].image_sha256
    assert test.missing_images == [("row3", "vqa-rad/a.jpg")]
    assert test.refused == [
        ("row2", "image of zero bytes"),
        ("row4", "empty image name"),
        ("row5", "empty question"),
    ]


def test_images_are_unpacked_once_each_below_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(
        tmp_path / "raw/vqa_rad/test.parquet",
        [asked(1, "Bent?", "yes"), asked(1, "Old?", "no"), asked(2, "Old?", "no")],
    )
    images = Images("raw", Path("data/benchmarks/pictures/vqa_rad"))
    found = release.read(vqa_rad, "raw", "test", images=images)
    names = [sample.image for sample in found.samples]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("data/benchmarks/pictures/vqa_rad/") and names[0].endswith(".png")
    assert (tmp_path / names[0]).read_bytes() == png(1)
    assert len(list((tmp_path / "data").rglob("*.*"))) == 2


def test_a_column_that_is_not_there_and_a_broken_file_are_named(tmp_path):
    path = tmp_path / "vqa_rad/test.parquet"
    put(path, [{"image": cell(1), "question": "Bent?"}])
    with pytest.raises(UserError, match=r"no column answer \(there: image, question\)"):
        read(vqa_rad, tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="download it again"):
        read(vqa_rad, tmp_path)


def test_path_vqa_accepts_every_answer_of_one_image_and_question(tmp_path):
    put(
        tmp_path / "path-vqa/data/test-00000-of-00001.parquet",
        [
            asked(1, "what is present?", "gears"),
            asked(1, "what is present ?", " cogs "),
            asked(2, "what is present?", "gears"),
            {**asked(3, "is it round?", "no"), "image": cell(3, mode="CMYK", form="JPEG")},
        ],
    )
    put(tmp_path / "path-vqa/data/validation-00000-of-00001.parquet", [asked(1, "round?", "no")])
    found = read(path_vqa, tmp_path)
    assert [sample.answers for sample in found.samples] == [["gears", "cogs"], ["cogs", "gears"], ["gears"], ["no"]]
    assert found.samples[1].question == "what is present?" and found.form == "hub"
    assert found.notes["rows_with_conflicting_answers"] == 2
    assert found.notes["groups_with_conflicting_answers"] == 1
    assert read(path_vqa, tmp_path, "validate").rows == 1
    with pytest.raises(MissingRelease, match=r"pvqa_train\.json"):
        read(path_vqa, tmp_path, "train")


def test_vqa_med(tmp_path):
    rows = [asked(1, "what is it?", "gizzard#crop", category="organ")]
    put(tmp_path / "vqa_med/test-00000-of-00001.parquet", rows)
    put(tmp_path / "vqa_med/train-00000-of-00001.parquet", [asked(1, "what is it?", "a#b")])
    (sample,) = read(vqa_med, tmp_path).samples
    assert sample.answers == [["gizzard", "crop"][0], "crop"] and sample.category == "organ"
    assert read(vqa_med, tmp_path, "train").samples[0].answers == ["a#b"]
    assert "hub" not in vqa_med.DECLARED.counts


def test_cv_bench_reads_both_files(tmp_path):
    def row(idx, task, **changes):
        prompt = "Which? Select from the following choices.\n(A) crop\n(B) 3"
        return {
            "idx": idx, "type": "2D", "task": task, "image": cell(idx), "question": "Which?",
            "choices": ["crop", "3"], "answer": "(B)", "prompt": prompt, "filename": "x.png", "source": "X",
        } | changes  # fmt: skip

    put(tmp_path / "cv-bench/test_2d.parquet", [row(0, "Count"), row(1, "Relation", prompt=None)])
    put(tmp_path / "cv-bench/test_3d.parquet", [row(2, "Depth"), row(3, "Depth", answer="(C)")])
    found = read(cv_bench, tmp_path)
    assert [sample.category for sample in found.samples] == ["Count", "Relation", "Depth"]
    assert found.form == "hub" and found.refused == [("3", "the answer '(C)' is none of the 2 options")]
    assert found.samples[0].question == found.samples[1].question
    assert found.samples[0].answers == ["3", "(B)"] and found.samples[0].modality == "other"


def test_slake_parquet_copies_need_the_language(tmp_path):
    rows = [
        asked(1, "Is the gizzard healthy?", "Yes", q_lang="en", modality="MRI", qid=8),
        asked(1, "图中?", "有", q_lang="zh", modality="MRI", qid=9),
    ]
    put(tmp_path / "slake/data/test-00000-of-00001.parquet", rows)
    found = read(slake, tmp_path)
    assert found.rows == 1 and found.notes["other_language_rows"] == 1 and found.form == "hub"
    assert found.samples[0].modality == "mri" and found.samples[0].source_id == "8"


def test_a_folder_of_save_to_disk(tmp_path):
    import datasets

    def table(*rows):
        features = datasets.Features(
            {"image": datasets.Image(), "question": datasets.Value("string"),
             "answer": datasets.Value("string")}
        )  # fmt: skip
        return datasets.Dataset.from_list(list(rows), features=features)

    both = {"train": table(asked(1, "Bent?", "yes"), asked(2, "Bent?", "no")), "test": table(asked(3, "Bent?", "yes"))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "vqa_rad")
    assert [sample.answers for sample in read(vqa_rad, tmp_path, "train").samples] == [["yes"], ["no"]]
    assert read(vqa_rad, tmp_path).rows == 1
    # One split saved alone says in a file which one it is.
    path = tmp_path / "path_vqa/mine"
    table(asked(3, "Bent?", "yes")).save_to_disk(path)
    state = (path / "state.json").read_text(encoding="utf-8")
    (path / "state.json").write_text(state.replace('"_split": null', '"_split": "test"'), encoding="utf-8")
    assert read(path_vqa, tmp_path).rows == 1
    with pytest.raises(MissingRelease):
        read(path_vqa, tmp_path, "train")


def sat_row(number, images=1, **changes):
    return {
        "image_bytes": [cell(number + 40 * k) for k in range(images)], "question": "Where is the crop?",
        "answers": ["left", "right of it"], "question_type": "place", "correct_answer": "right of it",
    } | changes  # fmt: skip


def test_sat(tmp_path):
    rows = [
        sat_row(1),
        sat_row(2, images=2),
        sat_row(3, correct_answer="above"),
        sat_row(4, answers=["left"]),
        sat_row(5, answers=None),
        sat_row(6, question=None),
        sat_row(7, image_bytes=[]),
    ]
    put(tmp_path / "sat/SAT_val.parquet", rows)
    found = read(sat, tmp_path, "validate")
    (sample,) = found.samples
    assert sample.question == ("Where is the crop? Select from the following choices.\n(A) left\n(B) right of it")
    assert sample.answers == ["right of it", "(B)"] and sample.kind == "choice"
    assert sample.category == "place" and sample.choices == ["left", "right of it"]
    reasons = dict(found.refused)
    assert reasons["row2"] == "2 images, not one" and reasons["row7"] == "0 images, not one"
    assert "'above'" in reasons["row3"] and "choices" in reasons["row4"] and len(reasons) == 6


def test_sat_with_plain_bytes(tmp_path):
    put(tmp_path / "sat/SAT_static.parquet", [sat_row(1, image_bytes=[png(1)])])
    assert len(read(sat, tmp_path, "static").samples) == 1


def test_sat_trains_on_a_seeded_choice(tmp_path):
    put(tmp_path / "sat/SAT_train.parquet", [sat_row(k, images=1 + (k % 3 == 0)) for k in range(60)])
    put(tmp_path / "sat/SAT_val.parquet", [sat_row(61), sat_row(62)])
    put(tmp_path / "sat/SAT_test.parquet", [sat_row(63)])

    def chosen(samples, seed):
        params = SimpleNamespace(train=SimpleNamespace(samples=samples), seed=seed)
        return sat.training(tmp_path, params, Images(tmp_path))

    releases = chosen(12, 7)
    train = releases["train"]
    assert train.rows == len(train.samples) == 12
    assert train.notes["rows_not_chosen"] == 48 and train.notes["rows_with_one_image"] == 40
    assert [len(releases[split].samples) for split in ("dev", "test")] == [2, 1]
    ids = [sample.id for sample in train.samples]
    assert ids == [sample.id for sample in chosen(12, 7)["train"].samples]
    assert ids != [sample.id for sample in chosen(12, 8)["train"].samples]
    assert set(ids) < {sample.id for sample in chosen(20, 7)["train"].samples}
    (tmp_path / "declared.json").write_text('{"sat": {"train": {"rows": 60}}}')
    assert compare_with_declared(tmp_path, sat, [train]) == []
    whole = chosen(None, 7)["train"]
    assert len(whole.samples) == 40 and len(whole.refused) == 20
    # A chosen row is the row of that number.
    by_id = {sample.id: sample.image_sha256 for sample in whole.samples}
    assert all(by_id[sample.id] == sample.image_sha256 for sample in train.samples)


def test_silvar_med_explanations_in_parquet(tmp_path):
    (tmp_path / "slake").mkdir()
    for split in ("train", "validate", "test"):
        (tmp_path / f"slake/{split}.json").write_text(json.dumps([slake_row(1)]), encoding="utf-8")
    rows = [
        {"img_name": "xmlab1_2.jpg", "question": "Is the gizzard healthy?", "answer": "Even."},
        {"img_name": "xmlab5.jpg", "question": "Is the gizzard healthy?", "answer": "Odd."},
    ]
    put(tmp_path / "silvar_med/data/train-00000-of-00001.parquet", rows)
    put(
        tmp_path / "silvar_med/data/test-00000-of-00001.parquet",
        [{"image": {"bytes": b"x", "path": "xmlab1.jpg"}, "question": "Old?", "answer": "Old."}],
    )
    releases = silvar_med.training(tmp_path, None, Images(tmp_path))
    notes = releases["train"].notes
    assert notes["explanations_read"] == 3 and notes["explanations_matched"] == 1
    left = silvar_med.unmatched(silvar_med.explanations(tmp_path), releases.values())
    assert [(each.image, each.text) for each in left] == [("xmlab1.jpg", "Old."), ("xmlab5.jpg", "Odd.")]
