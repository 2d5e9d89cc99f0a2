"""Generate the phantom releases and their ground truth.

Writes `data/phantom/` (SLAKE, Silvar-Med, VQA-RAD, VQA-Med, Path-VQA, CV-Bench and SAT, each in the real release's
on-disk format, with the row and image counts in `declared.json`) and `data/phantom_truth.jsonl` (the findings,
for the truth judge).
"""

from pathlib import Path

import click

from rarl.running.entry import stage


@stage
@click.option("--output", type=click.Path(path_type=Path), default=Path("data/phantom"), show_default=True)
@click.option("--truth", type=click.Path(path_type=Path), default=Path("data/phantom_truth.jsonl"), show_default=True)
def main(params, output: Path, truth: Path) -> None:
    """Generate phantom images with known findings, in the real releases' formats."""
    from rarl.phantom.releases import make_phantom

    make_phantom(params.phantom, output, truth)


if __name__ == "__main__":
    main()
