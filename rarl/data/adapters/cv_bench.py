r"""CV-Bench: counting, relation, depth and distance in everyday images, multiple choice.

`cv_bench/test_2d.jsonl` and `test_3d.jsonl`, images in `cv_bench/img/`. A line in the real format (made-up values):

    {"idx": 9999, "type": "2D", "task": "Count", "question": "How many gears are in the image?",
     "choices": ["3", "2"], "answer": "(B)", "filename": "img/2D/count/x_1.png", "source": "X",
     "prompt": "How many gears are in the image? Select from the following choices.\n(A) 3\n(B) 2"}

The hub's form is `test_2d.parquet` and `test_3d.parquet` with the same columns and the image under `image`. If neither
exists, a JSON file with another benchmark's export of some rows is read (SpatialScore's format: `question` with its
options, `answer`, `img_paths`, `index_origin`, `category_origin`).

Quirks: 2 to 6 choices; the gold answer is a letter in brackets; the options are in `prompt`, so that is the question;
`filename` is relative to the release's folder or to `img/`; the task comes from its own column, never from ranges of
`idx`; SpatialScore adds a line of box coordinates, which is cut off.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

from rarl.data import hub
from rarl.data.release import MissingRelease, Refused, Row, fold, load_lines, load_rows, published, require_split

FOLDERS = ("cv_bench", "cv-bench", "CV-Bench", "CVBench")
FILES = ("test_2d.jsonl", "test_3d.jsonl")
#: The record of `rarl download` beside a release.
DOWNLOADED = "download.json"
LETTERS = "ABCDEF"
#: The form of rows in another benchmark: 122 of them, in SpatialScore's hard part.
EXPORT = "export"
DECLARED = published("cv_bench")
_LETTER = re.compile(r"\(?([A-F])\)?")
_OPTION = re.compile(r"^\(([A-F])\)[ \t]*(.*)$", re.MULTILINE)


def rows(folder: Path, split: str, notes: Counter) -> Iterator[Row | Refused]:
    """Yield the test rows, 2D first."""
    require_split(split, {"test": FILES}, "CV-Bench")
    paths = [folder / name for name in FILES if (folder / name).is_file()]
    needs = ("image", "question", "choices", "answer")
    if table := hub.table(folder, split, needs, ("idx", "task", "prompt", "source")):
        for number, row in enumerate(table, 1):
            yield _row(row, f"row{number}", hub.image_of(row["image"]), hub.FORM)
    elif paths:
        notes["annotation_files_missing"] += len(FILES) - len(paths)
        for path in paths:
            for number, row in load_lines(path):
                image = _image(folder, row.get("filename"))
                yield _row(row, f"{path.stem} line {number}", image, "original")
    elif exports := sorted(set(folder.glob("*.json")) - {folder / DOWNLOADED}):
        for number, row in enumerate((row for path in exports for row in load_rows(path)), 1):
            if row.get("source") != "cvbench":
                notes["other_benchmarks_rows"] += 1
                continue
            notes["rows_from_an_export"] += 1
            yield _exported(row, f"row{number}", notes)
    else:
        raise MissingRelease(
            str(folder),
            f"neither {' nor '.join(FILES)}, and no parquet file of the test split",
            "CV-Bench's annotations",
            "get them with `rarl download cv_bench`",
        )


def multiple_choice(
    source_id: str, image: object, question: str, choices: object, gold: object, **more
) -> Row | Refused:
    """Return a row whose answer is one of 2 to 6 options, accepted as its text or as its letter.

    Args:
        source_id: The row's id.
        image: As in `Row.image`.
        question: Includes the options.
        choices: The texts of the options.
        gold: "(A)" to "(F)"; anything else is refused.
        **more: Further fields of `Row`.
    """
    form = more.get("form", "original")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        count = len(choices) if isinstance(choices, list) else "no"
        return Refused(source_id, f"{count} choices, not 2 to {len(LETTERS)}", form)
    options = [fold(choice) for choice in choices]
    if not all(options):
        return Refused(source_id, "an empty choice", form)
    letter = _LETTER.fullmatch(gold.strip()) if isinstance(gold, str) else None
    index = LETTERS.index(letter.group(1)) if letter else len(options)
    if index >= len(options):
        reason = f"the answer {fold(gold)[:80]!r} is none of the {len(options)} options"
        return Refused(source_id, reason, form)
    answers = [options[index], f"({LETTERS[index]})"]
    return Row(source_id, image, question, answers, choices=options, modality="other", **more)


def with_options(question: str, choices: list) -> str:
    r"""Return a question as CV-Bench asks it.

    >>> with_options("How many?", ["3", "2"])
    'How many? Select from the following choices.\n(A) 3\n(B) 2'
    """
    options = "\n".join(f"({letter}) {fold(choice)}" for letter, choice in zip(ascii_uppercase, choices))
    return f"{question.strip()} Select from the following choices.\n{options}"


def _row(row: dict, where: str, image: object, form: str) -> Row | Refused:
    question, choices = row.get("prompt"), row.get("choices")
    if not fold(question) and fold(row.get("question")) and isinstance(choices, list):
        question = with_options(fold(row["question"]), choices)
    return multiple_choice(
        fold(row.get("idx")) or where,
        image,
        question,
        choices,
        row.get("answer"),
        category=fold(row.get("task")),
        origin=fold(row.get("source")),
        form=form,
    )


def _exported(row: dict, where: str, notes: Counter) -> Row | Refused:
    question = fold(row.get("question"))
    options = list(_OPTION.finditer(question))
    if options and (added := question[options[-1].end() :]):
        notes["lines_added_by_the_export"] += 1
        question = question.removesuffix(added)
    paths = row.get("img_paths")
    image = paths[0] if isinstance(paths, list) and len(paths) == 1 else None
    return multiple_choice(
        fold(row.get("index_origin")) or where,
        image.rpartition("CV-Bench/")[2] if isinstance(image, str) else image,
        question,
        [option.group(2) for option in options],
        row.get("answer"),
        category=fold(row.get("category_origin")),
        form=EXPORT,
    )


def _image(folder: Path, name: object) -> object:
    """Return `filename` relative to the release's folder; it may be relative to `img/` in it."""
    if not isinstance(name, str) or not name or name.startswith("img/"):
        return name
    try:
        return name if (folder / name).is_file() else f"img/{name}"
    except (OSError, ValueError):  # not a possible file name
        return name
