"""Stage `report`: the paper's tables and claims with ours, paired tests, plots, and pages that need no network.

| file | what it is |
|---|---|
| `data/report/report.html` | the report: one page for screen, phone and print |
| `data/report/cases.html` | every question with each model's answer and each judge's verdict |
| `data/report/report.md` | the report's numbers as Markdown |
| `data/report/disagreements.csv` | every answer on which two judges differ |
| `metrics/tables/*.csv`, `metrics/summary.json` | the same numbers for `dvc plots diff` and `dvc metrics diff` |
"""

import gc
from pathlib import Path

import click

from rarl.processes.cost import note
from rarl.records import atomic_file, write_json
from rarl.running.entry import stage
from rarl.spreadsheet import write_frame

REPORT = Path("data/report")
TABLES = Path("metrics/tables")


@stage
def main(params):
    """Write metrics/summary.json, metrics/tables/*.csv and data/report/."""
    from rarl.reporting import claims, console, markdown, page, tables
    from rarl.reporting.inputs import Run

    run = Run(params)
    click.echo("report: tables and paired tests")
    frames = {
        "table3": tables.paper_table(run, "table3"),
        "table6": tables.paper_table(run, "table6"),
        "claims": claims.claims(run),
        "own_test": tables.own_test(run),
        "paired_tests": tables.paired_tests(run),
        "detectable": tables.detectable(run),
        "grounding": tables.grounding(run),
        "breakdown": tables.breakdown(run),
        "yes_no": tables.yes_no(run),
        "agreement": tables.judge_agreement(run),
        "reward_gap": tables.reward_gap(run),
    }
    for name, frame in frames.items():
        write_frame(TABLES / f"{name}.csv", frame)
    write_json("metrics/summary.json", tables.summary(run))
    # Questions and answers stay out of metrics/, which is kept in git.
    frames["disagreements"] = tables.disagreements(run)
    write_frame(REPORT / "disagreements.csv", frames["disagreements"])
    click.echo("report: plots and pages")
    pages = {
        "report.html": page.render(run, frames),
        "report.md": markdown.report(run, frames),
        "cases.html": page.render_cases(run),
    }
    for name, text in pages.items():
        with atomic_file(REPORT / name) as file:
            file.write(text)
    note(page=page.digest(pages["report.html"]))
    console.show(run, frames)
    for name, text in pages.items():
        click.echo(f"{REPORT / name} ({len(text.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    gc.disable()  # Up to 400,000 records stay alive to the end; scanning them for garbage takes seconds.
    main()
