"""Read one benchmark release into the common record.

Writes `data/benchmarks/<set>.jsonl`, `data/benchmarks/pictures/<set>/` (pictures that lie in a table or in a
DICOM file, and how many they are) and `metrics/benchmark/<set>.json`. A release that is not there gives an empty file
and `available: false`, or an error where `data.missing` is `stop`.
"""

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
