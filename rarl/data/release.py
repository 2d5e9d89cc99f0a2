"""What every adapter shares: from the rows of a release to samples, with every row accounted for.

An adapter is a module with

* `FOLDERS`: the spellings of its folder below `data.root`,
* `DECLARED`: what is known of the published release, by form and split (see `Declared`),
* `rows(folder, split, notes)`: a generator of one `Row` or `Refused` for each row of the split; quirks
  that it meets it counts in `notes`.

`read` does the rest: white space, empty fields, ids, duplicates, the answer's kind, and the image.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from rarl.answers import kind_of, normalise
from rarl.data.dicom import MAX_PIXELS
from rarl.errors import UserError
from rarl.images import upright
from rarl.records import Kind, Modality, Sample, image_file

DECLARED_FILE = "declared.json"
#: The note that counts rows with an image whose DICOM header says that there is text in the pixels.
BURNED_IN = "rows_with_burned_in_text"
BURNED_IN_MEANS = (
    "the image's DICOM header says that text is burned into the pixels (BurnedInAnnotation = YES), which may name "
    "the patient: look at these images"
)


class MissingRelease(UserError):
    """A release, or the file that holds its questions, is not there: may be skipped where data.missing says so."""


@dataclass
class Row:
    """One row as its release has it; text is folded and checked by `read`."""

    source_id: str
    image: object
    """Path of the image below the release's folder, or the bytes of a picture that lies in a table."""
    question: object
    answers: list
    """Every accepted answer; the first is the one to train on."""
    reasoning: str | None = None
    modality: Modality = "unknown"
    category: str = ""
    origin: str = ""
    choices: list[str] = field(default_factory=list)
    number: int = 0
    """Place in the file, from 1: names the row where it has no id."""
    form: str = "original"
    """Of the release: `original`, `hub`, or an adapter's own name for a selection (see `Declared.counts`)."""


@dataclass
class Refused:
    """A row that cannot be used, and why."""

    source_id: str
    reason: str
    form: str = "original"


@dataclass
class Declared:
    """What is known of a published release, to be reported and compared with what was read.

    Attributes:
        counts: form (`original`, `hub`, ...) -> split -> name of a count -> value; `rows` first of all. The
            other names are those of `audit.measure`. A form that is not among them has no published counts.
        known: leaks, conflicts and quirks that a reader of any score should know, one sentence each.
        licence, page, citation: for the data card.
    """

    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    known: tuple[str, ...] = ()
    licence: str = ""
    page: str = ""
    citation: str = ""


@dataclass
class Seen:
    """A well-formed row, whether or not its image is there: what an audit by name works on."""

    row: str
    image: str
    """The image's path, or the hash of a picture that lies in a table."""
    question: str
    answers: tuple[str, ...]
    kind: Kind
    modality: Modality = "unknown"
    category: str = ""


@dataclass
class Release:
    """One split of a release, every row accounted for: samples + refused + missing = rows.

    Attributes:
        dataset, split: which one.
        form: `original`, `hub`, or the adapter's own name for a selection.
        rows: rows in the file(s) of this split and language, before any refusal.
        samples: the rows that can be used.
        refused: (row, reason) of rows that cannot.
        missing_images: (row, image path) of rows whose image file is not there.
        seen: the well-formed rows, also those without an image.
        notes: quirks that were met and mended, or that a reader should know of, by name.
    """

    dataset: str
    split: str
    form: str = "original"
    rows: int = 0
    samples: list[Sample] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    missing_images: list[tuple[str, str]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)

    @property
    def refusals(self) -> dict[str, tuple[int, str]]:
        """Reason -> (rows, the first of them), the most frequent reason first."""
        first = {reason: row for row, reason in reversed(self.refused)}
        counts = Counter(reason for _, reason in self.refused)
        return {reason: (count, first[reason]) for reason, count in counts.most_common()}


