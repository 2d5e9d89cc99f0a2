"""What every adapter shares: from the rows of a release to samples, with every row accounted for.

An adapter is a module with

* `FOLDERS`: the spellings of its folder below `data.root`,
* `DECLARED`: what is known of the published release, by form and split (see `Declared`),
* `rows(folder, split, notes)`: a generator of one `Row` or `Refused` for each row of the split, which counts in
  `notes` the quirks that it meets.

`read` does the rest: white space, empty fields, ids, duplicates, the answer's kind, and the image.
"""

import dataclasses
import hashlib
import io
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from PIL import Image
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from rarl.answers.exact import kind_of
from rarl.answers.spelling import normalise
from rarl.errors import UserError
from rarl.images import MAX_PIXELS, ONE_IMAGE, frames_fault, upright
from rarl.records import Modality, Sample, image_file

DECLARED_FILE = "declared.json"
#: Refused rows of one cause that a message names.
EXAMPLES = 3
#: The note that counts rows whose image has text in its pixels, according to its DICOM header.
BURNED_IN = "rows_with_burned_in_text"
BURNED_IN_MEANS = (
    "the image's DICOM header says that text is burned into the pixels (BurnedInAnnotation = YES), which may name "
    "the patient: look at these images"
)


class MissingRelease(UserError):
    """A release, or its file of questions, does not exist; skipped if `data.missing` is `skip`."""


@dataclass
class Row:
    """One row as in its release; `read` folds and checks the text."""

    source_id: str
    image: object
    """Path of the image below the release's folder, or the bytes of an image in a table."""
    question: object
    answers: list
    """Every accepted answer; the first is the one to train on."""
    reasoning: str | None = None
    modality: Modality = "unknown"
    category: str = ""
    origin: str = ""
    choices: list[str] = field(default_factory=list)
    number: int = 0
    """Position in the file, from 1: names the row if it has no id."""
    form: str = "original"
    """Of the release: `original`, `hub`, or an adapter's own name for a selection (see `Declared.counts`)."""


@dataclass
class Refused:
    """A row that cannot be used, and why."""

    source_id: str
    reason: str
    """Its cause, and perhaps a detail: `cause (detail)`. A cause is a fixed text: rows are counted by it."""
    form: str = "original"


@dataclass
class Declared:
    """What is known of a published release; the audit compares it with what was read.

    Attributes:
        counts: form (`original`, `hub`, ...) -> split -> name of a count -> value; `rows` first of all. The
            other names are those of `audit.measure`. A form that is missing has no published counts.
        known: Leaks, conflicts and quirks that a reader of any score should know, one sentence each.
        licence, page, citation: For the data card.
    """

    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    known: tuple[str, ...] = ()
    licence: str = ""
    page: str = ""
    citation: str = ""


def published(name: str) -> Declared:
    """Return what `adapters/published.yaml` declares of a release."""
    table = YAML(typ="safe").load(Path(__file__).with_name("adapters") / "published.yaml")
    return TypeAdapter(Declared).validate_python(table[name])


@dataclass
class Release:
    """One split of a release, with every row accounted for: samples + refused + missing = rows.

    Attributes:
        dataset, split: Their names.
        form: `original`, `hub`, or the adapter's own name for a selection.
        rows: Rows in the file(s) of this split and language, before any refusal.
        samples: The usable rows.
        refused: (row, reason) of the rows that are not; see `Refused.reason`.
        missing_images: (row, image path) of rows whose image file does not exist.
        seen: The well-formed rows, what an audit by name works on; `image_sha256` is empty without a usable image.
        notes: Counts by name of quirks that were met.
    """

    dataset: str
    split: str
    form: str = "original"
    rows: int = 0
    samples: list[Sample] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    missing_images: list[tuple[str, str]] = field(default_factory=list)
    seen: list[Sample] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)

    @property
    def refusals(self) -> dict[str, tuple[int, str]]:
        """Cause -> (number of rows, the first of them with their details), the most frequent cause first."""
        rows = defaultdict(list)
        for row, reason in self.refused:
            cause, _, detail = reason.partition(" (")
            rows[cause].append(f"{row}: {detail.removesuffix(')')}" if detail else row)
        ordered = sorted(rows.items(), key=lambda item: -len(item[1]))
        return {cause: (len(found), "; ".join(found[:EXAMPLES])) for cause, found in ordered}


