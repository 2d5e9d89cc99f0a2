"""Read the training source's train, development and test rows: Silvar-Med rebuilt from SLAKE, your own, or SAT.

Writes `data/curated/{train,dev,test}.jsonl`, `data/curated/pictures/` (images that lie in a table or in a
DICOM file), `data/curated/unmatched_explanations.csv` (Silvar-Med's that belong to no row) and
`metrics/curate.json`. How the rows compare with the benchmarks, the stage `audit` says.
"""

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
