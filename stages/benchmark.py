"""Read one benchmark release into the common record: see `rarl/data/benchmarks.py` for the outputs."""

import click

from rarl.data.benchmarks import read_benchmark
from rarl.entry import stage_main
from rarl.params import load_params
from rarl.registry import BENCHMARKS


@click.command()
@click.option("--set", "name", type=click.Choice(BENCHMARKS), required=True, help="The benchmark's slug.")
@stage_main
def main(name: str) -> None:
    """Read one benchmark's test rows."""
    read_benchmark(load_params(), name)


if __name__ == "__main__":
    main()
