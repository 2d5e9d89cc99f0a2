"""Silvar-Med, the training set: SLAKE's English Abnormality rows, with physicians' explanations if there.

The paper's 716 training and 150 test rows are the English rows of SLAKE's `train.json` and `test.json`
whose `content_type` is `Abnormality`; the 132 of `validate.json` serve for development. What Silvar-Med
adds is the explanations. Where a user has them, they lie as JSON files anywhere below
`silvar_med/`; a row in the authors' format, with made-up values:

    {"img_name": "xmlab900_2.jpg", "question": "Is the gizzard healthy?",
     "answer": "The gizzard is evenly bright. No lesion is seen, so it is healthy."}

`xmlabN.jpg` is the copy of an image for its first question, `xmlabN_k.jpg` for its k-th further one;
the copies are not needed: rows are joined by the image's number and the question's text.

Pham et al., "Silvar-Med: A speech-driven visual language model for explainable abnormality detection in
medical imaging", CVPR Workshops 2025; Hugging Face `Hanhpt23/Silvar-Med`. Licence: see there; SLAKE's
is CC BY 4.0.
"""

import re
from pathlib import Path

from stages.answers import normalise
from stages.datasets import slake
from stages.datasets.release import Release, find_release, fold, load_rows
from stages.errors import UserError
from stages.params import OWN_TEST

FOLDERS = ("silvar_med", "silvar-med", "Silvar-Med")
_COPY = re.compile(r"(.+?)(?:_\d+)?$")


def read(root: Path, split: str) -> Release:
    """Read the Abnormality rows of one SLAKE split, each with its explanation where there is one.

    Raises:
        UserError: SLAKE is missing, or an explanation file is not in the authors' format.
    """
    release = slake.read(root, split, content_type="Abnormality", dataset=OWN_TEST)
    found = explanations(root)
    release.samples = [
        sample.model_copy(update={"reasoning": found.get(_key(sample.image, sample.question))})
        for sample in release.samples
    ]
    return release


def explanations(root: Path) -> dict[tuple[str, str], str]:
    """(image, question) to explanation, from every JSON file of the release; empty without it."""
    folder = find_release(root, FOLDERS)
    found: dict[tuple[str, str], str] = {}
    for path in sorted(folder.rglob("*.json")) if folder else []:
        for number, row in enumerate(load_rows(path), 1):
            missing = [key for key in ("img_name", "question", "answer") if key not in row]
            if missing:
                raise UserError(
                    f"{path}, row {number}",
                    f"no {', '.join(missing)}",
                    "rows with img_name, question and answer",
                    "take the authors' own files, or move other JSON files out of this folder",
                )
            text = fold(row["answer"])
            if text:
                found.setdefault(_key(str(row["img_name"]), str(row["question"])), text)
    return found


def _key(image: str, question: str) -> tuple[str, str]:
    path = Path(image)
    name = path.parent.name if path.stem == "source" else _COPY.match(path.stem).group(1)
    return name, normalise(question)
