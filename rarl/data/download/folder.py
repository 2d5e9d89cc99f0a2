"""One set's folder: fetched from where the set is published, gone on with, or checked against `download.json`."""

from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel, ValidationError

from rarl.data.download.archives import stem, unpack
from rarl.data.download.fetching import fetch, inside, plan, sha256_of
from rarl.data.download.sources import SOURCES, ByHand, Hub, Published
from rarl.errors import UserError
from rarl.records import write_json

RECORD = "download.json"


class Kept(BaseModel):
    size: int
    sha256: str


class Archive(BaseModel):
    """What an archive was unpacked to."""

    sha256: str
    folder: str
    files: dict[str, Kept]
    """By their path below the set's folder."""
    left_out: dict[str, int] = {}


class Record(BaseModel):
    """`download.json`: what one set's folder holds and where it came from."""

    set: str
    form: str
    source: str
    commit: str | None = None
    complete: bool = False
    files: dict[str, Kept] = {}
    archives: dict[str, Archive] = {}

    def everything(self) -> Iterator[tuple[str, Kept]]:
        yield from self.files.items()
        for archive in self.archives.values():
            yield from archive.files.items()

    def write(self, folder: Path) -> None:
        write_json(folder / RECORD, self.model_dump())


def download(name: str, to: Path, form: str | None = None, update: bool = False) -> Record:
    """Fetch one set into `to/<name>`, go on with it, or check it.

    Raises:
        UserError: no network, a set that is to be fetched by hand, a file that is not the published one or
            changed since the download, an archive that is broken or refused.
    """
    published, folder = SOURCES[name], to / name
    record = read_record(folder, name, published, form)
    source = published.forms[record.form]
    missing, changed = compare(folder, record)
    if changed and not update:
        raise UserError(
            f"{folder}: {_some(changed)}",
            "changed since the download",
            f"what {folder / RECORD} says of it",
            "delete what changed and run the same command again to have it as it was published"
            if not isinstance(source, ByHand)
            else "put the published file back, or take it as it is with --update",
        )
    if record.complete and not missing and not update:
        click.echo(f"{name}: nothing to fetch, every file is there and unchanged.")
        return record
    if record.complete and missing:
        click.echo(f"{name}: missing: {_some(missing)}")

    if isinstance(source, ByHand):
        names = laid_down(folder, name, record, source)
        record.files = {}
    elif record.complete and not update and not set(missing) & set(record.files):
        names = list(record.files)  # only what was unpacked is missing, and its archive is here
    else:
        commit = None if update else record.commit or getattr(source, "commit", None)
        wanted = plan(source, published, commit, folder)
        _say(name, source, wanted.commit, update)
        stale = record.files.keys() - wanted.files.keys()
        record.commit, record.complete = wanted.commit, False
        if wanted.commit or folder.is_dir():
            record.write(folder)  # a run that is stopped goes on with this very commit
        fetch(source, published, wanted, folder, replace=update)
        for path in stale:  # of the commit before: an adapter would read both
            inside(folder, path).unlink(missing_ok=True)
            del record.files[path]
        names = list(wanted.files)

    for path in names:
        file = inside(folder, path)
        if file.is_file():
            record.files[path] = Kept(size=file.stat().st_size, sha256=sha256_of(file))
            if stem(file):
                _unpack(folder, path, record)
    record.complete = True
    record.write(folder)
    return record


def read_record(folder: Path, name: str, published: Published, form: str | None) -> Record:
    """`download.json` of a folder, or a new record where there is none.

    Raises:
        UserError: the set is not published in that form, the folder holds another one, or the file is
            broken.
    """
    if form is not None and form not in published.forms:
        raise UserError(
            f"--form {form}", f"{name} is not published in that form", " or ".join(published.forms), "leave --form out"
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
            "not what this command writes",
            "the record of a download",
            "delete it and run the same command again: files that are there are checked and kept",
        ) from None
    if not same:
        raise UserError(
            str(folder),
            f"the {record.form} form of {name}",
            f"room for its {form} form: an adapter would read both",
            f"give another folder with --to, or delete {folder}",
        )
    return record


def compare(folder: Path, record: Record) -> tuple[list[str], list[str]]:
    """(files that are missing, files that changed) against a record.

    An archive that was deleted is not missing while everything that it held is there.
    """
    missing, changed = [], []
    for name, kept in record.everything():
        path = inside(folder, name)
        if not path.is_file():
            missing.append(name)
        elif path.stat().st_size != kept.size or sha256_of(path) != kept.sha256:
            changed.append(name)
    gone = set(missing)
    spent = {name for name, archive in record.archives.items() if not gone & archive.files.keys()}
    return [name for name in missing if name not in spent], changed


def laid_down(folder: Path, name: str, record: Record, source: ByHand) -> list[str]:
    """The files that a user put into the folder of a set which no program may fetch.

    Raises:
        UserError: there are none: where to get them.
    """
    unpacked = {file for archive in record.archives.values() for file in archive.files}
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in found]
    names = [path for path in names if path != RECORD and path not in unpacked]
    if not names:
        raise UserError(
            f"{folder} ({name})",
            "nothing there, and this form cannot be fetched by a program",
            source.what,
            f"get it from {source} and put it into {folder}, then run the same command again: archives are unpacked",
        )
    return names


def _unpack(folder: Path, name: str, record: Record) -> None:
    """Unpack an archive beside itself, unless all that it holds is there."""
    before, kept = record.archives.get(name), record.files[name]
    if before and before.sha256 == kept.sha256:
        there = Record(set="", form="", source="", files=before.files)
        if compare(folder, there) == ([], []):
            return
    archive = folder / name
    target = archive.with_name(stem(archive))
    result = unpack(archive, target, replace=before is not None)
    place = target.relative_to(folder)
    record.archives[name] = Archive(
        sha256=kept.sha256,
        folder=place.as_posix(),
        files={(place / path).as_posix(): Kept(**file) for path, file in result.files.items()},
        left_out=result.left_out,
    )
    record.write(folder)
    click.echo(f"{archive.name}: {len(result.files):,} files unpacked into {target}")
    for what, count in result.left_out.items():
        click.echo(f"{archive.name}: {count:,} {what}: not unpacked")


def _say(name: str, source, commit: str | None, update: bool) -> None:
    if not isinstance(source, Hub):
        click.echo(f"{name}: {source}")
        return
    whose = "pinned by this project" if commit == source.commit else "written down for later runs"
    click.echo(f"{name}: {source} at {commit} ({whose})")
    if update and source.commit and commit != source.commit:
        click.secho(
            f"  WARNING: this project was tested with {source.commit}; counts may differ (data.deviation)", fg="yellow"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
