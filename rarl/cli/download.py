"""Fetch a release from where it is published into data/raw/<set>, checked and unpacked.

\b
    rarl download slake      the pinned release; run it again to go on with it, or to check it
    rarl download --list     which sets there are, how large, from where, under which licence

What came is written down in data/raw/<set>/download.json: the source, the hub's commit, and size and SHA-256 of
every file. A later run compares with that, fetches what is missing, and keeps to that commit unless --update is
given. This is no stage: `dvc repro` never downloads.
"""

import sys
from importlib import import_module
from pathlib import Path

import click

from rarl.data.download.folder import RECORD, download
from rarl.data.download.sources import SOURCES, ByHand, Hub
from rarl.errors import UserError


def show_list() -> None:
    """Print every set and form with its size, version, place and licence."""
    for name, published in SOURCES.items():
        licence = import_module(f"rarl.data.adapters.{name}").DECLARED.licence
        click.echo(f"{name} (licence: {licence})")
        for form, source in published.forms.items():
            size = f"{source.about_mb:,} MB" if source.about_mb else "size not known"
            pinned = "by hand" if isinstance(source, ByHand) else "pinned at the first download"
            if isinstance(source, Hub) and source.commit:
                pinned = f"commit {source.commit[:12]}"
            click.echo(f"  {form:9} {size:>14}  {pinned:28} {source}")


@click.command(help=__doc__)
@click.argument("name", metavar="SET", type=click.Choice(list(SOURCES)), required=False)
@click.option(
    "--to", default="data/raw", type=click.Path(file_okay=False, path_type=Path), show_default=True,
    help="Folder for the releases: each gets a folder of its own there.",
)  # fmt: skip
@click.option("--form", type=click.Choice(["original", "hub"]), help="Which form of the release.")
@click.option("--update", is_flag=True, help="Take what is published now, not what is pinned.")
@click.option("--list", "list_", is_flag=True, help="Show every set, and end.")
def main(name: str | None, to: Path, form: str | None, update: bool, list_: bool) -> None:
    if list_ or name is None:
        show_list()
        return
    try:
        record = download(name, to, form, update)
    except KeyboardInterrupt:
        click.echo("Stopped. Run the same command again to go on where it stopped.", err=True)
        sys.exit(130)
    except OSError as error:
        raise UserError(
            str(error.filename or to / name),
            error.strerror or str(error),
            "a folder that can be written to, with room in it",
            "look at its rights and at the disk, or give another folder with --to",
        ) from None
    kept = [file.size for _, file in record.everything()]
    click.echo(f"{name}: {len(kept):,} files, {sum(kept) / 1e6:,.0f} MB, in {to / name}")
    click.echo(f"Their source, sizes and SHA-256 stand in {to / name / RECORD}.")
    source = " -S train.source=sat" if name == "sat" else ""
    if name != "slake" and not source and not (to / "slake").is_dir():
        click.echo("SLAKE is needed besides: rarl download slake")
    click.echo(f"Next: dvc exp run -S data.root={to}{source}")
