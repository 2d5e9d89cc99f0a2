"""Each adapter on a small made-up release that holds the real one's quirks."""

import io
import json

import pytest
from PIL import Image

from stages.datasets import ADAPTERS, cv_bench, path_vqa, silvar_med, slake, vqa_med, vqa_rad
from stages.datasets.release import MissingRelease
from stages.errors import UserError
from stages.params import BENCHMARKS


def put_image(path, colour=(90, 90, 90), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).convert(mode).save(path)


def put_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def accounted(release):
    assert len(release.samples) + len(release.refused) + len(release.missing_images) == release.rows
    ids = [sample.id for sample in release.samples]
    assert len(set(ids)) == len(ids)
    return release


def slake_row(
    qid, question="Is the gizzard healthy?", answer="Yes", image="xmlab1/source.jpg", **changes
):
    row = {
        "img_id": 1, "img_name": image, "question": question, "answer": answer, "q_lang": "en",
        "location": "Chest_lung", "modality": "CT", "answer_type": "CLOSED", "base_type": "vqa",
        "content_type": "Abnormality", "triple": ["vhead", "_", "_"], "qid": qid,
    }  # fmt: skip
    return {**row, **changes}


def test_every_benchmark_has_an_adapter():
    assert set(ADAPTERS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_release_and_a_missing_root_say_what_to_do(tmp_path, name):
    with pytest.raises(MissingRelease, match="expected"):
        ADAPTERS[name].read(tmp_path, "test")
    with pytest.raises(UserError, match=r"data\.root"):
        ADAPTERS[name].read(tmp_path / "nowhere", "test")


def test_slake(tmp_path):
    for number in (1, 2):
        put_image(tmp_path / f"slake/imgs/xmlab{number}/source.jpg", (number, 0, 0))
    (tmp_path / "slake/imgs/xmlab3").mkdir()
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(whole, "JPEG")
    (tmp_path / "slake/imgs/xmlab3/source.jpg").write_bytes(
        whole.getvalue()[: len(whole.getvalue()) // 2]
    )
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
    release = accounted(slake.read(tmp_path, "test"))
    assert (
        release.rows == 10
        and release.notes["other_language_rows"] == 1
        and release.notes["duplicate_rows"] == 1
    )
    assert [row for row, _ in release.refused] == ["2", "7", "9"]
    assert "slake/imgs/xmlab3/source.jpg" in release.refused[1][1]
    assert release.missing_images == [("8", "slake/imgs/xmlab9/source.jpg")]
    by_id = {sample.source_id: sample for sample in release.samples}
    assert by_id["4"].kind == by_id["5"].kind == "choice" and by_id["4"].choices == [
        "gizzard",
        "crop",
    ]
    assert by_id["6"].answers == ["None"] and by_id["6"].kind == "open"
    assert by_id["1"].modality == "ct" and by_id["1"].image == "slake/imgs/xmlab1/source.jpg"
    assert accounted(slake.read(tmp_path, "test", "Plane")).rows == 1


def test_slake_names_a_broken_file(tmp_path):
    put_json(tmp_path / "slake/test.json", {"rows": []})
    with pytest.raises(UserError, match="a list of rows"):
        slake.read(tmp_path, "test")
    (tmp_path / "slake/test.json").write_text('[{"qid": 1},\n oops]', encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        slake.read(tmp_path, "test")
    with pytest.raises(UserError, match="validate"):
        slake.read(tmp_path, "dev")


def test_silvar_med_joins_explanations_by_image_and_question(tmp_path):
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
    assert all(
        sample.reasoning is None for sample in accounted(silvar_med.read(tmp_path, "train")).samples
    )
    explained = [
        {"img_name": "xmlab1.jpg", "question": "Is the crop healthy?", "answer": "First."},
        {"img_name": "xmlab1_1.jpg", "question": "is the gizzard healthy?", "answer": "Second."},
        {
            "img_name": "imgs_train_abnormal/xmlab10.jpg",
            "question": "Is the crop healthy?",
            "answer": "Third.",
        },
        {"img_name": "xmlab10_1.jpg", "question": "Is the crop sore?", "answer": " "},
    ]
    put_json(tmp_path / "silvar-med/Abnormal_Ours/train/rows.json", explained)
    put_image(tmp_path / "silvar-med/Abnormal_Ours/train/imgs_train_abnormal/xmlab1.jpg")
    samples = accounted(silvar_med.read(tmp_path, "train")).samples
    assert [sample.reasoning for sample in samples] == ["First.", "Second.", "Third.", None]
    assert samples[0].id == "silvar_med/train/1"
    put_json(tmp_path / "silvar-med/other.json", [{"image": "xmlab1.jpg"}])
    with pytest.raises(UserError, match="img_name, question, answer"):
        silvar_med.read(tmp_path, "train")


def rad_row(
    qid, answer, question="Is it bent?", phrase="test_para", image="synpic1.jpg", answer_type="OPEN"
):
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
    release = accounted(vqa_rad.read(tmp_path, "test"))
    assert release.rows == 6 and len(release.missing_images) == 1 and len(release.refused) == 1
    assert [sample.answers[0] for sample in release.samples] == ["YES", "4", "Left side", "Both"]
    assert [sample.kind for sample in release.samples] == ["yes_no", "number", "open", "open"]
    assert (
        release.samples[1].question == "How many gears?" and release.samples[0].category == "PRES"
    )
    assert release.notes["answers_not_text"] == 1 and release.notes["closed_not_yes_no"] == 1
    assert accounted(vqa_rad.read(tmp_path, "train")).rows == 1


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
    (folder / "VQAMed2019_Test_Questions_w_Ref_Answers.txt").write_text(
        "\n".join(lines), encoding="utf-8"
    )
    release = accounted(vqa_med.read(tmp_path, "test"))
    assert release.rows == 5 and len(release.refused) == 1 and len(release.missing_images) == 1
    assert [sample.answers for sample in release.samples] == [
        ["gizzard, crop", "crop"],
        ["no"],
        ["(fine) crack (old)", "fine crack old", "crack"],
    ]
    assert release.samples[1].question == "was the scan taken twice?"
    assert [sample.category for sample in release.samples] == ["organ", "modality", "abnormality"]
    train = tmp_path / "vqa-med-2019/Training"
    put_image(train / "Train_images/synpic7.jpg")
    (train / "All_QA_Pairs_train.txt").write_text(
        "synpic7|which plane?|lateral (left)", encoding="utf-8"
    )
    assert accounted(vqa_med.read(tmp_path, "train")).samples[0].answers == ["lateral (left)"]


def test_path_vqa(tmp_path):
    put_image(tmp_path / "path_vqa/images/test/test_1.jpg", mode="CMYK")
    put_image(tmp_path / "path_vqa/images/test/test_2.jpg", mode="L")

    def item(name, questions, answers):
        return {
            "img_id": name,
            "sentf": {"pvqa": questions},
            "labelf": {"pvqa": [{a: 1} for a in answers]},
        }

    items = [
        item("test_0", [], []),
        item(
            "test_1",
            ["what is present?", "what is present ?", "is it round ?"],
            ["gears", " cogs ", "yes"],
        ),
        item("test_1", ["What is present?", "is it round?"], ["Gears", "no"]),
        item("test_2", ["what is present?", "is it round?"], ["gears"]),
        item("test_3", ["is it round?"], ["yes"]),
    ]
    put_json(tmp_path / "path_vqa/pvqa_test.json", items)
    (tmp_path / "path_vqa/qas.pkl").write_bytes(b"not opened")
    release = accounted(path_vqa.read(tmp_path, "test"))
    assert release.rows == 8 and len(release.missing_images) == 1 and len(release.refused) == 1
    answers = [(sample.question, sample.answers) for sample in release.samples]
    assert answers == [
        ("what is present?", ["gears", "cogs"]),
        ("what is present?", ["cogs", "gears"]),
        ("is it round?", ["yes", "no"]),
        ("What is present?", ["Gears", "cogs"]),
        ("is it round?", ["no", "yes"]),
        ("what is present?", ["gears"]),
    ]
    assert (
        release.notes["rows_with_conflicting_answers"] == 5
        and release.notes["groups_with_yes_and_no"] == 1
    )
    assert (
        release.notes["images_without_questions"] == 1
        and release.notes["pickle_files_not_opened"] == 1
    )
    (tmp_path / "path_vqa/pvqa_test.json").unlink()
    with pytest.raises(MissingRelease, match="pickle"):
        path_vqa.read(tmp_path, "test")


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
    release = accounted(cv_bench.read(tmp_path, "test"))
    assert [name for name, _ in release.refused] == ["3", "4"] and len(release.missing_images) == 1
    first, second = release.samples
    assert (
        first.answers == ["3", "(B)"] and first.question == row["prompt"] and first.kind == "choice"
    )
    assert second.answers == ["two", "(A)"] and second.question.endswith("\n(A) two\n(B) 3")
    assert first.category == "Count" and release.notes["annotation_files_missing"] == 1
    (tmp_path / "cv-bench/test_2d.jsonl").write_text('{"idx": 1}\noops', encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        cv_bench.read(tmp_path, "test")