def read(
    adapter: ModuleType,
    root: str | Path,
    split: str,
    *,
    dataset: str | None = None,
    pictures: "Pictures | None" = None,
    **selection,
) -> Release:
    """Read one split of a release.

    Args:
        adapter: a module of `rarl.data.adapters`.
        root: `data.root`.
        dataset: name in the records; the adapter's own name where it is None.
        pictures: what looks at image files; give one to several calls, so that no picture is decoded twice.
        selection: what the adapter's `rows` takes besides, such as SLAKE's `content_type`.

    Raises:
        MissingRelease: the release, or the file of this split, is not there.
        UserError: a file is not what it should be, or the release has no such split.
    """
    name = dataset or adapter.__name__.rpartition(".")[2]
    folder = require_release(root, adapter.FOLDERS, name)
    release = Release(name, split)
    pictures = pictures or Pictures(root)
    ids, rows_met = set(), set()
    for number, row in enumerate(adapter.rows(folder, split, release.notes, **selection), 1):
        release.rows += 1
        release.form = row.form
        where = row.source_id or f"row{getattr(row, 'number', 0) or number}"
        if isinstance(row, Refused):
            release.refused.append((where, row.reason))
            continue
        if reason := _fault(row):
            release.refused.append((where, reason))
            continue
        question, answers = fold(row.question), [fold(answer) for answer in row.answers]
        release.notes["white_space_folded"] += question != row.question or answers != [
            str(answer) for answer in row.answers
        ]
        answers = list(dict.fromkeys(answers))
        kind = kind_of(answers[0], question, row.choices)
        image, sha256, fault = pictures.admit(row.image, folder)
        release.seen.append(Seen(where, image, question, tuple(answers), kind, row.modality, row.category))
        if sha256 is None and fault is None:
            release.missing_images.append((where, image))
            continue
        if fault is not None:
            release.refused.append((where, fault))
            continue
        met = (image, question, answers[0])
        release.notes["duplicate_rows"] += met in rows_met
        rows_met.add(met)
        source_id = _new_id(where, ids)
        release.notes["source_ids_met_again"] += source_id != where
        release.notes[BURNED_IN] += image in pictures.burned_in
        release.samples.append(
            Sample(
                id=f"{name}/{split}/{source_id}",
                dataset=name,
                split=split,
                image=image,
                image_sha256=sha256,
                question=question,
                answers=answers,
                reasoning=row.reasoning,
                kind=kind,
                choices=row.choices,
                modality=row.modality,
                category=row.category,
                origin=row.origin,
                source_id=where,
            )
        )
    return release


def _new_id(source_id: str, taken: set[str]) -> str:
    """The row's id, with `-2`, `-3` ... behind it where other rows of the split have it too."""
    again, new = 1, source_id
    while new in taken:
        again += 1
        new = f"{source_id}-{again}"
    taken.add(new)
    return new


def _fault(row: Row) -> str | None:
    """Why a row cannot be used, judged without its image."""
    if row.question is not None and not isinstance(row.question, str):
        return f"question is no text ({type(row.question).__name__})"
    for answer in row.answers:  # VQA-RAD has answers that are JSON numbers
        if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
            return f"answer is no text ({type(answer).__name__})"
    if not fold(row.question):
        return "empty question"
    if not row.answers or not all(fold(answer) for answer in row.answers):
        return "empty answer"
    if not all(normalise(fold(answer)) for answer in row.answers):
        return "answer of punctuation alone"
    if row.image is not None and not isinstance(row.image, str | bytes):
        return f"image name is no text ({type(row.image).__name__})"
    if not row.image:
        return "picture of zero bytes" if isinstance(row.image, bytes) else "empty image name"
    texts = [row.source_id, row.question, *row.answers, *row.choices, row.category, row.reasoning]
    for text in [*texts, "" if isinstance(row.image, bytes) else row.image]:
        if any("\ud800" <= letter <= "\udfff" or letter == "\x00" for letter in str(text)):
            return "text that is not UTF-8"
    return None


@dataclass
class Picture:
    """What looking at one image file showed."""

    sha256: str | None = None
    """Of the file's bytes; None where it is missing or does not decode."""
    fault: str | None = None
    """Why it cannot be used; None where it can, or where there is no file."""
    width: int = 0
    height: int = 0
    mode: str = ""
    dhash: str = ""
    """Perceptual hashes, 64 bits in hexadecimal digits."""
    phash: str = ""


#: Bytes-to-picture results are kept here by the hash of the bytes, so that no stage decodes a picture again.
#: The number changes with what `decode` does.
KEPT = Path(".cache/pictures-3.jsonl")
_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
#: `smart_resize` of Qwen2-VL cannot take a longer strip than this.
MAX_ASPECT = 200


