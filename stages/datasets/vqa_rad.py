"""VQA-RAD: clinicians' questions about radiology images.

`vqa_rad/VQA_RAD Dataset Public.json` is a list of rows; images lie in `vqa_rad/VQA_RAD Image Folder/`.
A row in the real format, with made-up values:

    {"qid": 9999, "phrase_type": "test_freeform", "qid_linked_id": "0000", "image_case_url": "NULL",
     "image_name": "synpic1.jpg", "image_organ": "HEAD", "evaluation": "evaluated",
     "question": "Is the antenna bent?", "question_rephrase": "NULL", "question_relation": "NULL",
     "question_frame": "NULL", "question_type": "PRES", "answer": "No", "answer_type": "CLOSED"}

2,248 rows, 315 images. Test is where `phrase_type` starts with `test_`: 451 rows; the other 1,797 are
training. Licence CC0 1.0. Lau et al., "A dataset of clinically generated visual questions and answers
about radiology images", Scientific Data 2018; OSF `89kps`.

Quirks: yes/no in five casings; `answer_type` is no guide to the answer's kind (106 CLOSED rows are not
yes/no, 2 have a trailing blank); 5 answers are JSON integers; one `qid` is a string; tabs in questions and
answers; nulls as the text "NULL"; 202 of 203 test images also occur in training.
"""

from pathlib import Path

from stages.answers import kind_of
from stages.datasets.release import (
    Pictures,
    Release,
    fold,
    load_rows,
    relative,
    require_release,
    require_split,
)
from stages.records import Sample

FOLDERS = ("vqa_rad", "vqa-rad", "VQA_RAD", "VQA-RAD")
FILE = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"
SPLITS = {"train": FILE, "test": FILE}


def read(root: Path, split: str) -> Release:
    """Read one split (`train` or `test`).

    Raises:
        UserError: the release or its file is missing or is not what it should be.
    """
    file = require_split(split, SPLITS, "VQA-RAD")
    folder = require_release(root, FOLDERS, "VQA-RAD")
    release = Release("vqa_rad", split)
    pictures = Pictures(root)
    for number, row in enumerate(load_rows(folder / file), 1):
        if str(row.get("phrase_type", "")).startswith("test_") is not (split == "test"):
            continue
        release.rows += 1
        source_id = str(row.get("qid", f"row{number}"))
        raw_question, raw_answer = row.get("question"), row.get("answer")
        question = "" if raw_question is None else fold(raw_question)
        answer = "" if raw_answer is None else fold(raw_answer)
        name = row.get("image_name")
        if not question or not answer or not name:
            empty = "question" if not question else "answer" if not answer else "image name"
            release.refuse(source_id, f"empty {empty}")
            continue
        image = relative(Path(root), folder / IMAGES) + f"/{name}"
        sha256 = release.admit(source_id, image, pictures)
        if sha256 is None:
            continue
        kind = kind_of(answer, question)
        release.notes["answers_not_text"] += not isinstance(raw_answer, str)
        release.notes["white_space_folded"] += question != raw_question or answer != str(raw_answer)
        release.notes["replacement_characters"] += "\ufffd" in question + answer
        release.notes["closed_not_yes_no"] += (
            str(row.get("answer_type")).strip() == "CLOSED" and kind != "yes_no"
        )
        release.samples.append(
            Sample(
                id=release.new_id(source_id),
                dataset="vqa_rad",
                split=split,
                image=image,
                image_sha256=sha256,
                question=question,
                answers=[answer],
                kind=kind,
                category=str(row.get("question_type", "")).strip(),
                source_id=source_id,
            )
        )
    return release
