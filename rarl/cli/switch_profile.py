"""Switch `params.yaml` to a profile: the paper's settings, or the embedded default for a CPU.

No stage of the pipeline: it edits the pipeline's parameters. It touches only what the profiles differ
in, and keeps comments; what a user has set elsewhere stays.
"""

from pathlib import Path

import click

from rarl.entry import stage_main
from rarl.profiles import PROFILES, apply


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(sorted(path.stem for path in PROFILES.glob("*.yaml"))))
@click.option("--root", metavar="FOLDER", help="Folder that holds your releases (data.root).")
@click.option("--params", "path", default="params.yaml", type=click.Path(path_type=Path))
@stage_main
def main(name: str, root: str | None, path: Path) -> None:
    changed = apply(path, name, root)
    for key, (before, after) in changed.items():
        click.echo(f"{key}: {before} -> {after}")
    click.echo(f"{path} is the {name} profile now ({len(changed)} values changed).")
