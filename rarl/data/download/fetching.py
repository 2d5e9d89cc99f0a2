"""Fetch the files of a source into a folder: resumed, checked, and renamed into place only when they are complete."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rarl.data.download.archives import require_space, safe_path
from rarl.data.download.sources import Hub, Published, Web
from rarl.errors import UserError

#: Seconds without an answer, or without data, after which an attempt is repeated.
TIMEOUT = 60


@dataclass
class Expected:
    """What is known of a file before it is downloaded; None if it is unknown."""

    size: int | None = None
    sha256: str | None = None
    git: str | None = None
    """SHA-1 that git gives the file; the hub has a SHA-256 of large files only."""
    url: str | None = None

    def differs(self, path: Path) -> str | None:
        """Return how an existing file differs, or None if it does not."""
        from huggingface_hub.utils.sha import git_hash

        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size:,} bytes, not {self.size:,}"
        if self.sha256:
            found = sha256_of(path)
            return None if found == self.sha256 else f"SHA-256 {found}, not {self.sha256}"
        if self.git and (found := git_hash(path.read_bytes())) != self.git:
            return f"git hash {found}, not {self.git}"
        return None


def plan(
    source: Hub | Web, published: Published, commit: str | None, folder: Path
) -> tuple[dict[str, Expected], str | None]:
    """List the files of a source: the hub's at `commit` or at its newest one, a web page's from the table.

    Returns:
        The wanted files by name, and their commit (None if the source has no versions).

    Raises:
        UserError: There is no network, the access needs a click, or the repository lacks the files.
    """
    if isinstance(source, Web):
        return {file.name: Expected(sha256=file.sha256, url=file.url) for file in source.files}, None
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    with _network_errors(str(source), folder, published.without):
        info = HfApi().dataset_info(source.repository, revision=commit, files_metadata=True)
    wanted = filter_repo_objects(info.siblings, allow_patterns=list(source.files), key=lambda file: file.rfilename)
    files = {file.rfilename: Expected(file.size, file.lfs and file.lfs.sha256, file.blob_id) for file in wanted}
    if not files:
        raise UserError(
            f"{source} at {info.sha[:12]}",
            f"no {' or '.join(source.files)} in it",
            "the files that the adapter reads",
            published.without or "look at that page; the commit is pinned in rarl/data/download/sources.yaml",
        )
    if info.sha == source.commit:
        for name in files.keys() & source.sha256.keys():
            files[name].sha256 = source.sha256[name]
    return files, info.sha


def fetch(
    source: Hub | Web,
    published: Published,
    wanted: dict[str, Expected],
    commit: str | None,
    folder: Path,
    replace: bool = False,
) -> None:
    """Download the wanted files that are missing, or that differ if `replace` is set.

    Raises:
        UserError: There is no network or no room, or a file is not the published one.
    """
    missing = {}
    for name, file in wanted.items():
        path = inside(folder, name)
        differs = file.differs(path) if path.is_file() else None
        if differs and not replace:
            raise UserError(
                str(path), f"exists: {differs}", f"the file of {source}", "move it away and run the same command again"
            )
        if differs or not path.is_file() or (replace and file.url and not file.sha256):
            missing[name] = file
    if not missing:
        return
    require_space(folder, sum(file.size or 0 for file in missing.values()) or (source.about_mb or 0) * 1_000_000)
    if isinstance(source, Web):
        for name, file in missing.items():
            from_web(file.url, folder / name, file.sha256, source.page)
        return
    from huggingface_hub import snapshot_download

    with _network_errors(str(source), folder, published.without):
        snapshot_download(
            source.repository,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            allow_patterns=list(source.files),
        )
    for name, file in missing.items():
        path = folder / name
        if differs := file.differs(path) if path.is_file() else "it was not downloaded":
            path.unlink(missing_ok=True)
            raise _not_published(path, differs, str(source))


def inside(folder: Path, name: str) -> Path:
    """Return a file below a folder, by a name from elsewhere.

    Raises:
        UserError: The name leads out of the folder.
    """
    path = safe_path(name)
    if path is None or not path.parts:
        raise UserError(
            f"{folder}: file {name!r}",
            "a name that leads out of the folder",
            "a file below it",
            f"do not use that source; delete {folder} if you did not write it",
        )
    return folder / path


def from_web(url: str, path: Path, sha256: str | None = None, page: str = "") -> None:
    """Download one file over HTTP, and resume what an earlier run left.

    The hub client's `http_get` resumes and repeats attempts; pooch would start from zero each time. The partial file
    has the server's version (ETag) in its name, so that two versions are never joined.

    Raises:
        UserError: The server cannot be reached, refuses, keeps disconnecting, or sends another file.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

    # Lengths and ranges count the file's own bytes only without compression.
    headers = {"Accept-Encoding": "identity"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with _network_errors(url, path.parent, page=page or url):
        with http_stream_backoff("GET", url, headers=headers, timeout=TIMEOUT, max_retries=4) as response:
            hf_raise_for_status(response)
            compressed = "Content-Encoding" in response.headers
            size = 0 if compressed else int(response.headers.get("Content-Length", 0))
            tag = response.headers.get("ETag", "")
        if tag.startswith('"'):  # a weak one (W/) does not promise equal bytes
            headers["If-Range"] = tag
        version = hashlib.sha256(tag.encode()).hexdigest()[:8]
        partial = path.with_name(f"{path.name}.{version}.partial")
        for other in path.parent.glob(f"{path.name}.*.partial"):
            if other != partial or other.stat().st_size > size:
                other.unlink()
        require_space(path.parent, size)
        with partial.open("ab") as file:
            have, name = file.tell(), path.name
            http_get(url, file, resume_size=have, headers=headers, expected_size=size or None, displayed_filename=name)
    if differs := Expected(sha256=sha256).differs(partial):
        partial.unlink()
        raise _not_published(path, differs, page or url)
    os.replace(partial, path)


def _not_published(path: Path, differs: str, source: str) -> UserError:
    return UserError(
        str(path),
        f"{differs}; the downloaded file was deleted",
        f"the file that {source} publishes",
        "run the same command again; if it happens twice, the published file has changed",
    )


@contextmanager
def _network_errors(where: str, folder: Path, alternative: str = "", page: str = "") -> Iterator[None]:
    """Turn what the hub's client raises into messages for the user. No message contains a token.

    Args:
        where: The address.
        folder: The target.
        alternative: What else the user can do where access is refused.
        page: The web page to look at where the server refuses a file.
    """
    from huggingface_hub import errors

    other = f"; or {alternative}" if alternative else ""
    try:
        yield
    except errors.GatedRepoError:
        fix = f"accept them on that page, log in with `hf auth login` and run the same command again{other}"
        terms = "an account that has accepted their terms"
        raise UserError(where, "its authors ask for a click before they give it", terms, fix) from None
    except (errors.RepositoryNotFoundError, errors.DisabledRepoError):
        found = "not available to this account: moved, private or taken down"
        fix = f"look at that page, and log in with `hf auth login` if it asks for it{other}"
        raise UserError(where, found, "a public data set repository", fix) from None
    except errors.RevisionNotFoundError:
        fix = "take the newest one with --update, and look at the audit's counts"
        tested = "the commit that this project was tested with"
        raise UserError(where, "the pinned commit no longer exists", tested, fix) from None
    # HTTPError is the root of the client's own network errors, which are not OSErrors.
    except (OSError, errors.HTTPError, errors.XetDownloadError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 500)
        if page and status < 500 and status not in (408, 429):
            fix = f"look at {page} for where it is now, and put it into {folder}"
            raise UserError(where, f"the server answers {status}", "the file", fix) from None
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # the disk
        raise _no_network(where, error, folder) from None


def _no_network(where: str, error: Exception, folder: Path) -> UserError:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return UserError(
        where,
        "HF_HUB_OFFLINE is set" if offline else f"not reached: {_reason(error)}",
        "a connection to that place",
        f"{'unset HF_HUB_OFFLINE' if offline else 'check the network'} and run the same command again, which resumes "
        f"the download; or copy {folder} from a machine on which this command has run. The pipeline itself needs no "
        "download: with data.root=data/phantom, its default, it runs on synthetic images",
    )


def _reason(error: BaseException) -> str:
    """Return the innermost cause: outer ones repeat the address, which may contain a signature."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    text = " ".join(str(error).split())
    return type(error).__name__ if "://" in text or "?" in text else f"{text or type(error).__name__}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
