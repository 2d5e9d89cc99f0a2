"""Each adapter on a small made-up release, in its original files, that holds the real one's quirks."""

import io
import json
import pickle

import pytest
from PIL import Image

from rarl.answers.matching import matches
from rarl.data import release
from rarl.data.adapters import cv_bench, load_adapter, path_vqa, sat, silvar_med, slake, vqa_med, vqa_rad
from rarl.data.release import Images, MissingRelease
from rarl.errors import UserError
from rarl.registry import DATA_SETS

ADAPTERS = (slake, vqa_rad, vqa_med, path_vqa, cv_bench, sat)


def read(adapter, root, split="test", **selection):
    """Read a split, with every row accounted for and every reference accepted as an answer."""
    found = release.read(adapter, root, split, **selection)
    assert len(found.samples) + len(found.refused) + len(found.missing_images) == found.rows
    ids = [sample.id for sample in found.samples]
    assert len(set(ids)) == len(ids)
    for sample in found.samples:
        for answer in sample.answers:
            assert matches(answer, sample.answers, sample.kind, sample.choices), sample
    return found


def put_image(path, colour=(90, 90, 90), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).convert(mode).save(path)


def put_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def slake_row(qid, question="Is the gizzard healthy?", answer="Yes", image="xmlab1/source.jpg", **changes):
    row = {
        "img_id": 1, "img_name": image, "question": question, "answer": answer, "q_lang": "en",
        "location": "Chest_lung", "modality": "CT", "answer_type": "CLOSED", "base_type": "vqa",
        "content_type": "Abnormality", "triple": ["vhead", "_", "_"], "qid": qid,
    }  # fmt: skip
    return {**row, **changes}


def test_every_benchmark_has_an_adapter_with_what_is_declared_of_it():
    for name, data_set in DATA_SETS.items():
        adapter = load_adapter(name)
        declared = adapter.DECLARED
        assert adapter.FOLDERS[0] == name
        for form, splits in declared.counts.items():
            assert form in ("original", "hub", "export")
            assert all(counts["rows"] > 0 for counts in splits.values())
        assert hasattr(adapter, "training") or not data_set.training
        assert hasattr(adapter, "rows") or not data_set.benchmark


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_missing_release_file_or_root_says_what_to_do(tmp_path, adapter):
    with pytest.raises(MissingRelease, match="expected"):
        read(adapter, tmp_path)
    with pytest.raises(UserError, match=r"data\.root"):
        read(adapter, tmp_path / "nowhere")
    (tmp_path / adapter.FOLDERS[0]).mkdir()
    with pytest.raises(MissingRelease, match=r"to do: +\S"):
        read(adapter, tmp_path)
    with pytest.raises(UserError, match="ask for a split"):
        read(adapter, tmp_path, "exam")


def test_slake(tmp_path):
    for number in (1, 2):
        put_image(tmp_path / f"slake/imgs/xmlab{number}/source.jpg", (number, 0, 0))
    (tmp_path / "slake/imgs/xmlab3").mkdir()
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(whole, "JPEG")
    (tmp_path / "slake/imgs/xmlab3/source.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    rows = [
        slake_row(1),
        slake_row(1),  # the same row again
        slake_row(2, answer=""),
        slake_row(3, "图中是否有异常？", "有", q_lang="zh"),
        slake_row(4, "Which organ is abnormal, gizzard or crop?", "Crop"),
        slake_row(5, "Which organ is abnormal, gizzard or crop?", "Both", "xmlab2/source.jpg"),
        slake_row(6, "What diseases are included in the picture?", "None", answer_type="OPEN"),
        slake_row(7, image="xmlab3/source.jpg"),
        slake_row(8, image="xmlab9/source.jpg"),
        slake_row(9, image="../../../secret.jpg"),
        slake_row(10, "Which plane?", "Axial", content_type="Plane"),
    ]
    put_json(tmp_path / "slake/test.json", rows)
    found = read(slake, tmp_path, "test")
    assert found.rows == 10 and found.notes["other_language_rows"] == 1 and found.notes["duplicate_rows"] == 1
    assert [row for row, _ in found.refused] == ["2", "7", "9"]
    assert found.refused[1][1].startswith("image does not decode")
    assert found.missing_images == [("8", "slake/imgs/xmlab9/source.jpg")]
    by_id = {sample.source_id: sample for sample in found.samples}
    assert by_id["4"].kind == by_id["5"].kind == "choice" and by_id["4"].choices == ["gizzard", "crop"]
    assert by_id["6"].answers == ["None"] and by_id["6"].kind == "open"
    assert by_id["1"].modality == "ct" and by_id["1"].image == "slake/imgs/xmlab1/source.jpg"
    assert read(slake, tmp_path, "test", content_type="Plane").rows == 1


