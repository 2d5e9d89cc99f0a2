"""Simulate answers to several questions per image: coverage of the intervals, false positives of the paired test.

The results are metrics/studies/clusters.json and clusters.md (some minutes).
"""

from pathlib import Path

import click

from rarl.records import write_json


@click.command(help=__doc__)
@click.option("--repetitions", default=4000, show_default=True, type=click.IntRange(10), help="Test sets of a case.")
@click.option("--seed", default=7, show_default=True, help="Seed of the simulated answers.")
@click.option(
    "--output",
    default=Path("metrics/studies/clusters.json"),
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
)
def main(repetitions: int, seed: int, output: Path) -> None:
    """Write the study's numbers and its page."""
    from rarl.studies.clusters import as_markdown, study

    report = study(repetitions, seed, click.echo)
    write_json(output, report)
    command = f"rarl study clusters --repetitions {repetitions} --seed {seed}"
    output.with_suffix(".md").write_text(as_markdown(report, command), encoding="utf-8")
    click.echo(f"{output} and .md")
