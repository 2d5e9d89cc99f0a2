"""Measure a release, compare it with its declared counts, and find what splits share.

Counts are of all well-formed rows (`Release.seen`), whether or not their image exists, so that they can be compared
with the published ones on a part of the images. An image is identified by the hash of its bytes, or by its name if the
file is missing.
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
from pydantic import StrictInt, TypeAdapter, ValidationError

from rarl.answers.spelling import list_items, normalise
from rarl.data.adapters import load_adapter
from rarl.data.release import BURNED_IN, BURNED_IN_MEANS, DECLARED_FILE, Images, MissingRelease, Release, read
from rarl.errors import UserError
from rarl.params import Params
from rarl.records import Kind, Modality

#: Bits (of 64) in which both perceptual hashes of two images may differ and still be called near duplicates.
NEAR_DISTANCE = 4
#: Counts that need a second split, and counts that need every image.
ACROSS = ("images_also_in_train", "rows_with_training_image")
OF_SAMPLES = ("annotated",)


class Place(NamedTuple):
    """Where an image is: data set, split, and file name (of an unusable file: row)."""

    set: str
    split: str
    image: str


def selection(name: str, params: Params) -> dict[str, str]:
    """Return the further arguments of an adapter's `rows` when a release is read as a benchmark."""
    return {"table": params.own.table} if name == "own" else {}


def read_sets(params: Params, root: Path, images) -> tuple[dict, dict[str, list[str]]]:
    """Read every split of the training source and of the listed benchmarks.

    Returns:
        name -> (adapter, split -> release), and name -> missing splits.
    """
    source = load_adapter(params.train.source)
    sets, absent = {params.own_test: (source, source.training(root, params, images))}, {}
    for name in params.benchmarks:
        adapter = load_adapter(name)
        published = {split for form in adapter.DECLARED.counts.values() for split in form}
        releases = {}
        for split in ("train", "validate", "test"):
            if split in (published or {"test"}):
                try:
                    releases[split] = read(adapter, root, split, images=images, **selection(name, params))
                except MissingRelease:  # the stage `benchmark` decides whether it may be missing
                    absent.setdefault(name, []).append(split)
        if releases:
            sets[name] = adapter, releases
    return sets, absent


def measure(release: Release, train: Release | None = None) -> dict:
    """Count the rows of one split, under the names of `Declared.counts`; `categories` is a mapping.

    Args:
        release: The split.
        train: The training split of the same release, to count the images that both name.
    """
    seen = release.seen
    modality, kind = Counter(row.modality for row in seen), Counter(row.kind for row in seen)
    answers = defaultdict(list)
    for row in seen:  # order and case are no conflict
        answers[row.image, normalise(row.question)].append(frozenset(list_items(row.answers[0])))
    groups = [rows for rows in answers.values() if len(set(rows)) > 1]
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
    }
    if train is not None:
        theirs = {row.image for row in train.seen}
        shared = [row.image for row in seen if row.image in theirs]
        counts |= dict(zip(ACROSS, (len(set(shared)), len(shared))))
    return counts


def declared(root: str | Path, adapter: ModuleType, release: Release) -> dict[str, int]:
    """Return the declared counts of one split, from `declared.json` in `data.root` or from the adapter.

    If `declared.json` names a release, its counts replace all of the adapter's: it is a subset made on purpose.
    Nothing is declared of a split of which only some rows were chosen (`train.samples` of SAT).

    Raises:
        UserError: `declared.json` is malformed.
    """
    path, name = Path(root) / DECLARED_FILE, adapter.__name__.rpartition(".")[2]
    if release.notes["rows_not_chosen"]:
        return {}
    splits = adapter.DECLARED.counts.get(release.form, {})
    if path.is_file():
        try:
            counts = TypeAdapter(dict[str, dict[str, dict[str, StrictInt]]]).validate_json(path.read_bytes())
        except ValidationError:
            raise UserError(
                str(path),
                "no JSON, or of another form",
                '{"<release>": {"<split>": {"rows": 106, ...}}} with whole numbers',
                "correct or delete the file",
            ) from None
        splits = counts.get(name, splits)
    return splits.get(release.split, {})


