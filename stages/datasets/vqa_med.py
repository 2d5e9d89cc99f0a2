"""VQA-Med 2019 (ImageCLEF): modality, plane, organ system and abnormality of radiology images.

Text files with `|` between fields, image ids without `.jpg`. Lines in the real format, made up:

    synpic1|what is the antenna made of?|copper                       training and validation
    synpic1|abnormality|what is abnormal in the antenna?|(fine) crack#bend     test

12,792 / 2,000 / 500 rows over 3,200 / 500 / 500 images. Licence CC BY 4.0. Ben Abacha et al., "VQA-Med:
Overview of the medical visual question answering task at ImageCLEF 2019", CLEF 2019; Zenodo 10499039,
GitHub `abachaa/VQA-Med-2019`.

Quirks: in the test file `#` stands between accepted answers (12 rows) and `(...)` is a part that may be
left out (20 rows): both forms are accepted. Training and validation hold typographic apostrophes and
no-break spaces, and no final newline.
"""

import re
from pathlib import Path

from stages.answers import kind_of
from stages.datasets.release import (
    MissingRelease,
    Pictures,
    Release,
    fold,
    relative,
    require_release,
    require_split,
)
from stages.errors import UserError
from stages.records import Sample

FOLDERS = ("vqa_med", "vqa-med", "vqa-med-2019", "vqa_med_2019", "VQA-Med-2019")
FILES = {
    "train": "All_QA_Pairs_train.txt",
    "validate": "All_QA_Pairs_val.txt",
    "test": "VQAMed2019_Test_Questions_w_Ref_Answers.txt",
}
IMAGES = {"train": "Train_images", "validate": "Val_images", "test": "VQAMed2019_Test_Images"}
_BRACKETS = re.compile(r"\s*\([^()]*\)\s*")


def read(root: Path, split: str) -> Release:
    """Read one split (`train`, `validate` or `test`).

    Raises:
        UserError: the release or the split's file is missing or is not UTF-8.
    """
    file = require_split(split, FILES, "VQA-Med")
    folder = require_release(root, FOLDERS, "VQA-Med 2019")
    path = next(iter(sorted(folder.rglob(file))), None)
    if path is None:
        raise MissingRelease(
            str(folder),
            f"no {file} in it",
            f"VQA-Med's {split} file",
            "unpack the release as it comes, without renaming its files",
        )
    release = Release("vqa_med", split)
    pictures = Pictures(root)
    fields = 4 if split == "test" else 3
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            str(path), f"not UTF-8 at byte {error.start}", "UTF-8 text", "download it again"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        release.rows += 1
        parts = [fold(part) for part in line.split("|", fields - 1)]
        if len(parts) < fields or not all(parts):
            release.refuse(f"line {number}", f"not {fields} filled fields with | between")
            continue
        name, question, answer = parts[0], parts[-2], parts[-1]
        category = parts[1] if split == "test" else ""
        image = f"{relative(Path(root), path.parent / IMAGES[split])}/{name}.jpg"
        sha256 = release.admit(f"line {number}", image, pictures)
        if sha256 is None:
            continue
        answers = accepted_answers(answer) if split == "test" else [answer]
        if not answers:
            release.refuse(f"line {number}", "empty answer")
            continue
        release.notes["several_answers"] += split == "test" and "#" in answer
        release.notes["optional_parts"] += split == "test" and "(" in answer
        release.notes["white_space_folded"] += "\u00a0" in line
        release.samples.append(
            Sample(
                id=release.new_id(f"{name}-{number}"),
                dataset="vqa_med",
                split=split,
                image=image,
                image_sha256=sha256,
                question=question,
                answers=answers,
                kind=kind_of(answers[0], question),
                category=category,
                source_id=name,
            )
        )
    return release


def accepted_answers(answer: str) -> list[str]:
    """Every form of a test answer that counts as correct, as its README says.

    >>> accepted_answers("(fine) crack#bend")
    ['(fine) crack', 'fine crack', 'crack', 'bend']
    """
    accepted = []
    for alternative in answer.split("#"):
        spelt_out = alternative.replace("(", "").replace(")", "")
        accepted += [
            fold(form) for form in (alternative, spelt_out, _BRACKETS.sub(" ", alternative))
        ]
    return list(dict.fromkeys(form for form in accepted if form))
