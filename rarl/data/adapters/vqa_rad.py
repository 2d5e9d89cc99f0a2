"""VQA-RAD: clinicians' questions about radiology images.

`vqa_rad/VQA_RAD Dataset Public.json` is a list of rows; images are in `vqa_rad/VQA_RAD Image Folder/`. Both names may
have underscores instead of spaces. A row in the real format, with made-up values:

    {"qid": 9999, "phrase_type": "test_freeform", "qid_linked_id": "0000", "image_case_url": "NULL",
     "image_name": "synpic1.jpg", "image_organ": "HEAD", "evaluation": "evaluated",
     "question": "Is the antenna bent?", "question_rephrase": "NULL", "question_relation": "NULL",
     "question_frame": "NULL", "question_type": "PRES", "answer": "No", "answer_type": "CLOSED"}

Test rows are those whose `phrase_type` starts with `test_`. The hub's form is parquet with image, question, answer.

Quirks: yes/no in five casings; `answer_type` is no guide to the answer's kind (106 CLOSED rows are not
yes/no, 2 have a trailing blank); 5 answers are JSON integers; one `qid` is a string; tabs in questions and
answers; nulls as the text "NULL"; 202 of 203 test images also occur in training.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rarl.answers.exact import kind_of
from rarl.data import hub
from rarl.data.release import Refused, Row, find_file, fold, inside, load_rows, published, require_split

FOLDERS = ("vqa_rad", "vqa-rad", "VQA_RAD", "VQA-RAD")
FILE = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"
DECLARED = published("vqa_rad")


def rows(folder: Path, split: str, notes: Counter) -> Iterator[Row | Refused]:
    """Yield the rows of one split (`train` or `test`)."""
    require_split(split, DECLARED.counts["original"], "VQA-RAD")
    if table := hub.table(folder, split):
        yield from hub.questions(table)
        return
    path = find_file(folder, (FILE, FILE.replace(" ", "_")), "VQA-RAD's questions")
    underscored = path.parent / IMAGES.replace(" ", "_")
    images = (underscored if underscored.is_dir() else path.parent / IMAGES).relative_to(folder).as_posix()
    for number, row in enumerate(load_rows(path, ("image_name", "phrase_type", "question", "answer")), 1):
        if fold(row.get("phrase_type")).startswith("test_") is not (split == "test"):
            continue
        question, answer = row.get("question"), row.get("answer")
        kind = kind_of(fold(answer), fold(question))
        notes["answers_not_text"] += answer is not None and not isinstance(answer, str)
        notes["replacement_characters"] += "\ufffd" in fold(question) + fold(answer)
        notes["closed_not_yes_no"] += fold(row.get("answer_type")) == "CLOSED" and kind != "yes_no"
        yield Row(
            source_id=fold(row.get("qid")),
            image=inside(images, row.get("image_name")),
            question=question,
            answers=[answer],
            category=fold(row.get("question_type")),
            number=number,
        )
