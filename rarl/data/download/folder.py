"""The folder of one data set: downloaded, resumed, or checked against its `download.json`."""

from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel, ValidationError

from rarl.data.download.archives import stem, unpack
from rarl.data.download.fetching import fetch, inside, plan, sha256_of
from rarl.data.download.sources import SOURCES, ByHand, Hub, Published, Web
from rarl.errors import UserError
from rarl.records import write_json

RECORD = "download.json"


class Kept(BaseModel):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Kept":
        """Measure a file."""
        return cls(size=path.stat().st_size, sha256=sha256_of(path))


class Archive(BaseModel):
    """What an archive was unpacked to; `files` are named by their path below the data set's folder."""

    sha256: str
    files: dict[str, Kept]
    left_out: dict[str, int] = {}


class Record(BaseModel):
    """`download.json`: the content of a data set's folder, and where it came from."""

    set: str
    form: str
    source: str
    commit: str | None = None
    complete: bool = False
    files: dict[str, Kept] = {}
    archives: dict[str, Archive] = {}

    def everything(self) -> Iterator[tuple[str, Kept]]:
        """Iterate over the downloaded files and those that were unpacked."""
        for files in (self.files, *(archive.files for archive in self.archives.values())):
            yield from files.items()

    def write(self, folder: Path) -> None:
        """Write it into the data set's folder."""
        write_json(folder / RECORD, self.model_dump())


def download(name: str, to: Path, form: str | None = None, update: bool = False) -> Record:
    """Download a data set into `to/<name>`, resume the download, or check it.

    Raises:
        UserError: There is no network, the data set must be fetched by hand, a file is not the published one or
            changed since the download, or an archive is broken or refused.
    """
    published, folder = SOURCES[name], to / name
    record = read_record(folder, name, published, form)
    source = published.forms[record.form]
    missing, changed = compare(folder, record)
    if changed and not update:
        raise UserError(
            f"{folder}: {_some(changed)}",
            "changed since the download",
            f"the files as {folder / RECORD} describes them",
            "put the published file back, or accept it with --update"
            if isinstance(source, ByHand)
            else "delete what changed and run the same command again to get the published files",
        )
    if record.complete and not missing and not update:
        click.echo(f"{name}: nothing to fetch, every file is there and unchanged.")
        return record
    if record.complete and missing:
        click.echo(f"{name}: missing: {_some(missing)}")

    if isinstance(source, ByHand):
        names, record.files = found_by_hand(folder, name, record, source), {}
    elif record.complete and not update and not set(missing) & set(record.files):
        names = list(record.files)  # only unpacked files are missing, and their archive is here
    else:
        names = _fetch(name, folder, record, published, source, update)
    for path in names:
        file = inside(folder, path)
        if file.is_file():
            record.files[path] = Kept.of(file)
            if stem(file):
                _unpack(folder, path, record)
    record.complete = True
    record.write(folder)
    return record


def _fetch(
    name: str, folder: Path, record: Record, published: Published, source: Hub | Web, update: bool
) -> list[str]:
    """Download what is missing and return the names of all files."""
    pinned = getattr(source, "commit", None)
    wanted, commit = plan(source, published, None if update else record.commit or pinned, folder)
    how = "pinned by this project" if commit == pinned else "recorded for later runs"
    click.echo(f"{name}: {source}" + (f" at {commit} ({how})" if commit else ""))
    if update and pinned and commit != pinned:
        warning = f"  WARNING: this project was tested with {pinned}; counts may differ (data.deviation)"
        click.secho(warning, fg="yellow")
    record.commit, record.complete = commit, False
    if commit or folder.is_dir():
        record.write(folder)  # an interrupted run resumes with this commit
    fetch(source, published, wanted, commit, folder, replace=update)
    for path in record.files.keys() - wanted.keys():  # of an earlier commit: an adapter would read both
        inside(folder, path).unlink(missing_ok=True)
        del record.files[path]
    return list(wanted)


def read_record(folder: Path, name: str, published: Published, form: str | None) -> Record:
    """Read the `download.json` of a folder, or make a new record.

    Raises:
        UserError: The data set is not published in that form, the folder contains another form, or the file is
            broken.
    """
    if form is not None and form not in published.forms:
        raise UserError(
            f"--form {form}", f"{name} is not published in that form", " or ".join(published.forms), "leave out --form"
        )
    path = folder / RECORD
    if not path.is_file():
        form = form or next(iter(published.forms))
        return Record(set=name, form=form, source=str(published.forms[form]))
    try:
        record = Record.model_validate_json(path.read_bytes())
        same = form is None or published.forms[record.form] == published.forms[form]
    except (ValidationError, KeyError):
        raise UserError(
            str(path),
            "not written by this command",
            "the record of a download",
            "delete it and run the same command again: existing files are checked and kept",
        ) from None
    if not same:
        raise UserError(
            str(folder),
            f"the {record.form} form of {name}",
            f"room for its {form} form: an adapter would read both",
            f"give another folder with --to, or delete {folder}",
        )
    return record


def compare(folder: Path, record: Record, files: dict[str, Kept] | None = None) -> tuple[list[str], list[str]]:
    """Return the files that are missing and those that changed since the record was written.

    A deleted archive is not missing as long as all its files are there.

    Args:
        folder: The data set's folder.
        record: Its record.
        files: Compare these only.
    """
    paths = {name: (inside(folder, name), kept) for name, kept in (files or dict(record.everything())).items()}
    missing = [name for name, (path, _) in paths.items() if not path.is_file()]
    changed = [name for name, (path, kept) in paths.items() if path.is_file() and Kept.of(path) != kept]
    spent = {name for name, archive in record.archives.items() if archive.files.keys().isdisjoint(missing)}
    return [name for name in missing if name not in spent], changed


def found_by_hand(folder: Path, name: str, record: Record, source: ByHand) -> list[str]:
    """List the files that a user put into the folder of a data set which no program may download.

    Raises:
        UserError: There are none.
    """
    ours = {RECORD, *(file for archive in record.archives.values() for file in archive.files)}
    found = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path for path in found if path not in ours]
    if not names:
        raise UserError(
            f"{folder} ({name})",
            "nothing there, and no program can download this form",
            source.what,
            f"get it from {source} and put it into {folder}, then run the same command again: archives are unpacked",
        )
    return names


def _unpack(folder: Path, name: str, record: Record) -> None:
    """Unpack an archive beside itself, unless all its files are there."""
    before, kept = record.archives.get(name), record.files[name]
    if before and before.sha256 == kept.sha256 and compare(folder, record, before.files) == ([], []):
        return
    archive = folder / name
    target = archive.with_name(stem(archive))
    result = unpack(archive, target, replace=before is not None)
    files = {(target / path).relative_to(folder).as_posix(): Kept.of(target / path) for path in result.files}
    record.archives[name] = Archive(sha256=kept.sha256, files=files, left_out=result.left_out)
    record.write(folder)
    click.echo(f"{archive.name}: {len(files):,} files unpacked into {target}")
    for what, count in result.left_out.items():
        click.echo(f"{archive.name}: {count:,} {what}: not unpacked")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
