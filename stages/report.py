"""Stage `report`: the paper's tables beside ours, paired tests, plots and one self-contained page."""

from pathlib import Path

import click

from stages.errors import stage_main
from stages.params import load_params
from stages.records import atomic_file, write_json

PAGE = Path("data/report/report.html")
TABLES = Path("metrics/tables")


@click.command()
@stage_main
def main():
    """Write metrics/summary.json, metrics/tables/*.csv and data/report/report.html."""
    from stages.reporting import console, page, tables
    from stages.reporting.inputs import Run

    run = Run(load_params())
    click.echo("report: tables and paired tests")
    frames = {
        "table3": tables.paper_table(run, "table3"),
        "table6": tables.paper_table(run, "table6"),
        "own_test": tables.own_test(run),
        "paired_tests": tables.paired_tests(run),
        "agreement": tables.judge_agreement(run),
        "reward_gap": tables.reward_gap(run),
    }
    for name, frame in frames.items():
        with atomic_file(TABLES / f"{name}.csv") as file:
            frame.to_csv(file, index=False, lineterminator="\n")
    write_json("metrics/summary.json", tables.summary(run))
    click.echo("report: plots and page")
    html = page.render(run, frames)
    with atomic_file(PAGE) as file:
        file.write(html)
    console.show(run, frames)
    click.echo(f"Page: {PAGE} ({len(html.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