def read(
    adapter: ModuleType,
    root: str | Path,
    split: str,
    *,
    dataset: str | None = None,
    images: "Images | None" = None,
    **selection,
) -> Release:
    """Read one split of a release.

    Args:
        adapter: A module of `rarl.data.adapters`.
        root: `data.root`.
        split: One of the adapter's splits.
        dataset: Name in the records; the adapter's own name if None.
        images: Inspects image files; pass one object to several calls, so that each image is decoded once.
        **selection: Further arguments of the adapter's `rows`, such as SLAKE's `content_type`.

    Raises:
        MissingRelease: The release, or the file of this split, does not exist.
        UserError: A file is malformed, or the release has no such split.
    """
    name = dataset or adapter.__name__.rpartition(".")[2]
    folder = require_release(root, adapter.FOLDERS, name)
    release, images = Release(name, split), images or Images(root)
    ids, rows_met = set(), set()
    for number, row in enumerate(adapter.rows(folder, split, release.notes, **selection), 1):
        release.rows += 1
        release.form = row.form
        where = row.source_id or f"row{getattr(row, 'number', 0) or number}"
        if reason := row.reason if isinstance(row, Refused) else _fault(row):
            release.refused.append((where, reason))
            continue
        texts = [fold(text) for text in (row.question, *row.answers)]
        release.notes["white_space_folded"] += texts != [row.question, *map(str, row.answers)]
        question, answers = texts[0], list(dict.fromkeys(texts[1:]))
        kind = kind_of(answers[0], question, row.choices)
        image, sha256, fault = images.admit(row.image, folder)
        more = {key: getattr(row, key) for key in ("reasoning", "choices", "modality", "category", "origin")}
        found = {"image": image, "image_sha256": sha256 or "", "question": question, "answers": answers, "kind": kind}
        of = {"id": f"{name}/{split}/{where}", "dataset": name, "split": split, "source_id": where}
        sample = Sample(**of, **found, **more)
        release.seen.append(sample)
        if fault is not None:
            release.refused.append((where, fault))
            continue
        if sha256 is None:
            release.missing_images.append((where, image))
            continue
        met = (image, question, answers[0])
        release.notes["duplicate_rows"] += met in rows_met
        rows_met.add(met)
        source_id = _new_id(where, ids)
        release.notes["source_ids_met_again"] += source_id != where
        release.notes[BURNED_IN] += image in images.burned_in
        release.samples.append(sample.model_copy(update={"id": f"{name}/{split}/{source_id}"}))
    return release


def _new_id(source_id: str, taken: set[str]) -> str:
    """Return the row's id, with the suffix `-2`, `-3` ... if other rows of the split have it too."""
    again, new = 1, source_id
    while new in taken:
        again += 1
        new = f"{source_id}-{again}"
    taken.add(new)
    return new


def _fault(row: Row) -> str | None:
    """Return why a row cannot be used, judged without its image."""
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
    return _image_fault(row.image) or _encoding_fault(row)


def _image_fault(image: object) -> str | None:
    if image is not None and not isinstance(image, str | bytes):
        return f"image name is no text ({type(image).__name__})"
    if not image:
        return "image of zero bytes" if isinstance(image, bytes) else "empty image name"
    return None


def _encoding_fault(row: Row) -> str | None:
    image = "" if isinstance(row.image, bytes) else row.image
    for text in (row.source_id, row.question, *row.answers, *row.choices, row.category, row.reasoning, image):
        if any("\ud800" <= letter <= "\udfff" or letter == "\x00" for letter in str(text)):
            return "text that is not UTF-8"
    return None


@dataclass
class ImageFacts:
    """What the inspection of one image file found."""

    sha256: str | None = None
    """Of the file's bytes; None if it is missing or does not decode."""
    fault: str | None = None
    """Why it cannot be used; None if it can, or if there is no file."""
    width: int = 0
    height: int = 0
    mode: str = ""
    dhash: str = ""
    """Perceptual hashes, 64 bits in hexadecimal digits."""
    phash: str = ""


#: Facts by the hash of the image's bytes, so that no stage decodes an image again. The number changes with `decode`.
KEPT = Path(".cache/pictures-4.jsonl")
_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
#: `smart_resize` of Qwen2-VL refuses longer strips.
MAX_ASPECT = 200


