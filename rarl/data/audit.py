"""What is measured of a release, how that is compared with what is declared of it, and what splits share.

Counts are taken from all well-formed rows (`Release.seen`), whether or not their image is there, so that
they can be compared with the published ones on a part of the images. A picture is known by the hash of its
bytes, and by its name where the file is missing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, get_args

import click
import numpy as np

from rarl.answers import list_items, normalise
from rarl.data.adapters import load_adapter
from rarl.data.release import DECLARED_FILE, MissingRelease, Pictures, Release, read
from rarl.errors import UserError
from rarl.params import Params
from rarl.records import Kind, Modality, read_json

#: Bits (of 64) in which both perceptual hashes of two pictures may differ and still be called near duplicates.
NEAR_DISTANCE = 4
#: Counts that need a second split, and those that need every image.
ACROSS = ("images_also_in_train", "rows_with_training_image")
OF_SAMPLES = ("annotated",)


class Place(NamedTuple):
    """Where an image is: in which set, in which split, under which name; for a file that cannot be used, in which row."""

    set: str
    split: str
    image: str


def selection(name: str, params: Params) -> dict[str, str]:
    """What an adapter's `rows` needs besides the split when a release is read as a benchmark."""
    return {"table": params.own.table} if name == "own" else {}


def read_sets(params: Params, root: Path, pictures) -> tuple[dict, dict[str, list[str]]]:
    """Every split of the training source and of the listed benchmarks.

    Returns:
        name -> (adapter, split -> release), and name -> splits that are not there.
    """
    source = load_adapter(params.train.source)
    sets, absent = {params.own_test: (source, source.training(root, params, pictures))}, {}
    for name in params.benchmarks:
        adapter = load_adapter(name)
        published = {split for form in adapter.DECLARED.counts.values() for split in form}
        releases = {}
        for split in ("train", "validate", "test"):
            if split in (published or {"test"}):
                try:
                    releases[split] = read(adapter, root, split, pictures=pictures, **selection(name, params))
                except MissingRelease:
                    # Whether a benchmark may be missing, its own stage decides.
                    absent.setdefault(name, []).append(split)
        if releases:
            sets[name] = adapter, releases
    return sets, absent


def measure(release: Release, train: Release | None = None) -> dict:
    """The counts of one split, by the names that `Declared.counts` uses; `categories` is a mapping.

    Args:
        train: the training split of the same release, to count what the split shares with it by name.
    """
    seen = release.seen
    modality, kind = Counter(row.modality for row in seen), Counter(row.kind for row in seen)
    groups = [rows for rows in _groups(release).values() if len(set(rows)) > 1]
    both = {frozenset({"yes"}), frozenset({"no"})}
    counts = {
        "rows": release.rows,
        "read": len(release.samples),
        "refused": len(release.refused),
        "missing_rows": len(release.missing_images),
        "missing_images": len({image for _, image in release.missing_images}),
        "images": len({row.image for row in seen}),
        **{name: modality[name] for name in get_args(Modality)},
        **{name: kind[name] for name in get_args(Kind)},
        "categories": dict(sorted(Counter(row.category for row in seen if row.category).items())),
        "annotated": sum(sample.reasoning is not None for sample in release.samples),
        "duplicate_rows": len(seen) - len({(row.image, row.question, row.answers[0]) for row in seen}),
        "conflicting_groups": len(groups),
        "rows_in_conflicting_groups": sum(map(len, groups)),
        "groups_with_yes_and_no": sum(both <= set(rows) for rows in groups),
    }  # fmt: skip
    if train is not None:
        theirs = {row.image for row in train.seen}
        shared = [row.image for row in seen if row.image in theirs]
        counts |= dict(zip(ACROSS, (len(set(shared)), len(shared))))
    return counts


def _groups(release: Release) -> dict[tuple[str, str], list[frozenset]]:
    """(image, question) -> the answers of its rows; a list's order and the case are no conflict."""
    groups = defaultdict(list)
    for row in release.seen:
        groups[row.image, normalise(row.question)].append(frozenset(list_items(row.answers[0])))
    return groups


def declared(root: str | Path, adapter: ModuleType, release: Release) -> dict[str, int]:
    """What is known of one split: from `declared.json` in `data.root`, else from the adapter.

    Nothing of a split of which some rows were chosen (`train.samples` of SAT).

    Raises:
        UserError: `declared.json` is not what it should be.
    """
    if release.notes["rows_not_chosen"]:
        return {}
    return declared_splits(root, adapter, release.form).get(release.split, {})


