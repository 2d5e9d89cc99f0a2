"""Stage `base`: write which base model is used, as a pointer of a few lines (`data/models/base/base.json`)."""

import click

from stages.errors import stage_main
from stages.params import load_params
from stages.records import write_json


@click.command()
@stage_main
def main():
    from stages.models.loading import base_pointer

    pointer = base_pointer(load_params().base)
    write_json("data/models/base/base.json", pointer)
    click.echo(
        f"base: {pointer['source']}" + (f" at {pointer['revision']}" if pointer["revision"] else "")
    )


if __name__ == "__main__":
    main()
