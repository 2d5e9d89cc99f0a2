"""Your own images and questions, as training set (`train.source: own`) or as benchmark (`benchmarks: [own]`).

`own/` below `data.root` holds the images, in any folders, and one table (`own.table`) in UTF-8. CSV with a
header and `,`, `;` or tab between cells, and `|` between several accepted answers or choices:

    image,question,answer,modality,patient,reasoning,choices
    scans/0001.dcm,Is the gizzard bent?,no,CT,case 7,The gizzard runs straight.,
    scans/0002.png,What is the antenna made of?,copper|brass,X-ray,case 8,,

or JSON lines with the same names, where several answers or choices are a list:

    {"image": "scans/0003.png", "question": "How many gears?", "answer": "3", "choices": ["2", "3", "4"]}

`image`, `question` and `answer` are required. `modality` takes common names ("MRI", "T2", "chest radiograph").
With `choices` the answer is one of them, by text or by letter, and the options are written below the question unless
it names them itself. A `split` (train, dev, test) in every row is used as it is; without it the rows are split by
patient or image, see `training`. Other columns are not read.

Patients' names or numbers are used for the split only: no record, count, message or file contains one. Samples are
named by the row's number below the header. The records contain the paths of usable images, except those of DICOM
files, which are unpacked under their hash (`rarl/data/dicom.py`): do not name images by anything that identifies a
person.
"""

import csv
import hashlib
import io
import json
import re
import string
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rarl.answers.exact import equals
from rarl.data.adapters.cv_bench import with_options
from rarl.data.release import (
    Declared,
    Images,
    MissingRelease,
    Refused,
    Release,
    Row,
    find_release,
    fold,
    read,
    read_text,
    require_root,
    require_split,
)
from rarl.errors import UserError
from rarl.params import Own, Params
from rarl.records import Modality

FOLDERS = ("own",)
DECLARED = Declared(counts={}, licence="yours", known=("Nothing is declared of your own data.",))
NEEDED = ("image", "question", "answer")
COLUMNS = (*NEEDED, "reasoning", "modality", "patient", "split", "choices", "category")
SEVERAL = ("answer", "choices")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "development", "val", "valid", "validate", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
#: Words of a modality's name. Two of different kinds ("PET/CT") give `other`, as do unknown words.
WORDS: dict[Modality, str] = {
    "mri": "mri mr mrt mrs mra fmri t1 t2 t1w t2w flair dwi magnetic",
    "ct": "ct cta cect hrct tomography",
    "xray": "xray xrays ray rays xr cxr cr dx dr mg rg radiograph radiographs radiography mammogram mammography",
    "pathology": "pathology histology histopathology cytology microscopy slide wsi sm h&e he",
    "other": "pet spect positron emission optical oct ultrasound us",
}
_MODALITY = {word: modality for modality, words in WORDS.items() for word in words.split()}
_WORD = re.compile(r"[^\W_]+")


def rows(
    folder: Path, split: str, notes: Counter, table: str = "rows.csv", chosen: list[Row | Refused] | None = None
) -> Iterator[Row | Refused]:
    """Yield the rows: all as the `test` split of a benchmark, or those `chosen` for a split of `training`."""
    if chosen is None:
        require_split(split, {"test": None}, "your own data as a benchmark")
        chosen = (entry.row for entry in _entries(folder, table, notes))
    yield from chosen


def training(root: Path, params: Params, images: Images) -> dict[str, Release]:
    """Return the rows as training, development and test set.

    If the table has no `split`, the rows are divided by `own.dev_share`, `own.test_share` and `own.seed`, within each
    modality. Rows of one patient stay together (`own.split_by: patient`), and so do rows of one image, identified by
    its content; both chain, so that patients who share an image stay together too. The result does not depend on the
    order of the rows.

    Raises:
        MissingRelease: The folder or the table does not exist.
        UserError: The table cannot be read or split.
    """
    own = params.own
    folder = find_release(require_root(root), FOLDERS)
    if folder is None:
        raise MissingRelease(
            f"{root}: your own data",
            "no folder own/",
            "own/ with your images and a table of questions",
            "make it (data/README.md, 'Your own images'), or correct data.root or train.source",
        )
    notes = Counter()
    entries = list(_entries(folder, own.table, notes))
    where = str(folder / own.table)
    if any(entry.split for entry in entries):
        splits = _given(entries, where, own)
    else:
        splits = _split_by_group([_placed(entry, folder, images) for entry in entries], where, own)
    releases = {
        split: read(
            sys.modules[__name__],
            root,
            split,
            images=images,
            chosen=[entry.row for entry in entries if splits[entry.id] == split],
        )
        for split in ("train", "dev", "test")
    }
    releases["train"].notes += notes
    for entry in entries:
        if own.split_by == "patient" and not entry.patient:
            releases[splits[entry.id]].notes["rows_without_patient"] += 1
    for split in sorted({"train", "test", *splits.values()}):
        if not releases[split].samples:
            raise UserError(
                where,
                f"no usable row for `{split}`{_why(releases)}",
                "a usable row in each split",
                "correct or add rows, or change the split",
            )
    return releases


