"""Stage `base`: write which base model is used, as a pointer of a few lines (`data/models/base/base.json`)."""

import click

from rarl.models.base_files import base_pointer
from rarl.records import write_json
from rarl.running.entry import stage


@stage
def main(params):
    """Write which base model is used."""
    pointer = base_pointer(params.base)
    write_json("data/models/base/base.json", pointer)
    click.echo(f"base: {pointer['source']}" + (f" at {pointer['revision']}" if pointer["revision"] else ""))


if __name__ == "__main__":
    main()
