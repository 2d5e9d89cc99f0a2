"""Stage `base`: write which base model is used, as a pointer of a few lines (`data/models/base/base.json`)."""

import json
from pathlib import Path

import click

from stages.errors import stage_main
from stages.models.base_files import check_family, fingerprint
from stages.params import Base, load_params
from stages.records import write_json

EMBEDDED = Path("data/base")


def base_pointer(base: Base) -> dict:
    """What `base.json` holds: where the base is, at which revision, and a hash of local weights.

    Raises:
        UserError: a local folder does not hold a model, or one of an unsupported family.
    """
    folder = EMBEDDED if base.source == "embedded" else Path(base.source)
    if not folder.is_dir():
        return {"source": base.source, "revision": base.revision, "sha256": None}
    sha256 = fingerprint(folder)
    check_family(str(folder), json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return {"source": str(folder), "revision": None, "sha256": sha256}


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
