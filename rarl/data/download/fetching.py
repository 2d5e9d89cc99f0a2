"""Fetch the files of a source into a folder: resumed, checked, and in place only when they are whole."""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rarl.data.download.archives import require_space
from rarl.data.download.sources import Hub, Published, Web
from rarl.errors import UserError

#: Waits in seconds before the next attempt, counted anew whenever bytes have come.
WAITS = (1, 2, 4, 8)
TIMEOUT = (10, 60)
"""Seconds to connect, and between two pieces of data."""
#: Bytes written at a time; what is lost of a piece when a connection breaks off.
_PIECE = 1 << 14
_CHUNK = 1 << 20


@dataclass
class Expected:
    """What is known of one file before it is here; None where it is not."""

    size: int | None = None
    sha256: str | None = None
    git: str | None = None
    """SHA-1 that git gives the file."""
    url: str | None = None

    def differs(self, path: Path) -> str | None:
        """How a file that is here is not what it should be; None where nothing speaks against it."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size:,} bytes, not {self.size:,}"
        if self.sha256 and (found := sha256_of(path)) != self.sha256:
            return f"SHA-256 {found}, not {self.sha256}"
        if self.git and not self.sha256 and (found := _git_hash(path)) != self.git:
            return f"git hash {found}, not {self.git}"
        return None


@dataclass
class Plan:
    """The files to have, and the commit that they are of (None where the source has no versions)."""

    files: dict[str, Expected]
    commit: str | None = None


def plan(source: Hub | Web, published: Published, commit: str | None, folder: Path) -> Plan:
    """Which files a source has. Asks the hub, at `commit` or its newest one; a web source needs no asking.

    Raises:
        UserError: no network, access that needs a click, or a repository that lacks the files.
    """
    if isinstance(source, Web):
        return Plan({file.name: Expected(sha256=file.sha256, url=file.url) for file in source.files})
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    with _hub_errors(source, published, folder):
        info = HfApi().dataset_info(source.repository, revision=commit, files_metadata=True)
    wanted = filter_repo_objects(info.siblings, allow_patterns=list(source.files), key=lambda file: file.rfilename)
    files = {file.rfilename: Expected(file.size, file.lfs and file.lfs.sha256, file.blob_id) for file in wanted}
    if not files:
        raise UserError(
            f"{source} at {info.sha[:12]}",
            f"no {' or '.join(source.files)} in it",
            "the files that the adapter reads",
            published.without or "look at that page; the commit is pinned in rarl/data/download/sources.py",
        )
    if info.sha == source.commit:
        for name in files.keys() & source.sha256.keys():
            files[name].sha256 = source.sha256[name]
    return Plan(files, info.sha)


def fetch(source: Hub | Web, published: Published, wanted: Plan, folder: Path, replace: bool = False) -> None:
    """Bring every file of a plan into the folder; what is there and right is not fetched again.

    Args:
        replace: a file that is there and differs, or may differ, is replaced.

    Raises:
        UserError: no network, no room, or a file that is not the published one.
    """
    lacking = {}
    for name, file in wanted.files.items():
        path = inside(folder, name)
        here = path.is_file()
        differs = file.differs(path) if here else None
        if differs and not replace:
            raise UserError(
                str(path),
                f"there already: {differs}",
                f"the file that {source} publishes",
                "move it away and run the same command again",
            )
        if differs or not here or (replace and file.url and not file.sha256):
            lacking[name] = file
    if not lacking:
        return
    known = sum(file.size or 0 for file in lacking.values())
    require_space(folder, known or (source.about_mb or 0) * 1_000_000)
    if isinstance(source, Web):
        for name, file in lacking.items():
            from_web(file.url, folder / name, file.sha256, page=source.page)
        return
    from huggingface_hub import snapshot_download

    with _hub_errors(source, published, folder):
        snapshot_download(
            source.repository,
            repo_type="dataset",
            revision=wanted.commit,
            local_dir=folder,
            allow_patterns=list(source.files),
        )
    for name, file in lacking.items():
        path = folder / name
        differs = file.differs(path) if path.is_file() else "it did not come"
        if differs:
            path.unlink(missing_ok=True)
            raise UserError(
                str(path),
                f"{differs}; what came was deleted",
                f"the file that {source} publishes",
                "run the same command again",
            )


def inside(folder: Path, name: str) -> Path:
    """A file below a folder, by a name that came from elsewhere.

    Raises:
        UserError: the name leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise UserError(
            f"{folder}: file {name!r}",
            "a name that leads out of the folder",
            "a file below it",
            f"do not use that source; delete {folder} if you did not write it",
        )
    return folder / path


