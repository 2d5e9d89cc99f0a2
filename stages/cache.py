"""Keys of resumable work: unfinished or reusable results lie in `.cache/`, named by all that they depend on."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from stages.records import Prediction, R, read_records

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
    """Records of an earlier, perhaps stopped, run; a last line that was cut off is dropped from the file."""
    if not path.is_file():
        return []
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    return read_records(path, kind)


def answered(scratch: Path) -> dict[str, Prediction]:
    """Predictions by id that earlier runs, and other processes in files beside it, have finished."""
    files = sorted(scratch.parent.glob(f"{scratch.stem}*.jsonl"))
    return {record.id: record for path in files for record in finished(path, Prediction)}
