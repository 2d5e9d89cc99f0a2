"""The Hugging Face hub's form of a release: parquet files, or a folder that `save_to_disk` wrote.

`hf download <repository> --repo-type dataset --local-dir data/raw/<name>` puts parquet files into the folder or its
`data/`, named `<split>-00000-of-00001....parquet`, with the split somewhere in the name (`SAT_val.parquet`,
`test_2d.parquet`), or below a folder named after it. `load_dataset(...).save_to_disk(...)` writes
`<split>/data-00000-of-00001.arrow`. Images are bytes in the table. Tables are read in batches, because a training
split can be larger than the memory.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rarl.data.release import Row, fold
from rarl.errors import UserError

FORM = "hub"
#: Names of a split in file names.
SPELLINGS = {
    "train": ("train", "training"),
    "validate": ("validation", "validate", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
BATCH = 256


@dataclass
class Table:
    """The files of one split, in order.

    Attributes:
        files: Parquet or arrow files.
        wanted: The columns to read; those that a file lacks are None in its rows.
    """

    files: list[Path]
    wanted: tuple[str, ...]

    def batches(self) -> Iterator:
        """Yield (file, `pyarrow.RecordBatch` of at most a few hundred rows), in order."""
        for path in self.files:
            with _readable(path):
                yield from ((path, batch) for batch in _open(path, self.wanted)[1])

    def rows_of(self, path: Path, batch) -> list[dict]:
        """Return a batch of a file as dictionaries; a missing column is None.

        Raises:
            UserError: A cell cannot be read.
        """
        none = dict.fromkeys(self.wanted)
        with _readable(path):
            return [{**none, **row} for row in batch.to_pylist()]

    def __iter__(self) -> Iterator[dict]:
        for path, batch in self.batches():
            yield from self.rows_of(path, batch)


def table(
    folder: Path,
    split: str | None,
    needs: tuple[str, ...] = ("image", "question", "answer"),
    optional: tuple[str, ...] = (),
) -> Table | None:
    """Return the table of a split, or None if the release's folder does not have it in the hub's form.

    Args:
        folder: The release's folder.
        split: train, validate, test or a name of the release's own; None: every table, whatever its name.
        needs: Columns that every file must have.
        optional: Columns that are read if they exist.

    Raises:
        UserError: A file is not a parquet or arrow file, or lacks a column.
    """
    names = SPELLINGS.get(split, (split,))
    files = [
        path
        for pattern, split_of in (("*.parquet", _split_of_parquet), ("*.arrow", _split_of_arrow))
        for path in sorted(folder.rglob(pattern))
        if split is None or set(split_of(path)) & set(names)
    ]
    # If both exist, one is a copy of the other: the rows must not be read twice.
    files = [path for path in files if path.suffix == ".parquet"] or files
    for path in files:
        columns = _open(path, ())[0]
        if missing := [column for column in needs if column not in columns]:
            raise UserError(
                str(path),
                f"no column {', '.join(missing)} (there: {', '.join(columns)})",
                f"the columns {', '.join(needs)}",
                "use the data set's own files, or move others out of the folder",
            )
    return Table(files, (*needs, *optional)) if files else None


def _split_of_parquet(path: Path) -> list[str]:
    """Return the words of the file's name, and the folder's if the name has no split (`test/0000.parquet`)."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    known = {name for names in SPELLINGS.values() for name in names}
    return words if known & set(words) else [*words, path.parent.name.lower()]


def _split_of_arrow(path: Path) -> list[str]:
    """Return the folder's name, and the split that `save_to_disk` noted if a single split was saved."""
    try:
        state = json.loads((path.parent / "state.json").read_text(encoding="utf-8"))
        noted = str(state.get("_split") or "")
    except (OSError, ValueError, AttributeError, RecursionError):
        noted = ""
    return [path.parent.name.lower(), noted.lower()]


def _open(path: Path, wanted: tuple[str, ...]):
    """Return (names of the columns, record batches with the wanted ones) of a parquet or arrow file."""
    import pyarrow
    import pyarrow.parquet

    with _readable(path):
        if path.suffix == ".parquet":
            file = pyarrow.parquet.ParquetFile(path)
            names = file.schema_arrow.names
            return names, file.iter_batches(batch_size=BATCH, columns=[name for name in names if name in wanted])
        stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        columns = [name for name in stream.schema.names if name in wanted]
        return stream.schema.names, (batch.select(columns) for batch in stream)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn anything that pyarrow raises on damaged bytes into one error."""
    try:
        yield
    except Exception as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(str(path), first, f"a complete {path.suffix[1:]} file", "download it again") from None


def image_of(value: object) -> object:
    """Return a cell of an image column as `Row.image` takes it: its bytes if there are any, else the path."""
    if isinstance(value, dict):
        data = value.get("bytes")
        return data if data is not None else value.get("path")
    return value


def questions(rows: Table) -> Iterator[Row]:
    """Yield the rows of a table with the columns `image`, `question`, `answer` and perhaps `category`."""
    for number, cells in enumerate(rows, 1):
        yield Row(
            source_id=f"row{number}",
            image=image_of(cells["image"]),
            question=cells["question"],
            answers=[cells["answer"]],
            category=fold(cells.get("category")),
            number=number,
            form=FORM,
        )
