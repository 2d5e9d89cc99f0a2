"""Stage `base`: write which base model is used, as a pointer of a few lines (`data/models/base/base.json`)."""

import hashlib
from pathlib import Path

import click

from stages.errors import UserError, stage_main
from stages.params import Base, load_params
from stages.records import write_json

EMBEDDED = Path("data/base")


def base_pointer(base: Base) -> dict:
    """What `base.json` holds: where the base is, at which revision, and a hash of local weights.

    Raises:
        UserError: a local folder does not hold a model.
    """
    folder = EMBEDDED if base.source == "embedded" else Path(base.source)
    if not folder.is_dir():
        return {"source": base.source, "revision": base.revision, "sha256": None}
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise UserError(
            f"base.source = {base.source}",
            f"{folder} without config.json and *.safetensors",
            "a folder laid out like the hub's",
            "download the model there, or set base.source to `embedded`",
        )
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weights]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"source": str(folder), "revision": None, "sha256": digest.hexdigest()}


@click.command()
@stage_main
def main():
    pointer = base_pointer(load_params().base)
    write_json("data/models/base/base.json", pointer)
    click.echo(
        f"base: {pointer['source']}" + (f" at {pointer['revision']}" if pointer["revision"] else "")
    )


if __name__ == "__main__":
    main()