def deviations(release: Release, measured: dict, expected: dict[str, int]) -> list[str]:
    """List what is not as declared, one sentence each.

    A count is skipped if it cannot be taken: without the training split, or without all images.
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
    """List what is not as declared in any of these splits, each measured by itself, and warn of it."""
    found = [
        line
        for release in releases
        for line in deviations(release, measure(release), declared(root, adapter, release))
    ]
    warn_of(found)
    return found


def warn_of(deviations: Iterable[str]) -> None:
    """Print a warning for each deviation."""
    for line in deviations:
        click.secho(f"  WARNING: not as declared: {line}", fg="yellow", err=True)


def report_losses(what: str, release: Release) -> None:
    """Warn of rows without their image, of refused rows, and of text that is burned into images."""
    lines = []
    if release.missing_images:
        images = len({image for _, image in release.missing_images})
        lines += [f"{len(release.missing_images)} of {release.rows} rows left out, {images} images are missing"]
    lines += [f"{count} rows refused: {reason} (first {row})" for reason, (count, row) in release.refusals.items()]
    if count := release.notes[BURNED_IN]:
        lines.append(f"{count} rows: {BURNED_IN_MEANS}")
    for line in lines:
        click.secho(f"  WARNING: {what}: {line}", fg="yellow", err=True)


def require_images(where: str, release: Release, missing: str) -> None:
    """Stop if rows lack their image, unless `data.missing` is `skip`.

    Raises:
        UserError: An image is missing and `missing` is `stop`.
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
    """Stop if a release is not as declared, unless `data.deviation` is `report`.

    Raises:
        UserError: There is a deviation and `mode` is `stop`.
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
    """The images and questions of one split, prepared for comparisons."""

    def __init__(self, set_: str, split: str, release: Release, images: Images):
        self.set, self.split = set_, split
        self.rows = [(row.image_sha256 or row.image, normalise(row.question)) for row in release.seen]
        # The name of an unusable file may be anything, such as a path of this machine or a patient's name.
        self.images = {
            row.image_sha256 or row.image: row.image if row.image_sha256 else f"{set_}/{split}/{row.source_id}"
            for row in release.seen
        }
        self.hashed = list(dict.fromkeys(row.image_sha256 for row in release.seen if row.image_sha256))
        self.bits = [
            np.array([int(getattr(images.kept(sha256), kind), 16) for sha256 in self.hashed], np.uint64)
            for kind in ("dhash", "phash")
        ]

    def place(self, key: str) -> Place:
        """Locate an image by its hash (or name)."""
        return Place(self.set, self.split, self.images[key])


def near_duplicates(first: Split, second: Split) -> list[tuple[str, str, int, int]]:
    """List the pairs of different images that look alike, as (hash, hash, differing bits of dHash, of pHash).

    They are only reported: two scans of one patient look alike without being copies.
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
    """Check that the training, development and test rows share no image.

    Raises:
        UserError: They do.
    """
    images = {
        split: {sample.image_sha256: sample.id for sample in release.samples} for split, release in releases.items()
    }
    for first, second in combinations(images, 2):
        both = sorted(images[first].keys() & images[second].keys())
        if both:
            raise UserError(
                f"{root}: {first} and {second} rows",
                f"{len(both)} shared images, first that of {images[first][both[0]]} and {images[second][both[0]]}",
                "no shared image between training, development and test",
                "get the release's original files, or remove the copy: a shared image would inflate the scores",
            )


@dataclass
class Findings:
    """The result of an audit.

    Attributes:
        counts: data set -> split -> name of a count -> value, as measured.
        declared: The same, as published or as in `declared.json`.
        deviations: The differences, one sentence each.
        shared: The two places of a shared image.
        near: Two images that look alike, with the differing bits of dHash and pHash.
    """

    counts: dict[str, dict[str, dict]] = field(default_factory=dict)
    declared: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    deviations: list[str] = field(default_factory=list)
    shared: list[tuple[Place, Place]] = field(default_factory=list)
    near: list[tuple[Place, Place, int, int]] = field(default_factory=list)


Sets = dict[str, tuple[ModuleType, dict[str, Release]]]


def compare(root: str | Path, sets: Sets, own: str, images: Images) -> Findings:
    """Measure every split of every data set, and compare splits with one another.

    Shared images are searched among the splits of one data set, between the own splits and every benchmark's test
    rows, and among these. Near duplicates are searched among the own splits, and between training and benchmarks.

    Args:
        root: `data.root`.
        sets: name -> (adapter, split -> release); `own` is among them, with train, dev and test.
        own: Name of the training source.
        images: What inspected the images.
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
            splits[name, split] = Split(name, split, release, images)
    tests = [splits[name, "test"] for name in sets if name != own and (name, "test") in splits]
    ours = {split: splits[own, split] for split in sets[own][1]}
    inside = [pair for name in sets for pair in combinations([s for s in splits.values() if s.set == name], 2)]
    across = [(split, test) for test in tests for split in ours.values()]
    for first, second in [*inside, *across, *combinations(tests, 2)]:
        both = sorted(first.images.keys() & second.images.keys())
        found.shared += [(first.place(key), second.place(key)) for key in both]
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
    """Count what a benchmark's test rows share with the own rows."""
    counts, questions = {}, set(ours["test"].rows)
    for name, split in ours.items():
        both = split.images.keys() & test.images.keys()
        rows = sum(image in both for image, _ in test.rows)
        counts |= {f"images_in_own_{name}": len(both), f"rows_with_own_{name}_image": rows}
    return {**counts, "rows_of_own_test": sum(row in questions for row in test.rows)}
