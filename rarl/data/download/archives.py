"""Unpack zip and tar archives so that nothing is ever written outside the folder that they go to.

Every member is looked at before the first byte is written: an archive with one member that points
elsewhere (absolute path, `..`, drive letter, link, device) is refused as a whole. Members are written one by one,
as plain files, into `<folder>.partial`, which takes the folder's name when the last one is whole.
"""

import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rarl.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Larger than any release here when unpacked (SAT, the largest, is 5 GB).
MAX_BYTES = 50_000_000_000
MAX_MEMBERS = 500_000
#: A member or archive that unpacks to this many times its size holds nothing but repetition ...
MAX_RATIO = 200
#: ... which is harmless below this size in bytes.
RATIO_FROM = 10_000_000
PICKLES = (".pkl", ".pickle", ".p")
_SYSTEM = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
_CHUNK = 1 << 20


@dataclass
class Member:
    """One entry of an archive, as the archive has it."""

    name: str
    size: int
    kind: str
    """`file`, `folder`, or what else it is."""
    open: Callable[[], BinaryIO]
    packed: int | None = None
    """Bytes in the archive; None where the archive is compressed as a whole."""


@dataclass
class Unpacked:
    """What came out of an archive: path below its folder -> size and SHA-256, and what was left in it."""

    files: dict[str, dict] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)


def stem(archive: Path) -> str | None:
    """An archive's name without its suffix; None where it is no archive that can be unpacked.

    >>> stem(Path("imgs.tar.gz"))
    'imgs'
    """
    suffix = next((end for end in SUFFIXES if archive.name.lower().endswith(end)), None)
    return suffix and archive.name[: -len(suffix)]


def unpack(archive: Path, folder: Path, *, replace: bool = False, nested: bool = True) -> Unpacked:
    """Unpack an archive into a folder, and the archives in it beside themselves.

    A single top folder that bears the folder's own name is not repeated. Pickle files run code when they are
    opened: they are left in the archive, and counted.

    Args:
        folder: where to; its parent exists.
        replace: put it in the place of a folder of that name.

    Raises:
        UserError: a member points outside the folder or is no plain file, the archive is broken, would
            unpack to more than the limits, or the folder is there.
    """
    if not replace and os.path.lexists(folder):
        raise UserError(
            str(folder),
            "is there, and this command did not write it",
            f"room for what {archive.name} holds",
            "move that folder away, or delete it, and run the same command again",
        )
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial)  # of a run that was stopped
    try:
        result = _unpack(archive, partial, folder.name)
        for inner in sorted(path for path in partial.rglob("*") if nested and stem(path)):
            inside = inner.with_name(stem(inner))
            if inner.is_file() and not inside.exists():
                found = unpack(inner, inside, nested=False)
                place = inside.relative_to(partial)
                result.files |= {f"{place.as_posix()}/{name}": v for name, v in found.files.items()}
                result.left_out += found.left_out
        old = folder.with_name(f"{folder.name}.old")
        if os.path.lexists(folder):
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            str(archive),
            f"cannot be unpacked: {error.strerror or error}",
            f"files that can be written to {folder}",
            "look at the disk and at the rights of the folder; on another system some names are not allowed",
        ) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return result


def _unpack(archive: Path, partial: Path, name: str) -> Unpacked:
    result = Unpacked()
    with _members(archive) as members:
        plan = [(member, place(archive, member)) for member in members]
        _check_sizes(archive, members)
        plan = [(member, path) for member, path in plan if member.kind == "file"]
        for member, path in plan[:]:
            reason = _left_out(path)
            if reason:
                result.left_out[reason] += 1
                plan.remove((member, path))
        if plan and all(len(path.parts) > 1 and path.parts[0] == name for _, path in plan):
            plan = [(member, path.relative_to(name)) for member, path in plan]
        partial.mkdir()
        root = partial.resolve()
        for member, path in plan:
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            # No link was ever made below the new folder, so this cannot happen: it is the last line of defence.
            if not target.parent.resolve().is_relative_to(root):
                raise _refused(archive, member.name, "leads outside the folder")
            result.files[path.as_posix()] = _write(archive, member, target)
    return result


