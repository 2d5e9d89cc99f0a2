"""Keys of resumable work: unfinished and reusable results are kept in `.cache/`, named by all that they depend on."""

import ast
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import click
from pydantic import ValidationError
from ruamel.yaml import YAML

from rarl.params import Params
from rarl.records import Prediction, R, Record, atomic_file

CACHE = Path(".cache")
ROOT = Path(__file__).parents[1]
#: What runs on CUDA devices only: no dependency in dvc.yaml, and in no key of a run on the CPU.
CUDA_ONLY = ("rarl/models/shared_prefix/cuda_graph.py",)


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


class _WithoutTexts(ast.NodeTransformer):
    def visit_Expr(self, node):
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


def hash_code(source: str) -> str:
    """SHA-256 of what Python code does: comments, docstrings and formatting do not count.

    >>> hash_code("x = 1  # one") == hash_code("'Numbers.'; x = (1)")
    True
    """
    return hashlib.sha256(ast.dump(_WithoutTexts().visit(ast.parse(source))).encode()).hexdigest()


def code_key(stage: str, device: str) -> dict[str, str]:
    """Hashes of the Python and YAML files of the library in a stage's `deps`; on the CPU without `CUDA_ONLY`."""
    pipeline = ROOT / "dvc.yaml"  # an installed package has none
    deps = YAML(typ="safe").load(pipeline)["stages"][stage]["deps"] if pipeline.is_file() else ["rarl/"]
    code = [ROOT / dep for dep in (*deps, *CUDA_ONLY) if dep.startswith("rarl/")]
    files = [file for path in code for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    names = {file.relative_to(ROOT).as_posix(): file for file in files if file.suffix in (".py", ".yaml")}
    return {
        name: hash_code(file.read_text(encoding="utf-8")) if file.suffix == ".py" else hash_path(file)
        for name, file in names.items()
        if device != "cpu" or name not in CUDA_ONLY
    }


def key_of(*paths: str | Path, **values) -> str:
    """Key of work that depends on the content of `paths` and on `values` (JSON-serialisable)."""
    parts = {"values": values, "paths": [hash_path(path) for path in paths]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def packages(params: Params | None = None) -> dict[str, str]:
    """Library versions; part of every cache key."""
    names = ["torch", "numpy", "transformers", "trl", "peft", "accelerate"]
    names += ["bitsandbytes"] if params and params.bitsandbytes else []
    return {name: version(name) for name in names}


def announce_format() -> None:
    """Log once which results of versions before 0.2.0 are not used, and why."""
    mark = CACHE / "format"
    if mark.is_file():
        return
    if old := [f"{folder}/" for folder in (CACHE / "training", CACHE / "predictions") if folder.is_dir()]:
        why = "made by a version before 0.2.0, whose keys counted comments in the code too; not used"
        click.echo(f"{' and '.join(old)}: {why}. `make clean-cache` deletes it, and no response that was paid for")
    with atomic_file(mark) as file:
        file.write("2\n")


def finished(path: Path, kind: type[R]) -> list[R]:
    """Records of an earlier, perhaps stopped, run that appended them line by line.

    Lines that are no such record, such as one that a kill cut off, are dropped from the file: their work is repeated.
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
    """Predictions by id that earlier runs have finished, and other processes in files beside `scratch`.

    Where one failed, for example because an image could not be opened, a later one that did not is taken.
    """
    files = sorted(scratch.parent.glob(f"{scratch.stem}*.jsonl"))
    records = [record for path in files for record in finished(path, Prediction)]
    return {record.id: record for record in sorted(records, key=lambda record: record.error is None)}


def keep(path: Path, records: list[Record]) -> None:
    """Write records that `kept` reads, closed by a line with their number and hash."""
    lines = [record.model_dump_json() for record in records]
    with atomic_file(path) as file:
        file.writelines(line + "\n" for line in [*lines, _seal(lines)])


def kept(path: Path, kind: type[R]) -> list[R] | None:
    """The records of `keep`, or None. A file that is empty, cut or changed is deleted, which is logged."""
    if not path.is_file():
        return None
    *lines, seal = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    if seal == _seal(lines):
        return [kind.model_validate_json(line) for line in lines]
    click.echo(f"{path}: empty, cut or changed; it is deleted and made again")
    path.unlink(missing_ok=True)
    return None


def _seal(lines: list[str]) -> str:
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return json.dumps({"records": len(lines), "sha256": sha256})