def declared_splits(root: str | Path, adapter: ModuleType, form: str) -> dict[str, dict[str, int]]:
    """split -> name of a count -> value. What `declared.json` says of a release takes the place of all that
    its adapter says: a subset that was made on purpose."""
    path, name = Path(root) / DECLARED_FILE, adapter.__name__.rpartition(".")[2]
    if path.is_file():
        try:
            counts = read_json(path)
            ok = isinstance(counts, dict) and all(
                isinstance(value, int)
                for splits in counts.values()
                for split in splits.values()
                for value in split.values()
            )
        except (ValueError, AttributeError):
            ok = False
        if not ok:
            raise UserError(
                str(path),
                "no JSON, or of another form",
                '{"<release>": {"<split>": {"rows": 106, ...}}} with whole numbers',
                "correct or delete the file",
            )
        if name in counts:
            return counts[name]
    return dict(adapter.DECLARED.counts.get(form, {}))


def deviations(release: Release, measured: dict, expected: dict[str, int]) -> list[str]:
    """What is not as declared, one sentence each.

    A count is left out where it cannot be taken: without the training split, or without all images.
    """
    partial = len(release.samples) < len(release.seen)
    return [
        f"{release.dataset} {release.split}: {measured.get(name, 'nothing known as')} {name}, declared {count}"
        for name, count in expected.items()
        if measured.get(name) != count
        and not (name in ACROSS and name not in measured)
        and not (name in OF_SAMPLES and partial)
    ]


def compare_with_declared(root: str | Path, adapter: ModuleType, releases: Iterable[Release]) -> list[str]:
    """What is not as declared in any of these splits, each measured by itself; said as a warning."""
    found = [
        line
        for release in releases
        for line in deviations(release, measure(release), declared(root, adapter, release))
    ]
    warn_of(found)
    return found


def warn_of(deviations: Iterable[str]) -> None:
    for line in deviations:
        click.secho(f"  WARNING: not as declared: {line}", fg="yellow", err=True)


def require_images(where: str, release: Release, missing: str) -> None:
    """Stop where rows are without their image, unless `data.missing` asks to skip them.

    Raises:
        UserError: an image is missing and `missing` is `stop`.
    """
    if release.missing_images and missing == "stop":
        row, _ = release.missing_images[0]
        raise UserError(
            where,
            f"{len(release.missing_images)} of {release.rows} rows without their image (first {row})",
            "every image (data.missing is `stop`)",
            "get the images, or set data.missing to skip",
        )


def refuse(root: str | Path, found: list[str], mode: str) -> None:
    """Stop where a release is not as declared, unless `data.deviation` asks to report it only.

    Raises:
        UserError: there is a deviation and `mode` is `stop`.
    """
    if found and mode == "stop":
        raise UserError(
            str(root),
            "; ".join(found),
            f"the declared counts (DECLARED in rarl/data/adapters/, or {DECLARED_FILE} in data.root)",
            f"get the complete release; or, for a subset made on purpose, write its counts to {DECLARED_FILE} "
            "or set data.deviation to report",
        )


class Split:
    """The pictures and questions of one split, ready to be compared with others."""

    def __init__(self, set_: str, split: str, release: Release, pictures: Pictures):
        self.set, self.split = set_, split
        hashes = {sample.image: sample.image_sha256 for sample in release.samples}
        self.rows = [(hashes.get(row.image, row.image), normalise(row.question)) for row in release.seen]
        # The name of a file that cannot be used may be anything, such as a path of this machine or a patient's name.
        self.images = {
            hashes.get(row.image, row.image): row.image if row.image in hashes else f"{set_}/{split}/{row.row}"
            for row in release.seen
        }  # fmt: skip
        self.hashed = [sha256 for sha256 in self.images if sha256 in set(hashes.values())]
        self.bits = [
            np.array([int(getattr(pictures.kept(sha256), kind), 16) for sha256 in self.hashed], np.uint64)
            for kind in ("dhash", "phash")
        ]  # fmt: skip

    def place(self, key: str) -> Place:
        return Place(self.set, self.split, self.images[key])

    def rows_with(self, keys: Iterable[str]) -> int:
        keys = set(keys)
        return sum(image in keys for image, _ in self.rows)

    def rows_of(self, other: "Split") -> int:
        """Rows that ask a question of the other split about the same picture."""
        theirs = set(other.rows)
        return sum(row in theirs for row in self.rows)


def shared_images(first: Split, second: Split) -> list[str]:
    """The pictures that are in both, each by its hash (or name)."""
    return sorted(first.images.keys() & second.images.keys())


