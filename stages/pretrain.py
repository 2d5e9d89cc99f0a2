"""Train the embedded base from scratch on general-domain synthetic images (frozen stage).

Takes under an hour on two cores. The weights are kept in git, so nobody needs to run it. To run it again:
`dvc unfreeze pretrain && dvc repro --single-item pretrain`.
"""

from pathlib import Path

import click

from rarl.running.entry import stage_main


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--seed", default=3, show_default=True)
@stage_main
def main(output: Path, seed: int) -> None:
    """Pretrain the embedded base and measure its general-domain accuracy."""
    from rarl.pretraining.training import make_base

    make_base(output, seed, Path("metrics/base.json"))


if __name__ == "__main__":
    main()
