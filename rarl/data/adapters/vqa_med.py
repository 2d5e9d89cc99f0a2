"""VQA-Med 2019 (ImageCLEF): modality, plane, organ system and abnormality of radiology images.

Text files with `|` between fields, image ids without `.jpg`. Lines in the real format, made up:

    synpic1|what is the antenna made of?|copper                       training and validation
    synpic1|abnormality|what is abnormal in the antenna?|(fine) crack#bend     test

It is not officially on the hub: parquet copies with the columns image, question, answer and optionally category are
read, and no counts are declared for them.

Quirks: in the test file `#` separates accepted answers (12 rows) and `(...)` is optional (20 rows): both forms are
accepted. Training and validation contain typographic apostrophes and no-break spaces, and no final newline.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rarl.answers.spelling import normalise
from rarl.data import hub
from rarl.data.release import Refused, Row, find_file, fold, inside, published, read_text, require_split

FOLDERS = ("vqa_med", "vqa-med", "vqa-med-2019", "vqa_med_2019", "VQA-Med-2019")
FILES = {
    "train": "All_QA_Pairs_train.txt",
    "validate": "All_QA_Pairs_val.txt",
    "test": "VQAMed2019_Test_Questions_w_Ref_Answers.txt",
}
IMAGES = {"train": "Train_images", "validate": "Val_images", "test": "VQAMed2019_Test_Images"}
DECLARED = published("vqa_med")
_BRACKETS = re.compile(r"\s*\([^()]*\)\s*")


def rows(folder: Path, split: str, notes: Counter) -> Iterator[Row | Refused]:
    """Yield the rows of one split (`train`, `validate` or `test`)."""
    file = require_split(split, FILES, "VQA-Med")
    if table := hub.table(folder, split, optional=("category",)):
        yield from (_accepting(row, split, notes) for row in hub.questions(table))
        return
    path = find_file(folder, (file,), f"VQA-Med's {split} file")
    images = (path.parent / IMAGES[split]).relative_to(folder).as_posix()
    fields = 4 if split == "test" else 3
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("|", fields - 1)]
        if len(parts) < fields or not all(parts):
            yield Refused(f"line {number}", f"not {fields} filled fields with | between")
            continue
        row = Row(
            source_id=f"{parts[0]}-{number}",
            image=inside(images, f"{parts[0]}.jpg"),
            question=parts[-2],
            answers=[parts[-1]],
            category=fold(parts[1]) if split == "test" else "",
            number=number,
        )
        yield _accepting(row, split, notes)


def _accepting(row: Row, split: str, notes: Counter) -> Row:
    """Return the row with every accepted form of its answer."""
    answer = row.answers[0]
    if split == "test" and isinstance(answer, str):
        notes["several_answers"] += "#" in answer
        notes["optional_parts"] += "(" in answer
        row.answers = accepted_answers(answer)
    return row


def accepted_answers(answer: str) -> list[str]:
    """Return every form of a test answer that counts as correct according to its README.

    >>> accepted_answers("(fine) crack#bend")
    ['(fine) crack', 'fine crack', 'crack', 'bend']
    """
    accepted = []
    for alternative in answer.split("#"):
        spelt_out = alternative.replace("(", "").replace(")", "")
        accepted += [fold(form) for form in (alternative, spelt_out, _BRACKETS.sub(" ", alternative))]
    return list(dict.fromkeys(form for form in accepted if normalise(form)))
