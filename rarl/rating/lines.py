"""Appending records to a rater's file: one writer at a time, and whole lines only."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarl.records import Record


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file, whose folder is made; the lock is a file beside it."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", mode=0o600):
        yield


def append(path: Path, record: Record) -> None:
    """Append a record as a line that is on disk (fsync) when this returns; the caller holds the lock.

    A last line that a crash has cut off is removed first, or the new one would be appended to it.

    Raises:
        OSError: the line could not be written whole, as on a full disk. The file is then as it was before.
    """
    whole = path.read_bytes() if path.is_file() else b""
    end, line = whole.rfind(b"\n") + 1, record.model_dump_json().encode() + b"\n"
    with path.open("ab", buffering=0) as file:  # a buffer would be written again when the file is closed
        try:
            file.truncate(end)
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
