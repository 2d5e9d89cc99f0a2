"""Path-VQA: questions made from the captions of pathology textbooks.

`path_vqa/pvqa_{train,val,test}.json` lists an item per image; images are in `path_vqa/images/<split>/`. The hub's form
is parquet with image, question, answer. An item in the real format, with made-up values:

    {"img_id": "test_9999", "labelf": {"pvqa": [{"gears": 1}, {"yes": 1}]},
     "sentf": {"pvqa": ["what is present?", "are the gears round ?"]}}

Quirks: CMYK and greyscale JPEGs; blanks around answers and before the question mark; items without a question;
conflicting answers to one question: any of them is accepted for a row, its own first. The older release also comes as
pickle files, which are never opened: a pickle runs code.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rarl.answers.spelling import normalise
from rarl.data import hub
from rarl.data.release import MissingRelease, Refused, Row, fold, load_rows, published, require_split

FOLDERS = ("path_vqa", "path-vqa", "PathVQA", "pathvqa", "pvqa")
FILES = {"train": "pvqa_train.json", "validate": "pvqa_val.json", "test": "pvqa_test.json"}
IMAGE_FOLDERS = {"train": "train", "validate": "val", "test": "test"}
DECLARED = published("path_vqa")
_BEFORE_MARK = re.compile(r"\s+\?")


def rows(folder: Path, split: str, notes: Counter) -> Iterator[Row | Refused]:
    """Yield the rows of one split, each with every answer that its image and question have anywhere in it."""
    # Two passes, so that no image of a table is kept in memory: the first collects the accepted answers, keyed as
    # they are compared, so that a change of case is no conflict.
    groups: dict[tuple, dict[str, str]] = defaultdict(dict)
    for row in _rows(folder, split, Counter()):
        if isinstance(row, Row) and isinstance(row.image, str | bytes):
            for answer in filter(normalise, map(fold, row.answers)):
                groups[_group(row)].setdefault(normalise(answer), answer)
    notes["groups_with_conflicting_answers"] += sum(len(group) > 1 for group in groups.values())
    notes["groups_with_yes_and_no"] += sum({"yes", "no"} <= set(group) for group in groups.values())
    for row in _rows(folder, split, notes):
        if isinstance(row, Row) and isinstance(row.image, str | bytes):
            group = groups.get(_group(row), {})
            notes["rows_with_conflicting_answers"] += len(group) > 1
            own = {normalise(fold(answer)) for answer in row.answers}
            others = [answer for plain, answer in group.items() if plain not in own]
            row = replace(row, answers=[*row.answers, *others])
        yield row


def _group(row: Row) -> tuple:
    """Return the key of one image and one question."""
    image = hashlib.sha256(row.image).digest() if isinstance(row.image, bytes) else row.image
    return image, normalise(fold(row.question))


def _rows(folder: Path, split: str, notes: Counter) -> Iterator[Row | Refused]:
    file = require_split(split, FILES, "Path-VQA")
    if table := hub.table(folder, split):
        for row in hub.questions(table):
            row.modality = "pathology"
            row.question = _folded(row.question)
            yield row
        return
    path = _questions(folder, file, split, notes)
    for number, item in enumerate(load_rows(path), 1):
        name = item.get("img_id")
        source_id = fold(name) or f"item{number}"
        questions, labels = _listed(item.get("sentf")), _listed(item.get("labelf"))
        if questions is None or labels is None:
            yield Refused(source_id, "no lists of questions and answers")
            continue
        notes["images_without_questions"] += not questions
        known = isinstance(name, str) and name.strip()
        image = _image(folder, path.parent, IMAGE_FOLDERS[split], name.strip()) if known else name
        for k in range(max(len(questions), len(labels))):
            label = labels[k] if k < len(labels) else None
            yield Row(
                source_id=f"{source_id}-{k}",
                image=image,
                question=_folded(questions[k]) if k < len(questions) else None,
                answers=list(label) if isinstance(label, dict) else [],
                modality="pathology",
                number=number,
            )


def _questions(folder: Path, file: str, split: str, notes: Counter) -> Path:
    """Return the file with the questions; refuse one that exists only as a pickle, or not at all."""
    path = next((path for path in sorted(folder.rglob(file)) if path.is_file()), None)
    pickles = [found for pattern in ("*.pkl", "*.pickle") for found in folder.rglob(pattern)]
    notes["pickle_files_not_opened"] += len(pickles)
    if path is None:
        unopened = f", but {len(pickles)} pickle files, which are not opened" if pickles else ""
        raise MissingRelease(
            str(folder),
            f"no {file}{unopened}",
            f"Path-VQA's {split} questions as JSON or parquet",
            f"put {file} there (a pickle runs code), or `rarl download path_vqa`",
        )
    return path


def _listed(value: object) -> list | None:
    """Return the list in `sentf` or `labelf`, or None if it is malformed."""
    listed = (value or {}).get("pvqa") if isinstance(value or {}, dict) else value
    return listed or [] if isinstance(listed, list | None) else None


def _folded(question: object) -> object:
    """Return a question without the blank before its question mark."""
    return _BEFORE_MARK.sub("?", question) if isinstance(question, str) else question


def _image(folder: Path, beside: Path, split: str, name: str) -> str:
    """Return the image's path below the release's folder, or its usual path if it does not exist."""
    usual = f"images/{split}"
    with suppress(OSError, ValueError):  # not a possible file name
        # The fourth is as its archive unpacks.
        for place in (usual, "images", split, f"pvqa/{usual}", beside.relative_to(folder)):
            if (folder / place / f"{name}.jpg").is_file():
                return Path(place, f"{name}.jpg").as_posix()
    return f"{usual}/{name}.jpg"
