"""Read the training source's train, development and test rows: see `rarl/data/curation.py` for the outputs."""

import click

from rarl.data.curation import curate
from rarl.entry import stage_main
from rarl.params import load_params


@click.command()
@stage_main
def main() -> None:
    """Curate the train, development and test rows."""
    curate(load_params())


if __name__ == "__main__":
    main()
