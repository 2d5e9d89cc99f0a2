"""Read the training source's train, development and test rows: see `rarl/data/curation.py` for the outputs."""

from rarl.data.curation import curate
from rarl.running.entry import stage


@stage
def main(params) -> None:
    """Curate the train, development and test rows."""
    curate(params)


if __name__ == "__main__":
    main()
