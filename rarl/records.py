"""The three records that flow through the pipeline, and how they are read and written.

A `Sample` is one question about one image. A `Prediction` is a model's completion for it. A `Verdict` is a judge's
rating of that. All are JSON lines in UTF-8, one record per line.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rarl.errors import UserError

Kind = Literal["yes_no", "choice", "number", "open"]
#: Where the stage `infer` writes.
PREDICTIONS = Path("data/predictions")
Modality = Literal["mri", "ct", "xray", "pathology", "other", "unknown"]


class Record(BaseModel):
    """What the records have in common: they are immutable and have no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sample(Record):
    """One question about one image."""

    id: str
    """Unique within the project: `<dataset>/<split>/<source id>`."""
    dataset: str
    split: str
    image: str
    """Path of the image relative to `data.root`, or to the repository if it starts with `data/` (images unpacked from
    a table or from DICOM), with forward slashes."""
    image_sha256: str
    """Hash of the image file's bytes: the same image in two data sets has the same hash."""
    question: str
    answers: list[str]
    """Every accepted reference answer; models are trained on the first. Never empty."""
    reasoning: str | None = None
    """The annotated explanation, or None."""
    kind: Kind
    choices: list[str] = []
    """The options of a multiple-choice question, in order; empty otherwise."""
    modality: Modality = "unknown"
    category: str = ""
    """The release's own category of the question (SLAKE content type, VQA-Med category, CV-Bench task)."""
    origin: str = ""
    """Source of the image, for a release that is scored by source (CV-Bench: ADE20K, COCO, Omni3D)."""
    source_id: str = ""
    """The row's id or number in the release."""


class Prediction(Record):
    """One completion of one model for one sample."""

    id: str
    """The sample's id."""
    completion: str
    think: str | None = None
    """Text of the `<think>` part, or None."""
    answer: str
    """The answer, parsed from the completion; may be empty."""
    tokens: int = 0
    truncated: bool = False
    """Whether the completion reached the token limit without an end token."""
    error: str | None = None
    """Why the model could not be asked (such as an unreadable image); None if it was."""


class Verdict(Record):
    """One judge's rating of one prediction, in the schema of the paper's appendix B."""

    id: str
    """The sample's id."""
    evaluation: str = ""
    """One sentence that justifies the scores."""
    reasoning_score: Literal[0, 1] | None = None
    """None if the sample has no annotated reasoning, or nothing was scored."""
    prediction_score: Literal[0, 1] | None = None
    """None if the judge could not score it; `unscored` has the reason."""
    unscored: str | None = None


R = TypeVar("R", bound=Record)


#: Folder of the repository with the images that were unpacked from a table or from DICOM.
UNPACKED = "data/"


def image_file(root: str | Path, image: str) -> Path:
    """Return the file of a `Sample.image`."""
    return Path(image) if image.startswith(UNPACKED) else Path(root) / image


def predictions_file(model: str, mode: str, test_set: str, folder: Path = PREDICTIONS) -> Path:
    """Return the file of a model's predictions on one test set."""
    return Path(folder, model, mode, f"{test_set}.jsonl")


def verdicts_file(model: str, judge: str, mode: str, test_set: str) -> Path:
    """Return the file of a judge's verdicts on these predictions."""
    return Path("data/verdicts", model, judge, mode, f"{test_set}.jsonl")


def remake(path: str | Path) -> str:
    """Return what to do about an incomplete output of the pipeline.

    A plain `dvc repro` would restore the file from DVC's cache, which may contain the same broken file.
    """
    match Path(path).parts:
        case "data", "predictions", model, *_:
            stage = f"infer@{model}"
        case "data", "verdicts", model, *_:
            stage = f"judge@{model}"
        case "data", "features", records, *_:
            stage = "encode" if records == "training" else "encode_benchmarks"
        case "data", "benchmarks", file:
            stage = f"benchmark@{Path(file).stem}"
        case "data", "curated", *_:
            stage = "curate"
        case "data", "truth.jsonl":
            stage = "truth"
        case _:
            return "delete the file and run the same command again"
    return f"run `dvc repro -s -f {stage}`, which makes it again, then `dvc repro`"


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records as JSON lines, atomically, and return their number."""
    count = 0
    with atomic_file(path) as file:
        for record in records:
            file.write(record.model_dump_json(exclude_defaults=False) + "\n")
            count += 1
    return count


def read_records(path: str | Path, kind: type[R]) -> list[R]:
    """Read a JSON-lines file of one kind of record.

    Raises:
        UserError: the file is missing, or a line, which is named by its number, is not such a record.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            str(path),
            "no such file",
            f"a file of {kind.__name__} records",
            "run `dvc repro`, or `dvc pull` if another machine has made it",
        )
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                records.append(kind.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                raise UserError(
                    f"{path}, line {number}",
                    first["msg"] + "".join(f", {key}" for key in first["loc"]),
                    f"a {kind.__name__} record",
                    remake(path),
                ) from None
    return records


def write_json(path: str | Path, value: object) -> None:
    """Write an indented JSON file, atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` at the end of the block.

    The file is synced to disk before it replaces the old one, so that a power cut leaves either of them complete. Each
    writer has its own temporary file, because two processes may write the same file. If the block raises an error, the
    old file stays; a killed process may leave a `.partial`, which git and DVC ignore.

    Raises:
        OSError: the file, which the error names, cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[TextIO]:
    """Yield a text file to write, which replaces `path` if the block ends without an error; see `atomic_path`."""
    with atomic_path(path) as partial, partial.open("x", encoding="utf-8", newline="\n") as file:
        yield file


def _sync(path: Path) -> None:
    """Sync a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def batches(items: list, size: int) -> Iterator[list]:
    """Split a list into lists of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
