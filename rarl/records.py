"""The three records that flow through the pipeline, and their reading and writing.

A `Sample` is one question about one image. A `Prediction` is what a model said to it. A `Verdict`
is what a judge thinks of that. All are written as JSON lines, one record a line, in UTF-8.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rarl.errors import UserError

Kind = Literal["yes_no", "choice", "number", "open"]
Modality = Literal["mri", "ct", "xray", "pathology", "other", "unknown"]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sample(Record):
    """One question about one image."""

    id: str
    """Unique within the project: `<dataset>/<split>/<source id>`."""
    dataset: str
    split: str
    image: str
    """Path of the image relative to `data.root`, or to the repository where it starts with `data/` (pictures that were
    unpacked from a table or from DICOM), with forward slashes."""
    image_sha256: str
    """Hash of the image file's bytes: the same picture in two data sets has the same hash."""
    question: str
    answers: list[str]
    """Every accepted reference answer; the first is the one to train on. Never empty."""
    reasoning: str | None = None
    """The annotated explanation, or None where nobody wrote one."""
    kind: Kind
    choices: list[str] = []
    """The options of a multiple-choice question, in order; empty otherwise."""
    modality: Modality = "unknown"
    category: str = ""
    """The release's own category of the question (SLAKE content type, VQA-Med category, CV-Bench task)."""
    origin: str = ""
    """Where the picture was taken from, when a release is scored by it (CV-Bench: ADE20K, COCO, Omni3D)."""
    source_id: str = ""
    """The row's id or number in the release."""


class Prediction(Record):
    """One completion of one model for one sample."""

    id: str
    """The sample's id."""
    completion: str
    think: str | None = None
    """Text of the `<think>` part, None where there is none."""
    answer: str
    """The answer as read from the completion; may be empty."""
    tokens: int = 0
    truncated: bool = False
    """The completion reached the token limit without an end."""
    error: str | None = None
    """Why the machinery could not ask the model (image unreadable); None when it did."""


class Verdict(Record):
    """What one judge says of one prediction, in the schema of the paper's appendix B."""

    id: str
    """The sample's id."""
    evaluation: str = ""
    """One sentence that justifies the scores."""
    reasoning_score: Literal[0, 1] | None = None
    """None where the sample has no annotated reasoning, or nothing was scored."""
    prediction_score: Literal[0, 1] | None = None
    """None where the judge could not score: then `unscored` says why."""
    unscored: str | None = None


R = TypeVar("R", bound=Record)


#: Pictures that were unpacked from a table or from DICOM lie below this folder of the repository.
UNPACKED = "data/"


def image_file(root: str | Path, image: str) -> Path:
    """The file of a `Sample.image`."""
    return Path(image) if image.startswith(UNPACKED) else Path(root) / image


def predictions_file(model: str, mode: str, test_set: str) -> Path:
    return Path("data/predictions", model, mode, f"{test_set}.jsonl")


def verdicts_file(model: str, judge: str, mode: str, test_set: str) -> Path:
    return Path("data/verdicts", model, judge, mode, f"{test_set}.jsonl")


def remake(path: str | Path) -> str:
    """The advice for an output of the pipeline that is not whole.

    A plain `dvc repro` would restore the file from DVC's cache, where it may have been kept as broken as it is.
    """
    match Path(path).parts:
        case "data", "predictions", model, *_:
            stage = f"infer@{model}"
        case "data", "verdicts", model, judge, *_:
            stage = f"judge@{judge}-{model}"
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
    """Write records as JSON lines; the file appears whole or not at all. Returns how many."""
    count = 0
    with atomic_file(path) as file:
        for record in records:
            file.write(record.model_dump_json(exclude_defaults=False) + "\n")
            count += 1
    return count


def read_records(path: str | Path, kind: type[R]) -> list[R]:
    """Read a JSON-lines file of one kind of record.

    Raises:
        UserError: the file is missing or a line is not such a record (named with its number).
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
    """Write a JSON file with sorted, stable formatting; it appears whole or not at all."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Path of a temporary file, to be written in the block, that then takes the place of `path`.

    The file is on the disk (fsync) before it takes its place: after a power cut the old file is there, or the new one.
    Each writer has a temporary file of its own, as two processes may write the same file. A block that ends with an
    error leaves the old file; a process that is killed may leave a `.partial`, which git and DVC ignore.

    Raises:
        OSError: the file cannot be written; it names the file.
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
    """A text file for writing that takes its place only when the block ends without an error; see `atomic_path`."""
    with atomic_path(path) as partial, partial.open("x", encoding="utf-8", newline="\n") as file:
        yield file


def _sync(path: Path) -> None:
    """Put a file's content, or the entries of a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A GitHub table.

    >>> print(markdown_table(["set", "n"], [["slake", "70"]]))
    | set | n |
    | --- | --- |
    | slake | 70 |
    """
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))
