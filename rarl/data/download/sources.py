"""Where each release is published, and which version of it this project pins: the types of `sources.yaml`."""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter
from ruamel.yaml import YAML


class Source:
    """Where a release is published; prints as its page."""

    page: str

    def __str__(self) -> str:
        return self.page


@dataclass(frozen=True)
class Hub(Source):
    """Files of a data set repository on the Hugging Face hub.

    Attributes:
        repository: Owner and name.
        commit: 40 hexadecimal digits; None is resolved, and recorded, by the first download.
        files: Patterns of the files that an adapter reads.
        sha256: file -> hash, of files whose hash is known independently of the hub.
        about_mb: Size of the download; the disk check takes the hub's own figures.
    """

    repository: str
    commit: str | None
    files: tuple[str, ...]
    sha256: dict[str, str] = field(default_factory=dict)
    about_mb: int | None = None

    @property
    def page(self) -> str:
        """The repository's address."""
        return f"https://huggingface.co/datasets/{self.repository}"


@dataclass(frozen=True)
class File:
    """One file on a web server; `sha256` is None if no record of it is known."""

    name: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Web(Source):
    """Plain files over HTTP."""

    page: str
    files: tuple[File, ...]
    about_mb: int | None = None


@dataclass(frozen=True)
class ByHand(Source):
    """A release that no program may or can download: `what` names the files to put into the folder."""

    page: str
    what: str
    about_mb: int | None = None


@dataclass(frozen=True)
class Published:
    """One data set; the first of its forms is the default."""

    forms: dict[str, Hub | Web | ByHand]
    without: str = ""
    """What to do where the download is refused; empty where there is no alternative."""


_TABLE = Path(__file__).with_name("sources.yaml")
SOURCES = TypeAdapter(dict[str, Published]).validate_python(YAML(typ="safe").load(_TABLE))
