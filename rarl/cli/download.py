r"""Download a release into data/raw/<set>, checked and unpacked.

\b
    rarl download slake      the pinned release; run it again to resume or check it
    rarl download --list     the available sets with size, source and licence

data/raw/<set>/download.json records the source, the hub's commit, and size and SHA-256 of every file. A later run
compares with it, downloads what is missing, and keeps that commit unless --update is given. This is not a stage:
`dvc repro` never downloads.
"""

import sys
from pathlib import Path

import click

from rarl.data.adapters import load_adapter
from rarl.data.download.folder import RECORD, download
from rarl.data.download.sources import SOURCES, ByHand, Hub
from rarl.errors import UserError

TO = "Folder for the releases: each gets a folder of its own there."


def show_list() -> None:
    """Print every set and form with its size, version, source and licence."""
    for name, published in SOURCES.items():
        licence = load_adapter(name).DECLARED.licence
        click.echo(f"{name} (licence: {licence})")
        for form, source in published.forms.items():
            size = f"{source.about_mb:,} MB" if source.about_mb else "size not known"
            pinned = "by hand" if isinstance(source, ByHand) else "pinned at the first download"
            if isinstance(source, Hub) and source.commit:
                pinned = f"commit {source.commit[:12]}"
            click.echo(f"  {form:9} {size:>14}  {pinned:28} {source}")


@click.command(help=__doc__.replace(r"\b", "\b"))
@click.argument("name", metavar="SET", type=click.Choice(list(SOURCES)), required=False)
@click.option("--to", default="data/raw", show_default=True, type=click.Path(file_okay=False, path_type=Path), help=TO)
@click.option("--form", type=click.Choice(["original", "hub"]), help="Which form of the release.")
@click.option("--update", is_flag=True, help="Take the newest version instead of the pinned one.")
@click.option("--list", "list_", is_flag=True, help="List the available sets.")
def main(name: str | None, to: Path, form: str | None, update: bool, list_: bool) -> None:
    """Download a release, or list the available ones."""
    if list_ or name is None:
        show_list()
        return
    try:
        record = download(name, to, form, update)
    except KeyboardInterrupt:
        click.echo("Stopped. Run the same command again to resume.", err=True)
        sys.exit(130)
    except OSError as error:
        where, found = str(error.filename or to / name), error.strerror or str(error)
        fix = "check its permissions and the disk, or give another folder with --to"
        raise UserError(where, found, "a folder that can be written to, with room in it", fix) from None
    kept = [file.size for _, file in record.everything()]
    click.echo(f"{name}: {len(kept):,} files, {sum(kept) / 1e6:,.0f} MB, in {to / name}")
    click.echo(f"Their source, sizes and SHA-256 are in {to / name / RECORD}.")
    source = " -S train.source=sat" if name == "sat" else ""
    if name != "slake" and not source and not (to / "slake").is_dir():
        click.echo("SLAKE is needed too: rarl download slake")
    click.echo(f"Next: dvc exp run -S data.root={to}{source}")