def test_slake_names_a_broken_file(tmp_path):
    put_json(tmp_path / "slake/test.json", {"rows": []})
    with pytest.raises(UserError, match="a list of rows"):
        read(slake, tmp_path, "test")
    (tmp_path / "slake/test.json").write_text('[{"qid": 1},\n oops]', encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        read(slake, tmp_path, "test")
    with pytest.raises(UserError, match="validate"):
        read(slake, tmp_path, "dev")


def test_slake_without_its_language_column(tmp_path):
    rows = [slake_row(1), slake_row(2, "图中是否有异常？", "有", q_lang="zh"), slake_row(3)]
    for row in rows:
        del row["q_lang"]
    put_json(tmp_path / "slake/test.json", rows)
    found = read(slake, tmp_path)
    assert [row.source_id for row in found.seen] == ["1", "3"]
    assert found.notes["rows_without_q_lang"] == 3 and found.notes["other_language_rows"] == 1


@pytest.mark.parametrize("column, selection", [("img_name", {}), ("content_type", {"content_type": "Abnormality"})])
def test_slake_names_a_column_that_is_not_there(tmp_path, column, selection):
    row = slake_row(1)
    row["other"] = row.pop(column)
    put_json(tmp_path / "slake/test.json", [row])
    with pytest.raises(UserError, match=rf"no column {column} \(there: img_id, .*other"):
        read(slake, tmp_path, **selection)


def test_slake_says_that_its_archive_is_not_unpacked(tmp_path):
    put_json(tmp_path / "slake/validation.json", [slake_row(1)])
    assert len(read(slake, tmp_path, "validate").missing_images) == 1
    (tmp_path / "slake/imgs.zip").write_bytes(b"not looked into")
    with pytest.raises(UserError, match=r"not unpacked[\s\S]*rarl download slake"):
        read(slake, tmp_path, "validate")
    put_image(tmp_path / "slake/imgs/xmlab1/source.jpg")
    assert len(read(slake, tmp_path, "validate").samples) == 1


@pytest.fixture
def abnormal(tmp_path):
    """SLAKE with four Abnormality rows in training, one in validation and one in test."""
    for number in (1, 10):
        put_image(tmp_path / f"slake/imgs/xmlab{number}/source.jpg", (number, 0, 0))
    rows = [
        slake_row(1, "Is the crop healthy?"),
        slake_row(2, "Is the  gizzard healthy?"),
        slake_row(3, "Is the crop healthy?", "No", "xmlab10/source.jpg"),
        slake_row(4, "Is the crop sore?", "No", "xmlab10/source.jpg"),
        slake_row(5, "Which plane?", "Axial", content_type="Plane"),
    ]
    put_json(tmp_path / "slake/train.json", rows)
    put_json(tmp_path / "slake/validate.json", [slake_row(6, image="xmlab2/source.jpg")])
    put_json(tmp_path / "slake/test.json", [slake_row(7, "Sore?", image="xmlab1/source.jpg")])
    return tmp_path


def train(root):
    return silvar_med.training(root, None, Images(root))


def test_silvar_med_without_explanations(abnormal):
    releases = train(abnormal)
    assert [len(releases[split].samples) for split in ("train", "dev", "test")] == [4, 0, 1]
    assert [releases[split].split for split in releases] == ["train", "validate", "test"]
    assert len(releases["dev"].missing_images) == 1
    assert all(sample.reasoning is None for sample in releases["train"].samples)
    assert releases["train"].notes["explanations_read"] == 0
    assert releases["train"].samples[0].id == "silvar_med/train/1"


def test_silvar_med_joins_the_authors_explanations_by_image_and_question(abnormal):
    explained = [
        {"img_name": "xmlab1.jpg", "question": "Is the crop healthy?", "answer": "First."},
        {"img_name": "xmlab1_1.jpg", "question": "is the gizzard healthy?", "answer": "Second."},
        {"img_name": "imgs_train_abnormal/xmlab10.jpg", "question": "Is the crop healthy?", "answer": "Third."},
        {"img_name": "xmlab10_1.jpg", "question": "Is the crop sore?", "answer": " "},
        {"img_name": "xmlab10.jpg", "question": "Is the crop healthy?", "answer": "Otherwise."},
        {"img_name": "xmlab2.jpg", "question": "Is the gizzard healthy?", "answer": "Fourth."},
        {"img_name": "xmlab100.jpg", "question": "Is the crop healthy?", "answer": "Nowhere."},
    ]
    put_json(abnormal / "silvar-med/Abnormal_Ours/train/rows.json", explained)
    put_image(abnormal / "silvar-med/Abnormal_Ours/train/imgs_train_abnormal/xmlab1.jpg")
    releases = train(abnormal)
    samples = releases["train"].samples
    assert [sample.reasoning for sample in samples] == ["First.", "Second.", "Third.", None]
    notes = releases["train"].notes
    assert notes["explanations_read"] == 7 and notes["explanations_empty"] == 1
    assert notes["explanations_without_a_row"] == 1 and notes["explanations_matched"] == 3
    assert notes["rows_with_differing_explanations"] == 1
    # A row whose image is not there is matched all the same.
    assert releases["dev"].notes["explanations_matched"] == 1 and not releases["dev"].samples
    assert releases["test"].notes["explanations_matched"] == 0
    (left,) = silvar_med.unmatched(silvar_med.explanations(abnormal), releases.values())
    assert (left.file, left.row, left.image) == ("Abnormal_Ours/train/rows.json", 7, "xmlab100.jpg")


def test_silvar_med_takes_explanations_from_elsewhere(abnormal):
    lines = [
        {"image": "xmlab1/source.jpg", "question": "Is the crop healthy?", "reasoning": "By path."},
        {"image": "xmlab10", "question": "Is the crop sore?", "reasoning": "By number."},
    ]
    path = abnormal / "silvar_med/others.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    samples = train(abnormal)["train"].samples
    assert [sample.reasoning for sample in samples] == ["By path.", None, None, "By number."]
    path.write_text('{"image": "xmlab1", "question": ["?"], "reason": "x"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"row 1[\s\S]*no text under question, reasoning"):
        train(abnormal)
    path.unlink()
    put_json(abnormal / "silvar_med/other.json", [{"image": "xmlab1.jpg"}])
    with pytest.raises(UserError, match="img_name, question, answer"):
        train(abnormal)


def rad_row(qid, answer, question="Is it bent?", phrase="test_para", image="synpic1.jpg", answer_type="OPEN"):
    return {
        "qid": qid, "phrase_type": phrase, "image_name": image, "image_organ": "HEAD", "question": question,
        "question_type": "PRES ", "answer": answer, "answer_type": answer_type,
    }  # fmt: skip


def test_vqa_rad(tmp_path):
    put_image(tmp_path / "vqa-rad/VQA_RAD Image Folder/synpic1.jpg")
    rows = [
        rad_row("0", "YES", answer_type="CLOSED "),
        rad_row(1, 4, "How many\t gears?"),
        rad_row(2, "Left\tside"),
        rad_row(3, "no", phrase="freeform"),
        rad_row(4, "no", image="synpic2.jpg"),
        rad_row(5, None),
        rad_row(6, "Both", answer_type="CLOSED"),
    ]
    put_json(tmp_path / "vqa-rad/VQA_RAD Dataset Public.json", rows)
    found = read(vqa_rad, tmp_path, "test")
    assert found.rows == 6 and len(found.missing_images) == 1 and len(found.refused) == 1
    assert [sample.answers[0] for sample in found.samples] == ["YES", "4", "Left side", "Both"]
    assert [sample.kind for sample in found.samples] == ["yes_no", "number", "open", "open"]
    assert found.samples[1].question == "How many gears?" and found.samples[0].category == "PRES"
    assert found.notes["answers_not_text"] == 1 and found.notes["closed_not_yes_no"] == 1
    assert read(vqa_rad, tmp_path, "train").rows == 1
    before = [sample.model_dump(exclude={"image"}) for sample in found.samples]
    for path in list((tmp_path / "vqa-rad").iterdir()):
        path.rename(path.with_name(path.name.replace(" ", "_")))
    found = read(vqa_rad, tmp_path, "test")
    assert [sample.model_dump(exclude={"image"}) for sample in found.samples] == before


def test_vqa_rad_names_a_column_that_is_not_there(tmp_path):
    row = rad_row(1, "no")
    del row["phrase_type"]
    put_json(tmp_path / "vqa_rad/VQA_RAD_Dataset_Public.json", [row])
    with pytest.raises(UserError, match=r"no column phrase_type \(there: qid, "):
        read(vqa_rad, tmp_path)


def test_vqa_med(tmp_path):
    folder = tmp_path / "vqa-med-2019/VQAMed2019Test"
    put_image(folder / "VQAMed2019_Test_Images/synpic1.jpg")
    lines = [
        "synpic1|organ|what is it?|gizzard, crop#crop",
        "synpic1|modality|was the scan\u00a0taken twice?|no",
        "synpic1|abnormality|what is abnormal?|(fine) crack (old)",
        "synpic1|plane|which?",
        "synpic2|plane|which plane?|axial",
    ]
    (folder / "VQAMed2019_Test_Questions_w_Ref_Answers.txt").write_text("\n".join(lines), encoding="utf-8")
    found = read(vqa_med, tmp_path, "test")
    assert found.rows == 5 and len(found.refused) == 1 and len(found.missing_images) == 1
    assert [sample.answers for sample in found.samples] == [
        ["gizzard, crop", "crop"],
        ["no"],
        ["(fine) crack (old)", "fine crack old", "crack"],
    ]
    assert found.samples[1].question == "was the scan taken twice?"
    assert [sample.category for sample in found.samples] == ["organ", "modality", "abnormality"]
    train = tmp_path / "vqa-med-2019/Training"
    put_image(train / "Train_images/synpic7.jpg")
    (train / "All_QA_Pairs_train.txt").write_text("synpic7|which plane?|lateral (left)", encoding="utf-8")
    assert read(vqa_med, tmp_path, "train").samples[0].answers == ["lateral (left)"]


def test_path_vqa(tmp_path):
    put_image(tmp_path / "path_vqa/images/test/test_1.jpg", mode="CMYK")
    put_image(tmp_path / "path_vqa/images/test/test_2.jpg", mode="L")

    def item(name, questions, answers):
        return {"img_id": name, "sentf": {"pvqa": questions}, "labelf": {"pvqa": [{a: 1} for a in answers]}}

    items = [
        item("test_0", [], []),
        item("test_1", ["what is present?", "what is present ?", "is it round ?"], ["gears", " cogs ", "yes"]),
        item("test_1", ["What is present?", "is it round?"], ["Gears", "no"]),
        item("test_2", ["what is present?", "is it round?"], ["gears"]),
        item("test_3", ["is it round?", "is it  round ?"], ["yes", "no"]),
        item(None, ["is it round?"], ["yes"]),
        {"img_id": "test_4", "sentf": {"pvqa": "is it round?"}, "labelf": {"pvqa": []}},
    ]
    put_json(tmp_path / "path_vqa/pvqa_test.json", items)
    (tmp_path / "path_vqa/qas.pkl").write_bytes(b"not opened")
    found = read(path_vqa, tmp_path, "test")
    assert found.rows == 11 and len(found.missing_images) == 2 and len(found.refused) == 3
    answers = [(sample.question, sample.answers) for sample in found.samples]
    assert answers == [
        ("what is present?", ["gears", "cogs"]),
        ("what is present?", ["cogs", "gears"]),
        ("is it round?", ["yes", "no"]),
        ("What is present?", ["Gears", "cogs"]),
        ("is it round?", ["no", "yes"]),
        ("what is present?", ["gears"]),
    ]
    assert found.notes["rows_with_conflicting_answers"] == 7 and found.notes["groups_with_yes_and_no"] == 2
    assert found.notes["images_without_questions"] == 1 and found.notes["pickle_files_not_opened"] == 1
    (tmp_path / "path_vqa/pvqa_test.json").unlink()
    with pytest.raises(MissingRelease, match="pickle"):
        read(path_vqa, tmp_path, "test")


def test_cv_bench(tmp_path):
    put_image(tmp_path / "cv-bench/img/2D/count/a.png")
    row = {
        "idx": 1, "type": "2D", "task": "Count", "question": "How many?", "choices": ["two", "3"], "answer": "(B)",
        "prompt": "How many? Select.\n(A) two\n(B) 3", "filename": "2D/count/a.png", "source": "X",
    }  # fmt: skip
    rows = [
        row,
        {**row, "idx": 2, "filename": "img/2D/count/a.png", "answer": "A", "prompt": ""},
        {**row, "idx": 3, "answer": "(C)"},
        {**row, "idx": 4, "choices": ["only"]},
        {**row, "idx": 5, "filename": "b.png"},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "cv-bench/test_2d.jsonl").write_text(text + "\n", encoding="utf-8")
    found = read(cv_bench, tmp_path, "test")
    assert [name for name, _ in found.refused] == ["3", "4"] and len(found.missing_images) == 1
    first, second = found.samples
    assert first.answers == ["3", "(B)"] and first.question == row["prompt"] and first.kind == "choice"
    assert second.answers == ["two", "(A)"] and second.question.endswith("\n(A) two\n(B) 3")
    assert first.category == "Count" and found.notes["annotation_files_missing"] == 1
    (tmp_path / "cv-bench/test_2d.jsonl").write_text('{"idx": 1}\noops', encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        read(cv_bench, tmp_path, "test")


def test_cv_bench_reads_another_benchmarks_export_where_its_own_files_are_not_there(tmp_path):
    put_image(tmp_path / "cv-bench/img/3D/depth/a.png")
    row = {
        "index": 77, "question_type": "multi-choice", "source": "cvbench", "index_origin": 3, "answer": "(B)",
        "question": "Which is nearer? Select.\n(A) crop\n(B) gizzard", "category_origin": "Depth",
        "img_paths": ["./dataset/CV-Bench/img/3D/depth/a.png"],
    }  # fmt: skip
    rows = [
        row,
        {**row, "index_origin": 4, "question": row["question"] + "\nThe boxes are: crop: [1.0, 2]"},
        {**row, "index_origin": 5, "question": "Which?"},
        {**row, "index_origin": 6, "img_paths": ["a.png", "b.png"]},
        {**row, "source": "another"},
    ]
    put_json(tmp_path / "cv-bench/rows.json", rows)
    found = read(cv_bench, tmp_path)
    assert found.form == "export" and found.notes["rows_from_an_export"] == found.rows == 4
    assert [name for name, _ in found.refused] == ["5", "6"]
    first, second = found.samples
    assert first.image == "cv-bench/img/3D/depth/a.png" and first.category == "Depth"
    assert first.answers == ["gizzard", "(B)"] and first.choices == ["crop", "gizzard"]
    assert second.question == first.question and found.notes["lines_added_by_the_export"] == 1
    (tmp_path / "cv-bench/test_2d.jsonl").write_text("", encoding="utf-8")
    assert read(cv_bench, tmp_path).rows == 0


def test_ids_stay_different_whatever_the_release_calls_its_rows(tmp_path):
    put_image(tmp_path / "slake/imgs/xmlab1/source.jpg")
    put_json(tmp_path / "slake/test.json", [slake_row(qid) for qid in (1, 1, "1-2", None, 1)])
    found = read(slake, tmp_path)
    assert [sample.id.rpartition("/")[2] for sample in found.samples] == [
        "1", "1-2", "1-2-2", "row4", "1-3",
    ]  # fmt: skip


def test_images_that_the_models_cannot_take_are_refused(tmp_path):
    folder = tmp_path / "slake/imgs/xmlab1"
    put_image(folder / "cmyk.jpg", mode="CMYK")
    Image.new("L", (1, 1)).save(folder / "1x1.png")
    Image.new("I;16", (8, 8)).save(folder / "16bit.png")
    Image.new("L", (20_000, 10)).save(folder / "strip.png")
    claimed = b"GIF89a" + (20_000).to_bytes(2, "little") * 2 + b"\x80\0\0" + bytes(6)
    claimed += b",\0\0\0\0" + (20_000).to_bytes(2, "little") * 2 + b"\0\x02\0;"
    (folder / "huge.gif").write_bytes(claimed)
    (folder / "pickle.jpg").write_bytes(pickle.dumps({"image": [1, 2]}))
    (folder / "empty.jpg").write_bytes(b"")
    names = ("cmyk.jpg", "1x1.png", "16bit.png", "strip.png", "huge.gif", "pickle.jpg", "empty.jpg")
    rows = [slake_row(name, image=f"xmlab1/{name}") for name in names]
    put_json(tmp_path / "slake/test.json", rows)
    found = read(slake, tmp_path)
    assert [sample.source_id for sample in found.samples] == ["cmyk.jpg", "1x1.png"]
    reasons = dict(found.refused)
    assert "8 bits" in reasons["16bit.png"] and "strip" in reasons["strip.png"]
    assert "more than 100,000,000 pixels" in reasons["huge.gif"]
    assert "decode" in reasons["pickle.jpg"] and "decode" in reasons["empty.jpg"]