class Images:
    """Inspects each image once: does it exist, does it decode, what are its hashes.

    Args:
        root: `data.root`; images are named relative to it.
        unpack: Folder below `data/` for images from a table or a DICOM file, which are written as files named by their
            hash. None: they are inspected and not written.
    """

    def __init__(self, root: str | Path, unpack: Path | None = None):
        self.root, self.unpack = Path(root), unpack
        self._by_path: dict[str, ImageFacts] = {}
        self._by_hash: dict[str, ImageFacts] = {}
        self._dicom: dict[str, tuple[str, str | None, str | None]] = {}
        #: Images, as records name them, of DICOM files whose header declares text in the pixels.
        self.burned_in: set[str] = set()
        for line in KEPT.read_text(encoding="utf-8").splitlines() if KEPT.is_file() else []:
            with suppress(ValueError, TypeError):  # a line that was cut off by a kill
                facts = ImageFacts(**json.loads(line))
                self._by_hash[facts.sha256] = facts

    def admit(self, image: object, folder: Path) -> tuple[str, str | None, str | None]:
        """Return (name for the record, SHA-256, fault) of an image that a row names or contains.

        SHA-256 and fault are both None if the image does not exist. A fault does not name the file, because the name
        may identify a person.
        """
        if isinstance(image, bytes):
            facts = self.look_at(image)
            name = f"{hashlib.sha256(image).hexdigest()[:24]}.{_suffix(image)}"
            if facts.fault is None and self.unpack is not None:
                name = self._write(name, image)
            return name, facts.sha256, facts.fault
        named = Path(str(image).replace("\\", "/"))
        if ".." in named.parts or named.is_absolute():
            return str(image), None, "image path leads out of the release"
        name = (folder / named).relative_to(self.root).as_posix()
        if is_dicom(image_file(self.root, name)):
            return self._admit_dicom(name)
        facts = self.check(name)
        return name, facts.sha256, facts.fault

    def check(self, image: str) -> ImageFacts:
        """Inspect an image file, named as in records (relative to `data.root`, or below `data/`)."""
        if image not in self._by_path:
            path = image_file(self.root, image)
            try:
                facts = self.look_at(path.read_bytes()) if path.is_file() else ImageFacts()
            except OSError as error:
                facts = ImageFacts(fault=f"cannot be read ({error.strerror})")
            self._by_path[image] = facts
        return self._by_path[image]

    def look_at(self, data: bytes) -> ImageFacts:
        """Decode an image once and keep the result."""
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._by_hash:
            self._by_hash[sha256] = dataclasses.replace(decode(data), sha256=sha256)
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            with KEPT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(self._by_hash[sha256])) + "\n")
        facts = self._by_hash[sha256]
        return dataclasses.replace(facts, sha256=None) if facts.fault else facts

    def kept(self, sha256: str) -> ImageFacts:
        """Return the facts of an image that was inspected before, by this object or an earlier one."""
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


def decode(data: bytes) -> ImageFacts:
    """Check whether an image can be used, and hash it; `sha256` stays None."""
    import imagehash

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # too large images are refused just below
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            if width * height > MAX_PIXELS:
                return ImageFacts(fault=_TOO_LARGE)
            if max(width, height) > MAX_ASPECT * min(width, height):
                return ImageFacts(fault=f"a longer strip than {MAX_ASPECT}:1 ({width} x {height} pixels)")
            if fault := frames_fault(1 if image.format in ONE_IMAGE else getattr(image, "n_frames", 1)):
                return ImageFacts(fault=fault)
            mode = image.mode
            if mode[0] in "IF":  # Pillow would clip it to white
                return ImageFacts(fault=f"more than 8 bits a pixel: scale it to 8 bits first (mode {mode})")
            image.load()
            grey = upright(image).convert("L")
        hashes = str(imagehash.dhash(grey)), str(imagehash.phash(grey))
    except Image.DecompressionBombError:
        return ImageFacts(fault=_TOO_LARGE)
    except Exception as error:  # Pillow raises nearly everything on truncated or forged bytes
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Pillow names a memory address here, and a kept message must be reproducible.
        reason = "no image format that Pillow knows" if "cannot identify" in first else first
        return ImageFacts(fault=f"image does not decode ({reason})")
    return ImageFacts(None, None, width, height, mode, *hashes)


def is_dicom(path: Path) -> bool:
    """Check a file's suffix or its magic bytes: a scanner's files often have no suffix (PS3.10, 7.1)."""
    suffix = path.suffix.lower()
    if suffix in (".jpg", ".jpeg", ".png"):
        return False
    try:
        with path.open("rb") as file:
            return suffix in (".dcm", ".dicom") or file.read(132)[128:] == b"DICM"
    except (OSError, ValueError):  # missing: `check` reports it
        return False


def _suffix(data: bytes) -> str:
    return "png" if data[:4] == b"\x89PNG" else "jpg" if data[:2] == b"\xff\xd8" else "img"


def find_release(root: str | Path, folders: tuple[str, ...]) -> Path | None:
    """Return the first of the spellings that is a folder below `root`, or None."""
    return next((Path(root) / name for name in folders if (Path(root) / name).is_dir()), None)


