"""Unpack zip and tar archives so that nothing is ever written outside their folder.

`tarfile` (with its `data` filter) and `zipfile` do the unpacking. What they do not promise is checked before the first
byte is written: an archive is refused as a whole, bombs are refused, links are refused, and names are checked for
Windows too. The members go into `<folder>.partial`, which is renamed to the folder when the last one is complete.
"""

import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from itertools import compress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from rarl.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Larger than any release here when unpacked (SAT, the largest, is 5 GB).
MAX_BYTES = 50_000_000_000
MAX_MEMBERS = 500_000
#: An archive that unpacks to this many times its size contains nothing but repetition ...
MAX_RATIO = 200
#: ... which is harmless below this size in bytes.
RATIO_FROM = 10_000_000
PICKLES = (".pkl", ".pickle", ".p")
_SYSTEM = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
#: What the archive modules raise on truncated or forged bytes, and on a password. gzip and bz2 raise an OSError
#: without a number.
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError)
_BROKEN += (RuntimeError, NotImplementedError, OverflowError)


class Unpacked(NamedTuple):
    """The content of an archive: the paths below its folder, and the number of members left out by reason."""

    files: list[str]
    left_out: Counter


def stem(archive: Path) -> str | None:
    """Return an archive's name without its suffix, or None for a file that is not an archive.

    >>> stem(Path("imgs.tar.gz"))
    'imgs'
    """
    suffix = next((end for end in SUFFIXES if archive.name.lower().endswith(end)), None)
    return suffix and archive.name[: -len(suffix)]