def table_file(folder: Path, table: str) -> Path:
    """Return the path of the table `own.table`.

    Raises:
        MissingRelease: It does not exist, or has an unknown format.
    """
    path, there = folder / table, tables(folder)
    if not path.is_file() or path.suffix.lower() not in _READERS:
        found = "no such file" if not path.is_file() else "an unknown format"
        raise MissingRelease(
            str(path),
            f"{found} (tables there: {', '.join(there) or 'none'})",
            "your questions as .csv, .tsv or .jsonl",
            f"set own.table to {there[0]}" if there else "put the table there, or correct own.table",
        )
    return path


def tables(folder: Path) -> list[str]:
    """List the files that could be the table; image names are not listed, because they may identify a person."""
    return [path.name for path in sorted(folder.glob("*")) if path.suffix.lower() in _READERS]


@dataclass
class _Entry:
    """One row of the table, and what decides its split."""

    id: str
    row: Row | Refused
    patient: str = ""
    split: str = ""
    image: str = ""
    """Hash of the image's content; if it is unusable, its path or the row's id."""
    usable: bool = False


def _entries(folder: Path, table: str, notes: Counter) -> Iterator[_Entry]:
    path = table_file(folder, table)
    text = read_text(path, "save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')")
    columns, lines = _READERS[path.suffix.lower()](path, text)
    _require_columns(path, columns)
    notes["columns_not_read"] += len(set(columns) - set(COLUMNS))
    for number, (line, cells) in enumerate(lines, 1):
        id = f"row{number}"
        reason = cells if isinstance(cells, str) else _fault(cells)
        if reason:
            yield _Entry(id, Refused(f"{id}, line {line}", reason))
            continue
        row = _row(id, line, cells)
        patient, split = (fold(cells.get(name)).casefold() for name in ("patient", "split"))
        yield _Entry(id, row, patient, split)


def _csv(path: Path, text: str) -> tuple[list[str], list[tuple[int, dict | str]]]:
    """Return the column names, and (line, cells or their fault) of each row."""
    first = text.partition("\n")[0]

    def known(delimiter: str) -> int:
        return sum(fold(cell).lower() in COLUMNS for cell in first.replace('"', "").split(delimiter))

    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=known), strict=True)
    columns, lines, start = None, [], 1
    try:
        for cells in reader:
            if columns is None:
                columns = [fold(cell).lower() for cell in cells]
            elif cells and len(cells) != len(columns):
                lines.append((start, "more or fewer cells than the header has"))
            elif cells:
                row = dict(zip(columns, cells))
                for name in SEVERAL:
                    row[name] = [part for part in row.get(name, "").split("|") if part.strip()]
                lines.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {start}",
            str(error),
            "cells with a closing quotation mark for each opening one",
            "correct the row that starts there, or save the table again",
        ) from None
    return columns or [], lines


def _jsonl(path: Path, text: str) -> tuple[list[str], list[tuple[int, dict | str]]]:
    lines: list[tuple[int, dict | str]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            row = {fold(name).lower(): value for name, value in row.items()}
            columns |= dict.fromkeys(row)
        lines.append((number, row if isinstance(row, dict) else "not a JSON object"))
    return list(columns), lines


_READERS = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl}


