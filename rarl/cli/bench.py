"""Time an RL step, an SFT step and inference against stock TRL and transformers (20 minutes).

The results are metrics/bench/steps.json and steps.md; rarl/measuring/speed.py says what is measured, and how.
`rarl bench scale` measures the stages between data and report with 100,000 rows instead.
"""

from pathlib import Path

import click

OUTPUT = click.option("--output", default="metrics/bench", type=click.Path(path_type=Path), show_default=True)


@click.group(help=__doc__, invoke_without_command=True)
@click.option("--steps", default=5, show_default=True, help="Counted steps of each side.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of PyTorch.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases whose name contains this; repeatable.")
@OUTPUT
@click.pass_context
def main(context: click.Context, steps: int, threads: int, only: tuple[str, ...], output: Path) -> None:
    """Run the command."""
    if context.invoked_subcommand is None:
        from rarl.measuring.speed import measure

        measure(steps, threads, only, output)


@main.command()
@click.option("--size", "sizes", multiple=True, type=(int, int), metavar="ROWS IMAGES", show_default=True,
              default=((10_000, 1_000), (30_000, 3_000), (100_000, 10_000)), help="Repeatable.")  # fmt: skip
@OUTPUT
def scale(sizes: tuple[tuple[int, int], ...], output: Path) -> None:
    """Measure time and memory from curate to report on synthetic rows and images (3 to 10 minutes).

    The results are metrics/bench/scale.json and scale.md.
    """
    from rarl.measuring.scale import measure

    measure(sizes, output)
