"""Checks of a base's files before its weights are loaded; reads JSON and bytes, without torch."""

import hashlib
import json
from pathlib import Path

from rarl.errors import UserError
from rarl.params import Base

EMBEDDED = Path("data/base")
#: `model_type` of the supported bases, and the family's name.
FAMILIES = {"qwen2_vl": "Qwen2-VL"}


def fingerprint(folder: str | Path) -> str:
    """SHA-256 over `config.json` and all `*.safetensors` of a model folder; a UserError if they are not there."""
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        where, fix = f"base.source = {folder}", "download the model there, or set base.source to `embedded`"
        raise UserError(where, "no config.json with *.safetensors in it", "a folder laid out like the hub's", fix)
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weights]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_family(source: str, config: dict) -> None:
    """Refuse a base that is not in `FAMILIES`: its weights would be dropped and replaced by random ones."""
    if config.get("model_type") not in FAMILIES:
        found = f"a model of type {config.get('model_type')}"
        expected = f"one of {', '.join(FAMILIES)} ({', '.join(FAMILIES.values())})"
        fix = "choose a base of a supported family, e.g. Qwen/Qwen2-VL-2B-Instruct"
        raise UserError(f"base.source = {source}", found, expected, fix)


def base_pointer(base: Base) -> dict:
    """The content of `base.json`: where the base is, its revision, the hash of local weights, which are checked."""
    folder = EMBEDDED if base.source == "embedded" else Path(base.source)
    if not folder.is_dir():
        return {"source": base.source, "revision": base.revision, "sha256": None}
    sha256 = fingerprint(folder)
    check_family(str(folder), json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return {"source": str(folder), "revision": None, "sha256": sha256}