def near_duplicates(first: Split, second: Split) -> list[tuple[str, str, int, int]]:
    """Pairs of different pictures that look the same: (hash, hash, differing bits of dHash, of pHash).

    Reported, never acted upon: two scans of one patient look alike without being copies.
    """
    pairs = []
    for i, sha256 in enumerate(first.hashed):
        bits = [np.bitwise_count(theirs ^ ours[i]) for ours, theirs in zip(first.bits, second.bits)]
        pairs += [
            (sha256, second.hashed[j], int(bits[0][j]), int(bits[1][j]))
            for j in np.flatnonzero(np.maximum(*bits) <= NEAR_DISTANCE)
            if second.hashed[j] != sha256
        ]
    return pairs


def own_splits_apart(root: str | Path, releases: dict[str, Release]) -> None:
    """Make sure that no picture is in two of the training, development and test rows.

    Raises:
        UserError: one is.
    """
    images = {
        split: {sample.image_sha256: sample.id for sample in release.samples} for split, release in releases.items()
    }
    for first, second in combinations(images, 2):
        both = sorted(images[first].keys() & images[second].keys())
        if both:
            raise UserError(
                f"{root}: {first} and {second} rows",
                f"{len(both)} images are in both, first that of {images[first][both[0]]} and "
                f"{images[second][both[0]]}",
                "no shared image between training, development and test",
                "get the release's original files, or take the copy out: a shared image would make the scores "
                "too good",
            )


@dataclass
class Findings:
    """What the audit found.

    Attributes:
        counts: set -> split -> name of a count -> value, as measured.
        declared: the same, as published or as `declared.json` says.
        deviations: what differs, one sentence each.
        shared: a picture that is in two places.
        near: two pictures that look alike, with the differing bits of dHash and pHash.
    """

    counts: dict[str, dict[str, dict]] = field(default_factory=dict)
    declared: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    deviations: list[str] = field(default_factory=list)
    shared: list[tuple[Place, Place]] = field(default_factory=list)
    near: list[tuple[Place, Place, int, int]] = field(default_factory=list)


Sets = dict[str, tuple[ModuleType, dict[str, Release]]]


def compare(root: str | Path, sets: Sets, own: str, pictures: Pictures) -> Findings:
    """Measure every split of every set, and compare splits with one another.

    Compared are the splits of one set, the own splits with every benchmark's test rows, and these with one
    another; near duplicates are looked for among the own splits, and between training and benchmarks.

    Args:
        sets: name -> (adapter, split -> release); `own` is among them, with train, dev and test.
        own: name of the training source.
    """
    found, splits = Findings(), {}
    for name, (adapter, releases) in sets.items():
        found.counts[name], found.declared[name] = {}, {}
        for split, release in releases.items():
            train = releases.get("train") if split != "train" else None
            measured = measure(release, train)
            expected = declared(root, adapter, release)
            found.counts[name][split], found.declared[name][split] = measured, expected
            found.deviations += deviations(release, measured, expected)
            splits[name, split] = Split(name, split, release, pictures)
    tests = [splits[name, "test"] for name in sets if name != own and (name, "test") in splits]
    ours = {split: splits[own, split] for split in sets[own][1]}
    inside = [
        pair for name in sets for pair in combinations([s for s in splits.values() if s.set == name], 2)
    ]  # fmt: skip
    across = [(split, test) for test in tests for split in ours.values()]
    for first, second in [*inside, *across, *combinations(tests, 2)]:
        found.shared += [(first.place(key), second.place(key)) for key in shared_images(first, second)]
    for test in tests:
        found.counts[test.set]["test"] |= with_own(test, ours)
    to_training = [(ours["train"], test) for test in tests]
    for first, second in [*combinations(ours.values(), 2), *to_training]:
        pairs = near_duplicates(first, second)
        found.near += [(first.place(a), second.place(b), *bits) for a, b, *bits in pairs]
        name = f"near_duplicates_of_own_{first.split}"
        found.counts[second.set][second.split][name] = len({b for _, b, *_ in pairs})
    return found


def with_own(test: Split, ours: dict[str, Split]) -> dict[str, int]:
    """What a benchmark's test rows share with the own rows."""
    counts = {}
    for name, split in ours.items():
        both = shared_images(split, test)
        counts |= {f"images_in_own_{name}": len(both), f"rows_with_own_{name}_image": test.rows_with(both)}
    return {**counts, "rows_of_own_test": test.rows_of(ours["test"])}
