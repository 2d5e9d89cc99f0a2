"""Path-VQA: questions made from the captions of pathology textbooks.

`path_vqa/pvqa_{train,val,test}.json` holds an item per image; images lie in `path_vqa/images/<split>/`. An
item in the real format, with made-up values:

    {"img_id": "test_9999", "labelf": {"pvqa": [{"gears": 1}, {"yes": 1}]},
     "sentf": {"pvqa": ["what is present?", "are the gears round ?"]}}

19,755 / 6,279 / 6,761 rows. Licence: see GitHub `UCSD-AI4H/PathVQA`. He et al., "PathVQA: 30000+ questions
for medical visual question answering", arXiv 2003.10286.

Quirks: CMYK and greyscale JPEGs; blanks around answers and before the question mark; items without a
question; 951 test rows (236 groups of one image and question) have conflicting answers, 3 groups both yes
and no: any answer of its group is accepted for a row. The older release also comes as pickle files, which
are never opened: a pickle runs code.
"""

import re
from collections import defaultdict
from pathlib import Path

from stages.answers import kind_of, normalise
from stages.datasets.release import (
    MissingRelease,
    Pictures,
    Release,
    fold,
    load_rows,
    relative,
    require_release,
    require_split,
)
from stages.records import Sample

FOLDERS = ("path_vqa", "path-vqa", "PathVQA", "pathvqa", "pvqa")
FILES = {"train": "pvqa_train.json", "validate": "pvqa_val.json", "test": "pvqa_test.json"}
IMAGE_FOLDERS = {"train": "train", "validate": "val", "test": "test"}
_BEFORE_MARK = re.compile(r"\s+\?")


def read(root: Path, split: str) -> Release:
    """Read one split (`train`, `validate` or `test`).

    Raises:
        UserError: the release is missing, or only its pickle files are there.
    """
    file = require_split(split, FILES, "Path-VQA")
    folder = require_release(root, FOLDERS, "Path-VQA")
    path = next(iter(sorted(folder.rglob(file))), None)
    pickles = [item for pattern in ("*.pkl", "*.pickle") for item in folder.rglob(pattern)]
    if path is None:
        found = (
            f"no {file}, but {len(pickles)} pickle files, which are not opened"
            if pickles
            else f"no {file}"
        )
        raise MissingRelease(
            str(folder),
            found,
            f"Path-VQA's {split} questions as JSON",
            f"put {file} there (a pickle runs code)",
        )
    release = Release("path_vqa", split)
    release.notes["pickle_files_not_opened"] += len(pickles)
    pictures = Pictures(root)
    usable = []
    for number, item in enumerate(load_rows(path), 1):
        name = fold(item.get("img_id") or "")
        questions = (item.get("sentf") or {}).get("pvqa") or []
        labels = (item.get("labelf") or {}).get("pvqa") or []
        release.notes["images_without_questions"] += not questions
        for k in range(max(len(questions), len(labels))):
            release.rows += 1
            row = f"{name or f'item{number}'}-{k}"
            raw = str(questions[k]) if k < len(questions) else ""
            question = _BEFORE_MARK.sub("?", fold(raw))
            label = labels[k] if k < len(labels) else None
            answers = (
                [fold(answer) for answer in label if fold(answer)]
                if isinstance(label, dict)
                else []
            )
            if not name or not question or not answers:
                empty = "image id" if not name else "question" if not question else "answer"
                release.refuse(row, f"empty {empty}")
                continue
            image = relative(Path(root), _image(folder, path.parent, IMAGE_FOLDERS[split], name))
            sha256 = release.admit(row, image, pictures)
            if sha256 is not None:
                release.notes["white_space_folded"] += question != raw or set(answers) != set(label)
                usable.append((row, image, sha256, question, answers))

    # Keyed by the answer as it is compared, so that a change of case is no conflict.
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for _, _, sha256, question, answers in usable:
        for answer in answers:
            groups[sha256, normalise(question)].setdefault(normalise(answer), answer)
    for row, image, sha256, question, answers in usable:
        group = groups[sha256, normalise(question)]
        release.notes["rows_with_conflicting_answers"] += len(group) > 1
        others = [answer for key, answer in group.items() if key not in map(normalise, answers)]
        release.samples.append(
            Sample(
                id=release.new_id(row),
                dataset="path_vqa",
                split=split,
                image=image,
                image_sha256=sha256,
                question=question,
                answers=[*answers, *others],
                kind=kind_of(answers[0], question),
                modality="pathology",
                source_id=row,
            )
        )
    release.notes["groups_with_conflicting_answers"] += sum(
        len(group) > 1 for group in groups.values()
    )
    release.notes["groups_with_yes_and_no"] += sum(
        {"yes", "no"} <= group.keys() for group in groups.values()
    )
    return release


def _image(folder: Path, beside: Path, split: str, name: str) -> Path:
    """Where the image is; the release's usual place where it is nowhere."""
    usual = folder / "images" / split / f"{name}.jpg"
    places = (
        usual,
        folder / "images" / f"{name}.jpg",
        folder / split / f"{name}.jpg",
        beside / f"{name}.jpg",
    )
    return next((place for place in places if place.is_file()), usual)
