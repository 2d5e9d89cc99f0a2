"""Stage `check`: find what would stop the pipeline later, before an hour of work is spent.

Validates `params.yaml` as a whole, and looks for the releases, the base model, the packages, memory and
disk that it asks for; deletes nothing. Writes a constant (`data/check.json`), so that nothing re-runs because of it.
"""

import click

from rarl.entry import stage_main
from rarl.params import load_params
from rarl.preflight import check


@click.command()
@stage_main
def main() -> None:
    """Find what would stop the pipeline later."""
    check(load_params())


if __name__ == "__main__":
    main()
