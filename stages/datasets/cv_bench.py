"""CV-Bench: counting, relation, depth and distance in everyday pictures, multiple choice.

`cv_bench/test_2d.jsonl` and `test_3d.jsonl`, images in `cv_bench/img/`. A line in the real format, with
made-up values:

    {"idx": 9999, "type": "2D", "task": "Count", "question": "How many gears are in the image?",
     "choices": ["3", "2"], "answer": "(B)", "filename": "img/2D/count/x_1.png", "source": "X",
     "prompt": "How many gears are in the image? Select from the following choices.\\n(A) 3\\n(B) 2"}

2,638 rows, test only. Licence Apache-2.0. Tong et al., "Cambrian-1: A fully open, vision-centric exploration
of multimodal LLMs", 2024, arXiv 2406.16860; Hugging Face `nyu-visionx/CV-Bench`.

Quirks: 2 to 6 choices; the gold answer is a letter in brackets; the options stand in `prompt`, so that is
the question asked; `filename` is named from the release's folder or from `img/`; the task comes from its
own column, never from ranges of `idx`.
"""

import re
from pathlib import Path

from stages.answers import kind_of
from stages.datasets.release import (
    MissingRelease,
    Pictures,
    Release,
    load_rows,
    relative,
    require_release,
    require_split,
)
from stages.records import Sample

FOLDERS = ("cv_bench", "cv-bench", "CV-Bench", "CVBench")
FILES = ("test_2d.jsonl", "test_3d.jsonl")
LETTERS = "ABCDEF"
_LETTER = re.compile(r"\(?([A-F])\)?")


def read(root: Path, split: str) -> Release:
    """Read the test rows, 2D first.

    Raises:
        UserError: the release has neither file, or a line is not JSON.
    """
    require_split(split, {"test": FILES[0]}, "CV-Bench")
    folder = require_release(root, FOLDERS, "CV-Bench")
    paths = [folder / name for name in FILES if (folder / name).is_file()]
    if not paths:
        raise MissingRelease(
            str(folder),
            "neither " + " nor ".join(FILES),
            "CV-Bench's raw annotations",
            "download them from its hub page",
        )
    release = Release("cv_bench", split)
    release.notes["annotation_files_missing"] += len(FILES) - len(paths)
    pictures = Pictures(root)
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                release.rows += 1
                row = load_rows(path, line, f"{path}, line {number}")[0]
                _add(release, root, folder, pictures, row, f"{path.stem} line {number}")
    return release


def _add(
    release: Release, root: Path, folder: Path, pictures: Pictures, row: dict, where: str
) -> None:
    source_id = str(row.get("idx", where))
    choices = [str(choice).strip() for choice in row.get("choices") or []]
    letter = _LETTER.fullmatch(str(row.get("answer", "")).strip())
    question = str(row.get("prompt") or "").strip()
    if not question and row.get("question"):
        options = "\n".join(f"({mark}) {choice}" for mark, choice in zip(LETTERS, choices))
        question = f"{str(row['question']).strip()} Select from the following choices.\n{options}"
    index = LETTERS.index(letter.group(1)) if letter else None
    if not question or not row.get("filename"):
        release.refuse(source_id, "empty question" if not question else "empty image name")
    elif not 2 <= len(choices) <= len(LETTERS):
        release.refuse(source_id, f"{len(choices)} choices, not 2 to {len(LETTERS)}")
    elif index is None or index >= len(choices):
        release.refuse(
            source_id, f"the answer {row.get('answer')!r} is none of the {len(choices)} options"
        )
    else:
        direct = folder / str(row["filename"])
        path = (
            direct
            if direct.is_file() or str(row["filename"]).startswith("img/")
            else folder / "img" / row["filename"]
        )
        image = relative(Path(root), path)
        sha256 = release.admit(source_id, image, pictures)
        if sha256 is None:
            return
        answers = [choices[index], f"({LETTERS[index]})"]
        release.samples.append(
            Sample(
                id=release.new_id(source_id),
                dataset="cv_bench",
                split=release.split,
                image=image,
                image_sha256=sha256,
                question=question,
                answers=answers,
                kind=kind_of(answers[0], question, choices),
                choices=choices,
                modality="other",
                category=str(row.get("task", "")),
                source_id=source_id,
            )
        )
