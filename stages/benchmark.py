"""Read one benchmark release into the common record: see `rarl/data/benchmarks.py` for the outputs."""

import click

from rarl.data.benchmarks import read_benchmark
from rarl.registry import BENCHMARKS
from rarl.running.entry import stage


@stage
@click.option("--set", "name", type=click.Choice(BENCHMARKS), required=True, help="The benchmark's slug.")
def main(params, name: str) -> None:
    """Read one benchmark's test rows."""
    read_benchmark(params, name)


if __name__ == "__main__":
    main()