def place(archive: Path, member: Member) -> PurePosixPath:
    """Where a member goes, below the folder.

    Raises:
        UserError: it is no plain file or folder, or its name leads outside.
    """
    if member.kind not in ("file", "folder"):
        raise _refused(archive, member.name, f"is {member.kind}")
    name = member.name.replace("\\", "/")
    if "\x00" in name:
        raise _refused(archive, member.name, "has a name with a zero byte")
    if name.startswith("/"):
        raise _refused(archive, member.name, "has an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if any(re.match(r"[A-Za-z]:", part) for part in parts):
        raise _refused(archive, member.name, "has a path with a drive letter")
    # Windows drops blanks and dots at the end of a name, so that ".. " leads up there.
    if any(part.rstrip(" .") == "" for part in parts):
        raise _refused(archive, member.name, "leads up and out of the folder")
    if not parts and member.kind == "file":
        raise _refused(archive, member.name, "has no name")
    return PurePosixPath(*parts)


def _left_out(path: PurePosixPath) -> str | None:
    if path.suffix.lower() in PICKLES:
        return "pickle files, which run code when opened"
    if any(part in _SYSTEM or part.startswith("._") for part in path.parts):
        return "files of an operating system"
    return None


def _check_sizes(archive: Path, members: list[Member]) -> None:
    total, packed = sum(member.size for member in members), archive.stat().st_size
    if len(members) > MAX_MEMBERS:
        raise _refused(archive, "", f"has {len(members):,} members, more than {MAX_MEMBERS:,}")
    if total > MAX_BYTES:
        raise _refused(archive, "", f"unpacks to {total:,} bytes, more than {MAX_BYTES:,}")
    pairs = [(member.name, member.size, member.packed) for member in members]
    for name, size, small in [*pairs, ("", total, packed)]:
        if small is not None and size > RATIO_FROM and size > MAX_RATIO * small:
            raise _refused(archive, name, f"unpacks {small:,} bytes to {size:,}: more than {MAX_RATIO} times")
    require_space(archive.parent, total)


def _write(archive: Path, member: Member, target: Path) -> dict:
    """Write one member as a new file: its size and SHA-256."""
    sha256, size = hashlib.sha256(), 0
    try:
        with member.open() as source, target.open("xb") as file:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > member.size:
                    raise _refused(archive, member.name, "is longer than it says")
                sha256.update(chunk)
                file.write(chunk)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _refused(archive, member.name, "stands in it twice") from None
    except (*_BROKEN, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk, not the archive: bz2 and gzip raise an OSError without a number
        raise _broken(archive, f"{member.name}: {error or type(error).__name__}") from None
    if size != member.size:
        raise _broken(archive, f"{member.name}: {size:,} bytes, not {member.size:,}")
    return {"size": size, "sha256": sha256.hexdigest()}


#: What the archive modules raise on bytes that are cut or forged, and on a password.
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, RuntimeError,
    NotImplementedError, OverflowError, lzma.LZMAError, struct.error,
)  # fmt: skip


@contextmanager
def _members(archive: Path) -> Iterator[list[Member]]:
    try:
        if archive.name.lower().endswith(".zip"):
            opened = zipfile.ZipFile(archive)
            members = [_zip_member(opened, info) for info in opened.infolist()]
        else:
            opened = tarfile.TarFile.open(archive)
            members = [_tar_member(opened, info) for info in opened]
    except _BROKEN as error:
        raise _broken(archive, str(error)) from None
    except OSError as error:  # gzip and lzma say it so
        raise _broken(archive, error.strerror or str(error)) from None
    with opened:
        yield members


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", 0: "file", stat.S_IFLNK: "a link"}
    # Archives from Windows have no Unix mode there: 0.
    kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "a device")
    if kind == "file" and info.orig_filename.endswith(("/", "\\")):
        kind = "folder"
    # `filename` ends at a zero byte; what stands in the archive is looked at.
    return Member(info.orig_filename, info.file_size, kind, lambda: opened.open(info), info.compress_size)


def _tar_member(opened: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    kind = "file" if info.isreg() else "folder" if info.isdir() else None
    kind = kind or ("a link" if info.issym() or info.islnk() else "a device")
    return Member(info.name, info.size, kind, lambda: opened.extractfile(info))


def _refused(archive: Path, member: str, why: str) -> UserError:
    return UserError(
        f"{archive}, member {member!r}" if member else str(archive),
        f"it {why}: refused, nothing was put in place",
        "plain files, all below the folder that they are unpacked to",
        "do not use this archive; get it again from the release's own page",
    )


def _broken(archive: Path, what: str) -> UserError:
    return UserError(
        str(archive),
        f"broken: {' '.join(what.split()) or 'it ends too early'}",
        "a whole archive without a password",
        "delete it and run the same command again, which fetches it anew",
    )


def require_space(folder: Path, needed: int) -> None:
    """Stop before a disk is filled.

    Args:
        folder: or its nearest parent that is there.
        needed: bytes.

    Raises:
        UserError: less than that, and a twentieth more, is free.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed * 1.05:
        raise UserError(
            str(folder),
            f"{free / 1e9:,.1f} GB free",
            f"{needed * 1.05 / 1e9:,.1f} GB",
            "make room, or take a folder on another disk with --to",
        )