def _require_columns(path: Path, columns: list[str]) -> None:
    missing = [name for name in NEEDED if name not in columns]
    twice = [name for name in COLUMNS if columns.count(name) > 1]
    if not missing and not twice:
        return
    # A table without a header has cells in its first line, which must not be shown.
    shown = ", ".join(columns) if set(columns) & set(COLUMNS) else "no column name that is known here"
    raise UserError(
        f"{path}, line 1" if path.suffix.lower() != ".jsonl" else str(path),
        f"no column {', '.join(missing)} (there: {shown})" if missing else f"column {', '.join(twice)} twice",
        f"{', '.join(NEEDED)}, and optionally {', '.join(COLUMNS[len(NEEDED) :])}",
        "correct the names of the columns",
    )


def _fault(cells: dict) -> str | None:
    """Return which value of a row is not text (JSON lines only)."""
    for name in COLUMNS:
        value = cells.get(name)
        for part in value if name in SEVERAL and isinstance(value, list) else [value]:
            if isinstance(part, bool) or not isinstance(part, str | int | float | None):
                return f"`{name}` is no text"
    return None


def _row(id: str, line: int, cells: dict) -> Row | Refused:
    question = cells.get("question")
    answers, choices = (
        [part.strip() if isinstance(part, str) else part for part in _list(cells.get(name))] for name in SEVERAL
    )
    choices = [fold(choice) for choice in choices]
    if choices:
        chosen = [_index(fold(answer), choices) for answer in answers]
        if not 2 <= len(choices) <= 26 or not all(choices):
            return Refused(f"{id}, line {line}", "`choices` are not 2 to 26 texts")
        if None in chosen or not chosen:
            return Refused(f"{id}, line {line}", "the answer is none of the choices")
        answers = [form for i in chosen for form in (choices[i], f"({string.ascii_uppercase[i]})")]
        question = _with_options(fold(question), choices)
    return Row(
        source_id=id,
        image=str(cells.get("image") or "").strip(),
        question=question,
        answers=answers,
        reasoning=fold(cells.get("reasoning")) or None,
        modality=modality_of(fold(cells.get("modality"))),
        category=fold(cells.get("category")),
        choices=choices,
    )


def _list(value: object) -> list:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]


def _index(answer: str, choices: list[str]) -> int | None:
    hits = (i for i, choice in enumerate(choices) if equals(answer, [choice], "choice", choices))
    return next(hits, None)


def _with_options(question: str, choices: list[str]) -> str:
    """Return the question with its lettered options below, as in CV-Bench, unless it contains their texts."""

    def words(text: str) -> str:
        return f" {' '.join(_WORD.findall(text.casefold()))} "

    if not question or all(words(choice) in words(question) for choice in choices):
        return question
    return with_options(question, choices)


def modality_of(text: str) -> Modality:
    """Return the modality that a free text names; `unknown` if it is empty.

    >>> modality_of("T2 MRI"), modality_of("Chest X-Ray"), modality_of("PET/CT"), modality_of("")
    ('mri', 'xray', 'other', 'unknown')
    """
    if not text:
        return "unknown"
    words = re.findall(r"[a-z0-9&]+", text.casefold())
    named = {_MODALITY[word] for word in words if word in _MODALITY}
    return named.pop() if len(named) == 1 else "other"


def _given(entries: list[_Entry], where: str, own: Own) -> dict[str, str]:
    """Return row -> split as in the table; unreadable rows count with the training rows."""
    splits, first = {}, {}
    for entry in entries:
        if isinstance(entry.row, Refused):
            splits[entry.id] = SPLITS.get(entry.split, "train")
            continue
        if entry.split not in SPLITS:
            raise UserError(
                f"{where}, {entry.id}",
                "another `split`" if entry.split else "no `split`, where other rows have one",
                "train, dev or test in every row, or in none",
                "fill in the column, or empty it to have the rows split by own.split_by",
            )
        split = splits[entry.id] = SPLITS[entry.split]
        before = first.setdefault(entry.patient, entry) if entry.patient else entry
        if own.split_by == "patient" and splits[before.id] != split:
            raise UserError(
                where,
                f"{before.id} ({splits[before.id]}) and {entry.id} ({split}) are of one patient",
                "every patient in one split only",
                "correct the column `split`, or set own.split_by to image to allow it",
            )
    return splits