class Pictures:
    """Looks at each image once: is it there, does it decode, what are its hashes.

    Args:
        root: `data.root`; images are named relative to it.
        unpack: where pictures that lie in a table, or in a DICOM file, are written as files of their own,
            named by their hash: a folder below `data/`. None: they are looked at and not written.
    """

    def __init__(self, root: str | Path, unpack: Path | None = None):
        self.root, self.unpack = Path(root), unpack
        self._by_path: dict[str, Picture] = {}
        self._by_hash: dict[str, Picture] = {}
        self._dicom: dict[str, tuple[str, str | None, str | None]] = {}
        #: Images, as records name them, of DICOM files whose header says that there is text in the pixels.
        self.burned_in: set[str] = set()
        if KEPT.is_file():
            for line in KEPT.read_text(encoding="utf-8").splitlines():
                try:
                    picture = Picture(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # a line that was cut off by a kill
                self._by_hash[picture.sha256] = picture

    def admit(self, image: object, folder: Path) -> tuple[str, str | None, str | None]:
        """(name for the record, SHA-256, fault) of an image that a row names or holds.

        SHA-256 and fault are both None where the image is not there. A fault does not name the file: its name may
        say whose image it is.
        """
        if isinstance(image, bytes):
            picture = self.look_at(image)
            sha256 = picture.sha256 or hashlib.sha256(image).hexdigest()
            name = f"{sha256[:24]}.{_suffix(image)}"
            if picture.fault is None and self.unpack is not None:
                name = self._write(name, image)
            return name, None if picture.fault else picture.sha256, picture.fault
        named = Path(str(image).replace("\\", "/"))
        if ".." in named.parts or named.is_absolute():
            return str(image), None, "image path leads out of the release"
        name = relative(self.root, folder / named)
        if is_dicom(image_file(self.root, name)):
            return self._admit_dicom(name)
        picture = self.check(name)
        return name, picture.sha256, picture.fault

    def check(self, image: str) -> Picture:
        """Look at an image file, named as records name it (relative to `data.root`, or below `data/`)."""
        if image not in self._by_path:
            path = image_file(self.root, image)
            try:
                data = path.read_bytes() if path.is_file() else None
            except OSError as error:
                self._by_path[image] = Picture(fault=f"cannot be read ({error.strerror})")
            else:
                self._by_path[image] = Picture() if data is None else self.look_at(data)
        return self._by_path[image]

    def look_at(self, data: bytes) -> Picture:
        """Decode a picture once and keep what was seen."""
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._by_hash:
            picture = decode(data)
            self._by_hash[sha256] = dataclasses.replace(picture, sha256=sha256)
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            with KEPT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(self._by_hash[sha256])) + "\n")
        picture = self._by_hash[sha256]
        return dataclasses.replace(picture, sha256=None) if picture.fault else picture

    def kept(self, sha256: str) -> Picture:
        """What was seen of the picture with this hash, by this object or at an earlier time."""
        return self._by_hash[sha256]

    def _admit_dicom(self, name: str) -> tuple[str, str | None, str | None]:
        from rarl.data.dicom import burned_in, to_png

        if name not in self._dicom:
            path = image_file(self.root, name)
            try:
                self._dicom[name] = self.admit(to_png(path), self.root)
            except ValueError as error:
                self._dicom[name] = name, None, str(error)
            else:
                if burned_in(path):
                    self.burned_in.add(self._dicom[name][0])
        return self._dicom[name]

    def _write(self, name: str, data: bytes) -> str:
        path = self.unpack / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(data)
            os.replace(partial, path)
        return path.as_posix()


def decode(data: bytes) -> Picture:
    """Whether a picture can be used, and its hashes; `sha256` is left open."""
    import warnings

    import imagehash
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is too large is refused just below
            picture = Image.open(io.BytesIO(data))
            width, height = picture.size
            if width * height > MAX_PIXELS:
                return Picture(fault=_TOO_LARGE)
            if max(width, height) > MAX_ASPECT * min(width, height):
                strip = f"a longer strip than {MAX_ASPECT}:1"
                return Picture(fault=f"{width} x {height} pixels, {strip}")
            mode = picture.mode
            if mode[0] in "IF":  # Pillow would clip it to white
                deep = f"more than 8 bits a pixel (mode {mode})"
                return Picture(fault=f"{deep}: scale it to 8 bits first")
            picture.load()
            grey = upright(picture).convert("L")
        hashes = str(imagehash.dhash(grey)), str(imagehash.phash(grey))
    except Image.DecompressionBombError:
        return Picture(fault=_TOO_LARGE)
    except Exception as error:  # Pillow raises nearly everything on bytes that are cut or forged
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Pillow names a memory address here, and a kept message must be the same next time.
        reason = "no image format that Pillow knows" if "cannot identify" in first else first
        return Picture(fault=f"image does not decode ({reason})")
    return Picture(None, None, width, height, mode, *hashes)


def is_dicom(path: Path) -> bool:
    """By its name, or by the mark that it bears: a scanner's files often have no ending (PS3.10, 7.1)."""
    suffix = path.suffix.lower()
    if suffix in (".jpg", ".jpeg", ".png"):
        return False
    try:
        with path.open("rb") as file:
            return suffix in (".dcm", ".dicom") or file.read(132)[128:] == b"DICM"
    except (OSError, ValueError):  # not there: seen, and said, by `check`
        return False


