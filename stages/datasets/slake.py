"""SLAKE: medical VQA with English and Chinese questions; here the English ones.

`slake/{train,validate,test}.json` is a list of rows; images lie in `slake/imgs/xmlabN/source.jpg`. A row
in the real format, with made-up values:

    {"img_id": 900, "img_name": "xmlab900/source.jpg", "question": "Is the gizzard healthy?",
     "answer": "Yes", "q_lang": "en", "location": "Abdomen", "modality": "CT", "answer_type": "CLOSED",
     "base_type": "vqa", "content_type": "Abnormality", "triple": ["vhead", "_", "_"], "qid": 99999}

English rows: 4,919 train / 1,053 validate / 1,061 test. Licence CC BY 4.0. Liu et al., "SLAKE: A
semantically-labeled knowledge-enhanced dataset for medical visual question answering", ISBI 2021,
arXiv 2102.09542; Hugging Face `BoKelvin/SLAKE`.

Quirks: Chinese rows share images across splits, so the language filter comes first; one answer is
empty (refused); some rows stand twice; `answer_type` CLOSED also holds choices, whose options stand in
the question; 18 Abnormality answers are the literal text `None`; `location` of a CT may say "Chest_lung", so
the modality is taken from its own field only.
"""

import re
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

FOLDERS = ("slake", "SLAKE", "Slake1.0")
FILES = {"train": "train.json", "validate": "validate.json", "test": "test.json"}
MODALITIES = {"MRI": "mri", "CT": "ct", "X-Ray": "xray"}
#: "Which organ is abnormal, heart or lung?"
_OPTIONS = re.compile(r",\s*([\w -]+?)\s+or\s+([\w -]+?)\s*\?\s*$")


def read(
    root: Path, split: str, content_type: str | None = None, dataset: str = "slake"
) -> Release:
    """Read the English rows of one split, or those of one content type among them.

    Raises:
        UserError: the release or the split's file is missing or is not what it should be.
    """
    file = require_split(split, FILES, "SLAKE")
    folder = require_release(root, FOLDERS, "SLAKE")
    release = Release(dataset, split)
    pictures = Pictures(root)
    seen = set()
    for number, row in enumerate(load_rows(folder / file), 1):
        if row.get("q_lang") != "en":
            release.notes["other_language_rows"] += 1
            continue
        if content_type is not None and row.get("content_type") != content_type:
            release.notes["other_content_rows"] += 1
            continue
        release.rows += 1
        source_id = str(row.get("qid", f"row{number}"))
        question, answer = fold(row.get("question", "")), fold(row.get("answer", ""))
        name = row.get("img_name")
        if not question or not answer or not name:
            empty = "question" if not question else "answer" if not answer else "image name"
            release.refuse(source_id, f"empty {empty}")
            continue
        image = relative(Path(root), folder / "imgs") + f"/{name}"
        sha256 = release.admit(source_id, image, pictures)
        if sha256 is None:
            continue
        if (name, question, answer) in seen:
            release.notes["duplicate_rows"] += 1
        seen.add((name, question, answer))
        kind = kind_of(answer, question)
        options = _OPTIONS.search(question)
        release.samples.append(
            Sample(
                id=release.new_id(source_id),
                dataset=dataset,
                split=split,
                image=image,
                image_sha256=sha256,
                question=question,
                answers=[answer],
                kind=kind,
                choices=[option.strip() for option in options.groups()]
                if options and kind == "choice"
                else [],
                modality=MODALITIES.get(row.get("modality"), "unknown"),
                category=str(row.get("content_type", "")),
                source_id=source_id,
            )
        )
    return release
