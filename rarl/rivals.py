"""Rivals: models of others, which are asked and compared, and never trained (docs/rivals.md).

A rival's folder `data/models/<slug>/` has `rival.json`, how it is asked and read. With weights it is a model folder as
the trained ones are: `base.json`, a pointer to the weights, and the adapter's files if it is an adapter.
"""

import shutil
from contextlib import contextmanager
from pathlib import Path

from rarl.chat.remote import Remote, Role
from rarl.errors import UserError
from rarl.models.base_files import EMBEDDED, base_pointer, cached_config, check_download, check_place
from rarl.params import Base, Rival
from rarl.records import read_json, write_json

FILE = "rival.json"
#: What of a rival's definition decides its predictions, beside its weights.
ASKED = {"base_url", "model", "temperature", "modes", "prompt", "reads", "max_tokens"}
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")

ROLE = Role(
    block="rival",
    listed="models",
    task="answer",
    unit="questions",
    sends="the image and the text of {whose}; no reference answer, no file name, no id, no metadata of the image's "
    "file. What image and question themselves show of a patient is sent unchanged.",
    read="images and questions",
    instead="a rival on your own machine (`source`, or a server of your own)",
)


def check(slug: str, rival: Rival) -> None:
    """Check what a listed rival needs before an hour of work. Sends and loads nothing.

    Raises:
        UserError: the source is unknown, a revision is no commit, the adapter is of another base, or the endpoint may
            not be asked.
    """
    if rival.base_url is not None:
        Remote(ROLE, slug, rival).check()
        return
    check_place(f"rival.{slug}.source", rival.source, f"rival.{slug}.revision", rival.revision)
    with named(slug):
        pointer = base_pointer(Base(source=rival.source, revision=rival.revision))
    if rival.adapter is not None:
        check_place(f"rival.{slug}.adapter", rival.adapter, f"rival.{slug}.adapter_revision", rival.adapter_revision)
        if Path(rival.adapter).is_dir():
            check_adapter(slug, rival, Path(rival.adapter), pointer)
    if pointer["revision"]:
        with named(slug):
            cached_config(rival.source, rival.revision) or check_download(rival.source, rival.revision)


def check_adapter(slug: str, rival: Rival, folder: Path, pointer: dict) -> None:
    """Refuse an adapter that lacks its files or was trained on another base than that of `pointer`."""
    where, source = f"rival.{slug}.adapter = {rival.adapter}", rival.source
    if missing := [name for name in ADAPTER if not (folder / name).is_file()]:
        expected = f"a PEFT adapter: {' and '.join(ADAPTER)}"
        raise UserError(where, f"no {' and no '.join(missing)} in it", expected, f"correct rival.{slug}.adapter")
    try:
        config = read_json(folder / ADAPTER[0])
        base = read_json(folder / "base.json") if (folder / "base.json").is_file() else {}
        name = base.get("source") or config.get("base_model_name_or_path") or ""
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(where, f"{folder}: {error}", "readable JSON", "copy the adapter's folder again") from None
    if base.get("sha256") and pointer["sha256"]:
        other = base["sha256"] != pointer["sha256"]
    else:  # as in `rarl.models.loading`: a local base may be in a folder of any name
        other = bool(name) and pointer["sha256"] is None and Path(name).name != Path(pointer["source"]).name
    if other:
        found = f"an adapter of {name}" + (f" with SHA-256 {base['sha256'][:12]}..." if base.get("sha256") else "")
        fix = f"set rival.{slug}.source to the adapter's base"
        raise UserError(where, found, f"an adapter of {source}", fix)


@contextmanager
def named(slug: str):
    """A block whose errors about a base name the rival's key."""
    try:
        yield
    except UserError as error:
        where, found, expected, fix = (part.replace("base.source", f"rival.{slug}.source") for part in error.parts)
        where = where if f"rival.{slug}" in where else f"rival.{slug}: {where}"
        raise UserError(where, found, expected, fix) from None


def write_folder(slug: str, rival: Rival, folder: Path) -> None:
    """Write a rival's folder. An adapter of the hub is downloaded, its base is not.

    Raises:
        UserError: the adapter cannot be fetched, or is of another base.
    """
    write_json(folder / FILE, rival.model_dump(include=ASKED))
    if rival.source is None:
        return
    with named(slug):
        pointer = base_pointer(Base(source=rival.source, revision=rival.revision))
    write_json(folder / "base.json", pointer)
    if rival.adapter is None:
        return
    adapter = Path(rival.adapter)
    if not adapter.is_dir():
        adapter = _fetch(slug, rival)
    check_adapter(slug, rival, adapter, pointer)
    for name in ADAPTER:
        shutil.copyfile(adapter / name, folder / name)


def _fetch(slug: str, rival: Rival) -> Path:
    from huggingface_hub import snapshot_download

    check_place(f"rival.{slug}.adapter", rival.adapter, f"rival.{slug}.adapter_revision", rival.adapter_revision)
    try:
        found = snapshot_download(rival.adapter, revision=rival.adapter_revision, allow_patterns=[*ADAPTER])
    except (OSError, ValueError) as error:
        where, expected = f"rival.{slug}.adapter = {rival.adapter}", "a hub id that can be reached"
        fix = "go online or log in, or download the adapter and name its folder"
        raise UserError(where, " ".join(str(error).split())[:200], expected, fix) from None
    return Path(found)


def check_written(slug: str, rival: Rival, folder: Path) -> None:
    """Refuse a pointer from before the rival's local folder was there: it has no hash of the weights."""
    local = Path(rival.source) if rival.source != "embedded" else EMBEDDED
    if local.is_dir() and read_json(folder / "base.json")["sha256"] is None:
        found, expected = f"no hash of {rival.source}, which was not there", "the hash of its weights"
        fix = f"run `dvc repro -s -f rival@{slug}`, then `dvc repro`"
        raise UserError(str(folder / "base.json"), found, expected, fix)