def _suffix(data: bytes) -> str:
    return "png" if data[:4] == b"\x89PNG" else "jpg" if data[:2] == b"\xff\xd8" else "img"


def find_release(root: str | Path, folders: tuple[str, ...]) -> Path | None:
    """The first of the spellings that is a folder below `root`; None where none is."""
    return next((Path(root) / name for name in folders if (Path(root) / name).is_dir()), None)


def require_root(root: str | Path) -> Path:
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


def require_release(root: str | Path, folders: tuple[str, ...], name: str) -> Path:
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
            "put it there as data/README.md says (`rarl download --list`), or correct data.root",
        )
    download = folder / "download.json"
    if download.is_file() and '"complete": false' in download.read_text(encoding="utf-8"):
        raise MissingRelease(
            str(folder),
            "a download that is not finished",
            "the whole release",
            f"run `rarl download {name}` again: it goes on where it stopped",
        )
    return folder


def require_split(split: str, splits: Mapping[str, object], name: str):
    """What `splits` holds for a split.

    Raises:
        UserError: the release has no such split.
    """
    if split not in splits:
        raise UserError(
            f"{name}: split", repr(split), "one of " + ", ".join(splits), "ask for a split that the release has"
        )
    return splits[split]


def find_file(folder: Path, names: tuple[str, ...], what: str) -> Path:
    """The first of the names that is a file in the folder or anywhere below it.

    Raises:
        MissingRelease: there is none.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
        found = sorted(path for path in folder.rglob(name) if path.is_file())
        if found:
            return min(found, key=lambda path: len(path.parts))
    raise MissingRelease(
        str(folder),
        f"no {' or '.join(names)} in it",
        what,
        "unpack the release as it comes, without renaming its files",
    )


_DOWNLOAD_AGAIN = "download the file again from the release's own page"


def read_text(path: Path) -> str:
    """A file of UTF-8 text, with or without a byte-order mark.

    Raises:
        MissingRelease: there is no such file.
        UserError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingRelease(str(path), "no such file", "a file of the release", _DOWNLOAD_AGAIN) from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"not UTF-8 at byte {error.start}", "UTF-8 text", _DOWNLOAD_AGAIN) from None
    except OSError as error:
        raise UserError(
            str(path), f"cannot be read ({error.strerror})", "a file of UTF-8 text", "look at it"
        ) from None


def load_rows(path: Path) -> list[dict]:
    """A JSON file that holds a list of objects.

    Raises:
        MissingRelease: there is no such file.
        UserError: it is not UTF-8 JSON, or holds something else.
    """
    rows = _parse(read_text(path), str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        found = next((row for row in rows if not isinstance(row, dict)), rows) if isinstance(rows, list) else rows
        raise UserError(
            str(path),
            f"{type(rows).__name__} with {type(found).__name__} in it" if isinstance(rows, list) else type(rows).__name__,
            "a list of rows (JSON objects)",
            _DOWNLOAD_AGAIN,
        )  # fmt: skip
    return rows


def load_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each line of a JSON-lines file that is not blank.

    Raises:
        MissingRelease: there is no such file.
        UserError: a line is not JSON, or not an object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            row = _parse(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}", type(row).__name__, "a JSON object", _DOWNLOAD_AGAIN)
            yield number, row


def _parse(text: str, where: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if ", line " in where else f"{where}, line {error.lineno}"
        raise UserError(place, error.msg, "JSON", _DOWNLOAD_AGAIN) from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(where, str(error).split(":")[0], "JSON", _DOWNLOAD_AGAIN) from None
    except RecursionError:
        raise UserError(where, "brackets nested without end", "JSON", _DOWNLOAD_AGAIN) from None


def fold(value: object) -> str:
    """A value as text: runs of blanks, tabs and no-break spaces become one space; no text or number: empty.

    Line breaks are kept where the text has several lines on purpose (CV-Bench's options).
    """
    if not isinstance(value, str | int | float):
        return ""
    lines = (" ".join(line.split()) for line in str(value).strip().split("\n"))
    return "\n".join(line for line in lines if line)


def relative(root: Path, path: Path) -> str:
    """A path below `data.root` with forward slashes."""
    return path.relative_to(root).as_posix()


def inside(place: str, name: object) -> object:
    """`place/name`; what is no name at all is left as it is, for `read` to refuse."""
    return f"{place}/{name}" if name and isinstance(name, str) else name