def unpack(archive: Path, folder: Path, *, replace: bool = False, nested: bool = True) -> Unpacked:
    """Unpack an archive into a folder, and the archives in it beside themselves.

    A single top folder with the folder's own name is not repeated. Pickle files run code when they are opened: they
    are left in the archive, and counted.

    Args:
        archive: A zip or tar file.
        folder: The target; its parent exists.
        replace: Replace an existing folder of that name.
        nested: Also unpack archives inside the archive.

    Raises:
        UserError: A member points outside the folder or is not a plain file, the archive is broken, it would
            unpack to more than the limits, or the folder exists.
    """
    if not replace and os.path.lexists(folder):
        raise UserError(
            str(folder),
            "exists, and this command did not write it",
            f"room for the content of {archive.name}",
            "move that folder away, or delete it, and run the same command again",
        )
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial)  # of a run that was interrupted
    try:
        partial.mkdir()
        left_out = _extract(archive, partial)
        top = partial / folder.name
        content = top if top.is_dir() and len(os.listdir(partial)) == 1 else partial
        for inner in sorted(path for path in content.rglob("*") if nested and stem(path)):
            inside = inner.with_name(stem(inner))
            if inner.is_file() and not inside.exists():
                left_out += unpack(inner, inside, nested=False).left_out
        files = sorted(path.relative_to(content).as_posix() for path in content.rglob("*") if path.is_file())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(content, folder)
    except OSError as error:
        raise UserError(
            str(archive),
            f"cannot be unpacked: {error.strerror or error}",
            f"files that can be written to {folder}",
            "check the disk and the permissions of the folder; some systems do not allow every file name",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Unpacked(files, left_out)


def _extract(archive: Path, folder: Path) -> Counter:
    """Write the plain files of an archive below a folder, and count by reason what is left in it."""
    left_out, wanted, seen = Counter(), [], set()
    is_zip = archive.name.lower().endswith(".zip")
    try:
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as opened:
            members = opened.infolist() if is_zip else opened.getmembers()
            # The `filename` of a zip member ends at a zero byte, and `orig_filename` does not.
            names = [member.orig_filename if is_zip else member.name for member in members]
            files = [_is_file(archive, member, name) for member, name in zip(members, names)]
            _check_sizes(archive, [member.file_size if is_zip else member.size for member in members])
            for member, path in compress(zip(members, map(safe_path, names)), files):
                if path in seen:
                    raise _refused(archive, str(path), "occurs twice in it")
                seen.add(path)
                reason = _left_out(path)
                left_out.update([reason] if reason else [])
                wanted += [] if reason else [member]
            opened.extractall(folder, wanted, **({} if is_zip else {"filter": "data"}))
    except _BROKEN as error:
        raise _broken(archive, error) from None
    except OSError as error:
        if error.errno is not None:
            raise  # the disk, not the archive
        raise _broken(archive, error) from None
    return left_out


def _is_file(archive: Path, member: zipfile.ZipInfo | tarfile.TarInfo, name: str) -> bool:
    """Return False for a folder; refuse what is no plain file either, and a name that leads outside on any system."""
    if isinstance(member, tarfile.TarInfo):
        link, folder, other = member.issym() or member.islnk(), member.isdir(), not member.isreg()
    else:
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 in archives from Windows
        link, folder = kind == stat.S_IFLNK, kind == stat.S_IFDIR or name.endswith(("/", "\\"))
        other = kind not in (0, stat.S_IFREG)
    if link or (other and not folder):
        raise _refused(archive, name, "is a link" if link else "is a device")
    path = safe_path(name)
    if path is None or not (folder or path.parts):
        raise _refused(archive, name, "leads out of the folder")
    return not folder


def safe_path(name: str) -> PurePosixPath | None:
    """Return a relative path by a name from elsewhere, or None if it leads out of its folder on any system.

    >>> safe_path("a/b.txt"), safe_path("a/../../b.txt"), safe_path("C:b.txt")
    (PurePosixPath('a/b.txt'), None, None)
    """
    path = PureWindowsPath(name)  # knows both separators, drives and network shares
    # Windows drops spaces and dots at the end of a name, so that ".. " leads up there.
    unsafe = path.anchor or ":" in name or "\x00" in name or any(not part.strip(" .") for part in path.parts)
    return None if unsafe else PurePosixPath(*path.parts)


def _left_out(path: PurePosixPath) -> str | None:
    if path.suffix.lower() in PICKLES:
        return "pickle files, which run code when opened"
    if any(part in _SYSTEM or part.startswith("._") for part in path.parts):
        return "files of an operating system"
    return None


def _check_sizes(archive: Path, sizes: list[int]) -> None:
    total, packed = sum(sizes), archive.stat().st_size
    if len(sizes) > MAX_MEMBERS:
        raise _refused(archive, "", f"has {len(sizes):,} members, more than {MAX_MEMBERS:,}")
    if total > MAX_BYTES:
        raise _refused(archive, "", f"unpacks to {total:,} bytes, more than {MAX_BYTES:,}")
    if total > RATIO_FROM and total > MAX_RATIO * packed:
        raise _refused(archive, "", f"unpacks {packed:,} bytes to {total:,}: more than {MAX_RATIO} times")
    require_space(archive.parent, total)


def _refused(archive: Path, member: str, why: str) -> UserError:
    return UserError(
        f"{archive}, member {member!r}" if member else str(archive),
        f"it {why}: refused, nothing was unpacked",
        "plain files, all below the folder that they are unpacked to",
        "do not use this archive; get it again from the release's own page",
    )


def _broken(archive: Path, error: Exception) -> UserError:
    return UserError(
        str(archive),
        f"broken: {' '.join(str(error).split()) or 'it ends too early'}",
        "a complete archive without a password",
        "delete it and run the same command again, which downloads it again",
    )


def require_space(folder: Path, needed: int) -> None:
    """Check that there is room on the disk, with 5 % to spare.

    Args:
        folder: A folder, which need not exist yet.
        needed: Size in bytes.

    Raises:
        UserError: There is less room.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed * 1.05:
        raise UserError(
            str(folder),
            f"{free / 1e9:,.1f} GB free",
            f"{needed * 1.05 / 1e9:,.1f} GB",
            "make room, or give a folder on another disk with --to",
        )
