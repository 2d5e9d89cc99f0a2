"""Simulate answers to several questions per image: coverage of the intervals, false positives of the paired test.

The results are metrics/studies/clusters.json and clusters.md (some minutes).
"""

from importlib import import_module
from pathlib import Path

import click

from rarl.records import write_json


def simulation(study: str, module: str, option: str, default: int, what: str, text: str | None) -> click.Command:
    """Return the command that writes a simulated study's numbers and its page.

    Args:
        study: The name below `rarl study` and of the files.
        module: The module with `study` and `as_markdown`.
        option: The name of the option for the size of the simulation.
        default: That size.
        what: The option's help.
        text: The command's help.
    """

    @click.command(help=text)
    @click.option(f"--{option}", "size", default=default, show_default=True, type=click.IntRange(10), help=what)
    @click.option("--seed", default=7, show_default=True, help="Seed of the simulated answers.")
    @click.option(
        "--output",
        default=Path(f"metrics/studies/{study}.json"),
        show_default=True,
        type=click.Path(dir_okay=False, path_type=Path),
    )
    def main(size: int, seed: int, output: Path) -> None:
        """Write the study's numbers and its page."""
        code = import_module(module)
        report = code.study(size, seed, click.echo)
        write_json(output, report)
        command = f"rarl study {study} --{option} {size} --seed {seed}"
        output.with_suffix(".md").write_text(code.as_markdown(report, command), encoding="utf-8")
        click.echo(f"{output} and .md")

    return main


main = simulation("clusters", "rarl.studies.clusters", "repetitions", 4000, "Test sets of a case.", __doc__)
