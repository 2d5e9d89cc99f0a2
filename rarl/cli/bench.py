"""Time an RL step, an SFT step and inference against stock TRL and transformers (20 minutes).

The results are metrics/bench/steps.json and steps.md; rarl/measuring/speed.py says what is measured, and how.
"""

from pathlib import Path

import click


@click.command(help=__doc__)
@click.option("--steps", default=5, show_default=True, help="Counted steps of each side.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of PyTorch.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases whose name contains this; repeatable.")
@click.option("--output", default="metrics/bench", type=click.Path(path_type=Path), show_default=True)
def main(steps: int, threads: int, only: tuple[str, ...], output: Path) -> None:
    """Run the command."""
    from rarl.measuring.speed import measure

    measure(steps, threads, only, output)
