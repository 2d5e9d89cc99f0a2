"""Estimate the time, memory, disk and judges' cost of a run, on this machine or on a card.

Rows and images are as the last run has read them, or as published. What is assumed is in rarl/planning/run.py. A
card's figures are published ones (rarl/planning/cards.yaml); no time was measured on a GPU.
"""

import click

from rarl.running.entry import ignore_warnings_between_libraries


@click.command(help=__doc__)
@click.option("--base", help="Instead of base.source: a known base, or a folder with config.json.")
@click.option("--card", help="A card of rarl/planning/cards.yaml instead of this machine; `list` lists them.")
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(min=1), help="Cards, each with a process.")
@click.option("--rows", type=click.IntRange(min=1), help="Training rows; their images grow with them.")
@click.option("-S", "changes", multiple=True, metavar="KEY=VALUE", help="Change a parameter, as `dvc exp run -S`.")
@click.option("--measured", is_flag=True, help="Compare the plan with the times of the run in this folder.")
def main(base: str | None, card: str | None, gpus: int, rows: int | None, changes: tuple[str, ...], measured: bool):
    """Run the command."""
    ignore_warnings_between_libraries()
    from rarl.planning import run as run_plan

    known = run_plan.cards()
    if card == "list":
        click.echo("\n".join(run_plan.describe(machine) for machine in known.values()))
        return
    click.echo(run_plan.compare() if measured else run_plan.report(base, card, gpus, rows, changes))