def _placed(entry: _Entry, folder: Path, images: Images) -> _Entry:
    """Return the entry with its image inspected."""
    if isinstance(entry.row, Refused) or not entry.row.image:
        entry.image = entry.id
        return entry
    name, sha256, fault = images.admit(entry.row.image, folder)
    entry.image, entry.usable = sha256 or name, sha256 is not None and fault is None
    return entry


def _split_by_group(entries: list[_Entry], where: str, own: Own) -> dict[str, str]:
    """Return row -> split. Unusable rows count with the group that they belong to, or in training."""
    shares = {"train": 1 - own.dev_share - own.test_share, "test": own.test_share, "dev": own.dev_share}
    shares = {split: share for split, share in shares.items() if share}
    groups = [group for group in _kept_together(entries, own.split_by) if _size(group)]
    if len(groups) < len(shares):
        found = f"{sum(entry.usable for entry in entries)} of {len(entries)} rows with a usable image"
        raise UserError(
            where,
            f"{found}, in {len(groups)} groups of the same {own.split_by}",
            f"at least {len(shares)} groups, one for each of {', '.join(shares)}",
            "check that the images exist, add data, set own.split_by to image, or fill in a column `split`",
        )
    splits = {entry.id: "train" for entry in entries}
    for split, chosen in _divide(groups, shares, own.seed).items():
        splits |= {entry.id: split for group in chosen for entry in group}
    return splits


def _kept_together(entries: list[_Entry], split_by: str) -> list[list[_Entry]]:
    """Return the connected components of the graph of rows in which a shared image or patient is an edge."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[tuple[str, str], int] = {}
    edges = []
    for entry in entries:
        image, patient = ("image", entry.image), ("patient", entry.patient)
        ends = image, patient if split_by == "patient" and entry.patient else image
        edges.append([nodes.setdefault(end, len(nodes)) for end in ends])
    graph = coo_array(([1] * len(edges), tuple(zip(*edges))), shape=(len(nodes), len(nodes)))
    labels = connected_components(graph, directed=False)[1]
    groups = defaultdict(list)
    for entry, (image, _) in zip(entries, edges):
        groups[labels[image]].append(entry)
    return list(groups.values())


def _divide(groups: list[list[_Entry]], shares: dict[str, float], seed: int) -> dict[str, list]:
    """Return split -> groups, so that each modality and the whole approximate the shares of rows.

    Modality by modality, the smallest first, each group in a seeded order goes to the split that lacks most rows so
    far; what one modality could not balance, the next one does. (`StratifiedGroupKFold` makes folds of equal size,
    and its result depends on the order of the rows.)
    """

    def order(group: list[_Entry]) -> str:
        # By content, not by position in the table or by patient.
        first = min(entry.image for entry in group)
        return hashlib.sha256(f"{seed} {first}".encode()).hexdigest()

    strata = defaultdict(list)
    for group in groups:
        counts = Counter(entry.row.modality for entry in group if entry.usable)
        strata[min(counts, key=lambda name: (-counts[name], name))].append(group)
    divided: dict[str, list] = {split: [] for split in shares}
    placed, due = Counter(), 0
    for _, stratum in sorted(strata.items(), key=lambda item: (sum(map(_size, item[1])), item[0])):
        due += sum(map(_size, stratum))
        for group in sorted(stratum, key=order):
            split = max(shares, key=lambda name: shares[name] * due - placed[name])
            divided[split].append(group)
            placed[split] += _size(group)
    for split in shares:
        if not divided[split]:  # few groups: the largest split gives its smallest group
            largest = max(divided.values(), key=len)
            smallest = min(largest, key=lambda group: (_size(group), order(group)))
            largest.remove(smallest)
            divided[split].append(smallest)
    return divided


def _size(group: list[_Entry]) -> int:
    return sum(entry.usable for entry in group)


def _why(releases: dict[str, Release]) -> str:
    """Summarize the losses for a message."""
    missing = sum(len(release.missing_images) for release in releases.values())
    every = Release("own", "", refused=[row for release in releases.values() for row in release.refused])
    lines = [f"{missing} rows without their image"] if missing else []
    lines += [
        f"{count} rows refused: {reason} (first {row})" for reason, (count, row) in list(every.refusals.items())[:3]
    ]
    return f" ({'; '.join(lines)})" if lines else ""