def from_web(url: str, path: Path, sha256: str | None = None, page: str = "") -> None:
    """Fetch one file over HTTP by way of `<path>.partial`, going on where an earlier attempt stopped.

    `<path>.version.partial` is the version (ETag) that the server gave with its first bytes: another one is fetched
    from its start.

    Raises:
        UserError: the server cannot be reached, refuses, keeps breaking off, or sends another file.
    """
    import requests

    partial = path.with_name(f"{path.name}.partial")
    failures = 0
    with requests.Session() as session:
        while True:
            before = _size(partial)
            try:
                _go_on(session, url, partial)
                break
            except (requests.RequestException, _BrokenOff) as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status is not None and status < 500 and status not in (408, 429):
                    raise UserError(
                        url,
                        f"the server answers {status}",
                        "the file",
                        f"look at {page or url} for where it is now, and put it to {path}",
                    ) from None
                failures = 0 if _size(partial) > before else failures + 1
                if failures > len(WAITS):
                    raise no_network(url, error, path.parent) from None
                time.sleep(WAITS[max(failures - 1, 0)])
    if sha256 and (found := sha256_of(partial)) != sha256:
        partial.unlink()
        _version(partial).unlink(missing_ok=True)
        raise UserError(
            str(path),
            f"SHA-256 {found} from {url}; the file was deleted",
            f"SHA-256 {sha256}",
            f"run the same command again; where it happens twice, the file at {page or url} has changed",
        )
    os.replace(partial, path)
    _version(partial).unlink(missing_ok=True)


class _BrokenOff(Exception):
    """The connection ended before the file did."""


def _go_on(session, url: str, partial: Path) -> None:
    """One attempt: ask for what is lacking and add it to the partial file."""
    from tqdm import tqdm

    have = _size(partial)
    # A length and a range only mean the file's own bytes where nothing is compressed on the way.
    headers, version = {"Accept-Encoding": "identity"}, _version(partial)
    if have:
        headers["Range"] = f"bytes={have}-"
        if version.is_file():
            headers["If-Range"] = version.read_text(encoding="latin-1")
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:
            # Nothing is left to send: either all of it is here, or the partial file is of something else.
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return
            partial.unlink()
            raise _BrokenOff("what was there did not belong to this file")
        answer.raise_for_status()
        if have and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server sends it from its start
        length = answer.headers.get("Content-Length", "")
        plain = "Content-Encoding" not in answer.headers
        total = have + int(length) if length.isdigit() and plain else None
        require_space(partial.parent, (total or 0) - have)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with (
            partial.open("ab" if have else "wb") as file,
            tqdm(desc=partial.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
        ):
            if not have:  # after the old bytes have gone, before the new ones come
                version.unlink(missing_ok=True)
                tag = answer.headers.get("ETag", "")
                if tag.startswith('"'):  # a weak one (W/) promises no equal bytes
                    version.write_text(tag, encoding="latin-1")
            for chunk in answer.iter_content(_PIECE):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(partial) != total:
        raise _BrokenOff(f"{_size(partial):,} of {total:,} bytes came")


def _version(partial: Path) -> Path:
    return partial.with_suffix(".version.partial")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def no_network(url: str, error: Exception, folder: Path) -> UserError:
    """What to say where a place cannot be reached."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    back = "unset HF_HUB_OFFLINE" if offline else "look at the network"
    return UserError(
        url,
        "HF_HUB_OFFLINE is set" if offline and "huggingface" in url else f"not reached: {_why(error)}",
        "a connection to that place",
        f"{back} and run the same command again, which goes on where it stopped; or copy {folder} from a machine on which "
        "this command has run. The pipeline itself needs no download: with data.root=data/phantom, its default, it "
        "runs on drawn images",
    )


def _why(error: BaseException) -> str:
    """The innermost cause, in its own words: outer ones repeat the address, which may hold a signature."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    text = " ".join(str(error).split())
    return type(error).__name__ if "://" in text or "?" in text else f"{text or type(error).__name__}"


class _hub_errors:
    """What the hub's client raises, as messages for the user. No message holds a token."""

    def __init__(self, source: Hub, published: Published, folder: Path):
        self.source, self.published, self.folder = source, published, folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        from huggingface_hub import errors

        if error is None or isinstance(error, UserError):
            return
        other = f"; or {self.published.without}" if self.published.without else ""
        if isinstance(error, errors.GatedRepoError):
            raise UserError(
                str(self.source),
                "its authors ask for a click before they give it",
                "an account that has accepted their terms",
                f"accept them on that page, log in with `hf auth login` (or set HF_TOKEN), and run the same command again{other}",
            ) from None
        if isinstance(error, errors.RepositoryNotFoundError | errors.DisabledRepoError):
            raise UserError(
                str(self.source),
                "not there for this account: moved, private or taken down",
                "a public data set repository",
                f"look at that page, and log in with `hf auth login` where it asks for it{other}",
            ) from None
        if isinstance(error, errors.RevisionNotFoundError):
            raise UserError(
                str(self.source),
                "the pinned commit is no longer there",
                "the commit that this project was tested with",
                "take the newest one on purpose with --update, and look at the audit's counts",
            ) from None
        # HTTPError is the root of the client's own network errors, which are no OSError.
        if isinstance(error, OSError | errors.HTTPError | errors.XetDownloadError):
            raise no_network(str(self.source), error, self.folder) from None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_hash(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\x00" % path.stat().st_size, usedforsecurity=False)
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