def require_root(root: str | Path) -> Path:
    """Return `data.root` as a path.

    Raises:
        UserError: There is no such folder.
    """
    if not Path(root).is_dir():
        raise UserError(
            "params.yaml: data.root",
            f"no folder {root}",
            "the folder that holds the releases (slake/, vqa_rad/, ...)",
            "correct data.root, or run `dvc repro phantom` to make the synthetic releases",
        )
    return Path(root)


def require_release(root: str | Path, folders: tuple[str, ...], name: str) -> Path:
    """Return the release's folder.

    Raises:
        MissingRelease: None of the spellings exists, or a download is unfinished.
        UserError: There is no `data.root`.
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
            "an unfinished download",
            "the complete release",
            f"run `rarl download {name}` again to resume it",
        )
    return folder


def require_split(split: str, splits: Mapping[str, object], name: str):
    """Return the value of a split.

    Raises:
        UserError: The release has no such split.
    """
    if split not in splits:
        raise UserError(
            f"{name}: split", repr(split), "one of " + ", ".join(splits), "ask for a split that the release has"
        )
    return splits[split]


def find_file(folder: Path, names: tuple[str, ...], what: str) -> Path:
    """Return the first of the names that is a file in the folder or anywhere below it.

    Raises:
        MissingRelease: There is none.
    """
    for name in names:
        if found := sorted(path for path in folder.rglob(name) if path.is_file()):
            return min(found, key=lambda path: len(path.parts))
    raise MissingRelease(
        str(folder), f"no {' or '.join(names)} in it", what, "unpack the release without renaming its files"
    )


_DOWNLOAD_AGAIN = "download the file again from the release's own page"


def read_text(path: Path, again: str = _DOWNLOAD_AGAIN) -> str:
    """Read a file of UTF-8 text, with or without a byte-order mark.

    Args:
        path: The file.
        again: What to do about a broken one.

    Raises:
        MissingRelease: There is no such file.
        UserError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingRelease(str(path), "no such file", "a file of the release", again) from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"not UTF-8 at byte {error.start}", "UTF-8 text", again) from None
    except OSError as error:
        expected = "a readable file of UTF-8 text"
        raise UserError(str(path), f"cannot be read ({error.strerror})", expected, "check its permissions") from None


def require_columns(path: Path, columns: Iterable[str], needs: Iterable[str]) -> None:
    """Check that a table has the columns.

    Raises:
        UserError: It lacks one.
    """
    if missing := [column for column in needs if column not in columns]:
        raise UserError(
            str(path),
            f"no column {', '.join(missing)} (there: {', '.join(columns)})",
            f"the columns {', '.join(needs)}",
            "use the data set's own files, or move others out of the folder",
        )


def load_rows(path: Path, needs: tuple[str, ...] = ()) -> list[dict]:
    """Read a JSON file that contains a list of objects.

    Args:
        path: The file.
        needs: Keys that are not missing in every object.

    Raises:
        MissingRelease: There is no such file.
        UserError: It is not UTF-8 JSON, contains something else, or lacks a key.
    """
    rows = _parse(read_text(path), str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        found = type(rows).__name__
        if isinstance(rows, list):
            found += f" with {next(type(row).__name__ for row in rows if not isinstance(row, dict))} in it"
        raise UserError(str(path), found, "a list of rows (JSON objects)", _DOWNLOAD_AGAIN)
    require_columns(path, dict.fromkeys(key for row in rows for key in row), needs if rows else ())
    return rows


def load_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) of each line of a JSON-lines file that is not blank.

    Raises:
        MissingRelease: There is no such file.
        UserError: A line is not JSON, or not an object.
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
        where, found = where if ", line " in where else f"{where}, line {error.lineno}", error.msg
    except ValueError as error:  # an integer of thousands of digits
        found = str(error).split(":")[0]
    except RecursionError:
        found = "brackets nested without end"
    raise UserError(where, found, "JSON", _DOWNLOAD_AGAIN)


def fold(value: object) -> str:
    r"""Return a value as text in which runs of blanks, tabs and no-break spaces are one space.

    Line breaks are kept, because CV-Bench's options are on lines of their own. Anything but text or a number is empty.

    >>> fold(" one\ttwo "), fold(3), fold(None)
    ('one two', '3', '')
    """
    if not isinstance(value, str | int | float):
        return ""
    lines = (" ".join(line.split()) for line in str(value).strip().split("\n"))
    return "\n".join(line for line in lines if line)


def inside(place: str, name: object) -> object:
    """Return `place/name`, or `name` itself if it is not a name, for `read` to refuse."""
    return f"{place}/{name}" if name and isinstance(name, str) else name
