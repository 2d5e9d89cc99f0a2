"""Switch params.yaml to a profile: the paper's settings, or the embedded default for a CPU.

Only the keys in which the profiles differ are changed; comments and all other values stay.
"""

from pathlib import Path

import click

from rarl.profiles import PROFILES, apply
from rarl.running.entry import stage_main


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(sorted(path.stem for path in PROFILES.glob("*.yaml"))))
@click.option("--root", metavar="FOLDER", help="Folder of your releases (data.root).")
@click.option("--params", "path", default="params.yaml", show_default=True, type=click.Path(path_type=Path))
@stage_main
def main(name: str, root: str | None, path: Path) -> None:
    """Run the command."""
    changed = apply(path, name, root)
    for key, (before, after) in changed.items():
        click.echo(f"{key}: {before} -> {after}")
    click.echo(f"{path} is the {name} profile now ({len(changed)} values changed).")
