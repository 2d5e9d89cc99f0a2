"""What every adapter shares: the result of reading a release, its folder, and the check of its images."""

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stages.errors import UserError
from stages.records import Sample


class MissingRelease(UserError):
    """A release, or the file that holds its questions, is not there: may be skipped where data.missing says so."""


@dataclass
class Release:
    """One split of a release, every row accounted for: samples + refused + missing = rows.

    Attributes:
        dataset, split: which one.
        rows: rows in the file(s) of this split and language, before any refusal.
        samples: the rows that can be used.
        refused: (row, reason) of rows that cannot.
        missing_images: (row, image path) of rows whose image file is not there.
        notes: quirks that were met and mended, or that a reader should know of, by name.
    """

    dataset: str
    split: str
    rows: int = 0
    samples: list[Sample] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    missing_images: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)
    _ids: Counter = field(default_factory=Counter, repr=False)

    def refuse(self, row: str, reason: str) -> None:
        self.refused.append((row, reason))

    def admit(self, row: str, image: str, pictures: "Pictures") -> str | None:
        """The SHA-256 of a row's image, or None after noting why the row cannot be used."""
        sha256, fault = pictures.check(image)
        if sha256 is None and fault is None:
            self.missing_images.append((row, image))
        elif fault is not None:
            self.refuse(row, fault)
        return sha256

    def new_id(self, source_id: str) -> str:
        """`<dataset>/<split>/<source id>`; a source id that comes again gets a number."""
        self._ids[source_id] += 1
        seen = self._ids[source_id]
        if seen > 1:
            self.notes["source_ids_met_again"] += 1
        return f"{self.dataset}/{self.split}/{source_id}" + (f"-{seen}" if seen > 1 else "")


class Pictures:
    """Looks at each image file once: is it there, does it decode, what is its hash.

    Args:
        root: `data.root`; images are named relative to it.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self._seen: dict[str, tuple[str | None, str | None]] = {}

    def check(self, image: str) -> tuple[str | None, str | None]:
        """(SHA-256, None) of a good image, (None, reason) of a bad one, (None, None) of a missing one."""
        if image not in self._seen:
            self._seen[image] = self._look(image)
        return self._seen[image]

    def _look(self, image: str) -> tuple[str | None, str | None]:
        from PIL import Image

        if ".." in Path(image).parts or Path(image).is_absolute():
            return None, f"image path leads out of the release: {image}"
        path = self.root / image
        if not path.is_file():
            return None, None
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return (
                None,
                f"image does not decode: {image} ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            )
        return hashlib.sha256(data).hexdigest(), None


def find_release(root: Path, folders: tuple[str, ...]) -> Path | None:
    """The first of the spellings that is a folder below `root`; None where none is."""
    return next((Path(root) / name for name in folders if (Path(root) / name).is_dir()), None)


def require_root(root: Path) -> Path:
    """`data.root` as a path.

    Raises:
        UserError: there is no such folder.
    """
    if not Path(root).is_dir():
        raise UserError(
            "params.yaml: data.root",
            f"no folder {root}",
            "the folder that holds the releases (slake/, vqa_rad/, ...)",
            "correct data.root, or run `dvc repro phantom` to draw the embedded releases",
        )
    return Path(root)


def require_release(root: Path, folders: tuple[str, ...], name: str) -> Path:
    """The release's folder.

    Raises:
        MissingRelease: none of the spellings is there.
        UserError: there is no `data.root`.
    """
    folder = find_release(require_root(root), folders)
    if folder is None:
        raise MissingRelease(
            f"{root}: the {name} release",
            "no such folder",
            "one of " + ", ".join(f"{spelling}/" for spelling in folders),
            f"unpack the {name} release there, or correct data.root",
        )
    return folder


def require_split(split: str, files: dict[str, str], name: str) -> str:
    """The file of a split.

    Raises:
        UserError: the release has no such split.
    """
    if split not in files:
        raise UserError(
            f"{name}: split",
            repr(split),
            "one of " + ", ".join(files),
            "ask for a split that the release has",
        )
    return files[split]


def load_rows(path: Path, text: str | None = None, where: str | None = None) -> list[dict]:
    """A JSON file (or one line of JSON in `text`) that holds a list of objects.

    Raises:
        MissingRelease: there is no such file.
        UserError: it is not UTF-8 JSON, or holds something else.
    """
    fix = "download the file again from the release's own page"
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig") if text is None else text)
    except FileNotFoundError:
        raise MissingRelease(str(path), "no such file", "a file of the release", fix) from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"not UTF-8 at byte {error.start}", "UTF-8 text", fix) from None
    except json.JSONDecodeError as error:
        line = where or f"{path}, line {error.lineno}"
        raise UserError(line, error.msg, "JSON", fix) from None
    rows = value if text is None else [value]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            where or str(path), type(value).__name__, "a list of rows (JSON objects)", fix
        )
    return rows


def fold(text: object) -> str:
    """A value as text on one line: runs of blanks, tabs and no-break spaces become one space."""
    return " ".join(str(text).split())


def relative(root: Path, path: Path) -> str:
    """A path below `data.root` with forward slashes."""
    return path.relative_to(root).as_posix()
