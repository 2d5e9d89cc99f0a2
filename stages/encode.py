"""Stages `encode` and `encode_benchmarks`: the vision tower's output, once per distinct image."""

from pathlib import Path

import click

from rarl.encoding import encode
from rarl.running.entry import stage

PATH = click.Path(path_type=Path)


@stage
@click.option("--records", multiple=True, type=PATH, help="File of sample records; may be repeated.")
@click.option("--benchmarks", type=PATH, help="Folder of benchmark records; those listed in params.yaml are read.")
@click.option("--output", required=True, type=PATH, help="Folder of the features.")
def main(params, records, benchmarks, output):
    """Run the frozen vision tower once per distinct image."""
    listed = [benchmarks / f"{name}.jsonl" for name in params.benchmarks] if benchmarks else []
    encode([*records, *listed], output, params)


if __name__ == "__main__":
    main()
