"""SLAKE: medical VQA with English and Chinese questions; here the English ones.

`slake/{train,validate,test}.json` is a list of rows; images are in `slake/imgs/xmlabN/source.jpg`. A row
in the real format, with made-up values:

    {"img_id": 900, "img_name": "xmlab900/source.jpg", "question": "Is the gizzard healthy?",
     "answer": "Yes", "q_lang": "en", "location": "Abdomen", "modality": "CT", "answer_type": "CLOSED",
     "base_type": "vqa", "content_type": "Abnormality", "triple": ["vhead", "_", "_"], "qid": 99999}

The hub's form is the same JSON with `validation.json` and the images in `imgs.zip`, which must be unpacked beside it.
Parquet copies with the columns `image, question, answer` are read too. `q_lang` may be missing, as in copies of the
English rows only: rows are then Chinese if their question has a Chinese character, as in every row of the release.

Quirks: Chinese rows share images across splits, so the language filter comes first; one answer is empty (refused);
some rows are duplicates; `answer_type` CLOSED includes choices, whose options are in the question; 18 Abnormality
answers are the literal text `None`; `location` of a CT may be "Chest_lung", so the modality is read from its own field
only.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rarl.answers.exact import kind_of
from rarl.data import hub
from rarl.data.release import Refused, Row, find_file, fold, inside, load_rows, published, require_split
from rarl.errors import UserError

FOLDERS = ("slake", "SLAKE", "Slake1.0", "BoKelvin___slake")
#: `validation.json` is the hub's name of it.
FILES = {"train": ("train.json",), "validate": ("validate.json", "validation.json"), "test": ("test.json",)}
MODALITIES = {"MRI": "mri", "CT": "ct", "X-Ray": "xray"}
DECLARED = published("slake")
_CHINESE = re.compile("[\u3400-\u9fff]")
#: ", heart, liver or lung?": names of up to three words, with commas between and "or" before the last.
_NAME = r"(?!(?:which|what|where|who|is|are|does|do|in|on)\b)[\w-]+(?: [\w-]+){0,2}?"
_OPTIONS = re.compile(rf",\s*({_NAME}(?:\s*,\s*{_NAME})*?)\s*,?\s+or\s+({_NAME})\s*\?\s*$", re.IGNORECASE)


def rows(folder: Path, split: str, notes: Counter, content_type: str | None = None) -> Iterator[Row | Refused]:
    """Yield the English rows of one split, or those of one content type among them."""
    needs = ("question", "answer", *(() if content_type is None else ("content_type",)))
    for number, row in enumerate(_all_rows(folder, split, needs), 1):
        language = row.get("q_lang")
        if language is None:
            notes["rows_without_q_lang"] += 1
            language = "zh" if _CHINESE.search(fold(row.get("question"))) else "en"
        if language != "en":
            notes["other_language_rows"] += 1
            continue
        if content_type is not None and row.get("content_type") != content_type:
            notes["other_content_rows"] += 1
            continue
        question = fold(row.get("question"))
        answer = fold(row.get("answer"))
        choices = options_in(question) if kind_of(answer, question) == "choice" else []
        yield Row(
            source_id=fold(row.get("qid")),
            image=row["image"],
            question=row.get("question"),
            answers=[row.get("answer")],
            modality=MODALITIES.get(fold(row.get("modality")), "unknown"),
            category=fold(row.get("content_type")),
            choices=choices,
            number=number,
            form=row["form"],
        )


def _all_rows(folder: Path, split: str, needs: tuple[str, ...]) -> Iterator[dict]:
    """Yield the rows in every language, each with its image under `image`."""
    names = require_split(split, FILES, "SLAKE")
    if table := hub.table(folder, split, ("image", *needs), ("q_lang", "content_type", "modality", "qid")):
        for cells in table:
            yield {**cells, "image": hub.image_of(cells["image"]), "form": hub.FORM}
        return
    path = find_file(folder, names, f"SLAKE's {split} questions")
    images = (path.parent / _images(path.parent)).relative_to(folder).as_posix()
    for row in load_rows(path, ("img_name", *needs)):
        yield {**row, "image": inside(images, row.get("img_name")), "form": "original"}


def _images(folder: Path) -> str:
    """Return the images' folder, `imgs/` or one nested by an unpacked archive; refuse an archive that is packed."""
    for place in ("imgs", "imgs/imgs"):
        if any((folder / place).glob("xmlab*")):
            return place
    if (folder / "imgs.zip").is_file():
        raise UserError(
            str(folder / "imgs.zip"),
            "an archive that was not unpacked, and no folder imgs/ beside it",
            "imgs/xmlabN/source.jpg",
            "run `rarl download slake`, which unpacks it, or unpack it there",
        )
    return "imgs"


def options_in(question: str) -> list[str]:
    """Return the alternatives at the end of a question; empty if it names none.

    >>> options_in("In the image, which is bigger, gizzard, crop or gear box?")
    ['gizzard', 'crop', 'gear box']
    """
    found = _OPTIONS.search(question)
    if found is None:
        return []
    return [part.strip() for part in found.group(1).split(",")] + [found.group(2).strip()]
