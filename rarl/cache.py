"""Keys of resumable work: unfinished or reusable results lie in `.cache/`, named by all that they depend on."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import click
from pydantic import ValidationError

from rarl.records import Prediction, R, Record, atomic_file

CACHE = Path(".cache")


def hash_path(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's file names and bytes (without Python's own caches)."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for item in sorted(path.rglob("*")):
        if item.is_file() and "__pycache__" not in item.parts:
            digest.update(f"{item.relative_to(path).as_posix()}\0{hash_path(item)}\n".encode())
    return digest.hexdigest()


def key_of(*paths: str | Path, **values) -> str:
    """Key of work that depends on the content of `paths` and on `values` (JSON-serialisable)."""
    parts = {"values": values, "paths": [hash_path(path) for path in paths]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def packages() -> dict[str, str]:
    """Versions of the libraries that compute; part of every cache key."""
    names = ("torch", "numpy", "transformers", "trl", "peft", "accelerate")
    return {name: version(name) for name in names}


def finished(path: Path, kind: type[R]) -> list[R]:
    """Records of an earlier, perhaps stopped, run that added them to the file line by line.

    Lines that are no such record, as one that a kill cut off, are dropped from the file: their work is done again.
    """
    found = path.read_bytes() if path.is_file() else b""
    records, whole = [], ""
    for line in found.splitlines():
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError:
            continue
        whole += line.decode() + "\n"
    if whole.encode() != found:
        with atomic_file(path) as file:
            file.write(whole)
    return records


def answered(scratch: Path) -> dict[str, Prediction]:
    """Predictions by id that earlier runs, and other processes in files beside it, have finished.

    Where one failed, such as by an image that could not be opened, and was asked for again, the later one is taken.
    """
    files = sorted(scratch.parent.glob(f"{scratch.stem}*.jsonl"))
    records = [record for path in files for record in finished(path, Prediction)]
    records.sort(key=lambda record: record.error is None)
    return {record.id: record for record in records}


def keep(path: Path, records: list[Record]) -> None:
    """Write records that `kept` reads, closed by a line with their number and hash."""
    lines = [record.model_dump_json() for record in records]
    with atomic_file(path) as file:
        file.writelines(line + "\n" for line in [*lines, _seal(lines)])


def kept(path: Path, kind: type[R]) -> list[R] | None:
    """The records of `keep`, or None. A file that is empty, cut or changed is removed, and the console says so."""
    if not path.is_file():
        return None
    *lines, seal = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    if seal == _seal(lines):
        return [kind.model_validate_json(line) for line in lines]
    click.echo(f"{path}: empty, cut or changed; it is removed and made again")
    path.unlink(missing_ok=True)
    return None


def _seal(lines: list[str]) -> str:
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return json.dumps({"records": len(lines), "sha256": sha256})
