"""The data card: what each data set is, what was counted, what was found, and what it looks like.

The page has no date and no path, so equal data give equal bytes. Pictures are chosen by a seeded rule, and
no file name is shown: people's own names for their files may say more than a page should.
"""

import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rarl.data.audit import OF_SAMPLES, Findings, Sets
from rarl.data.release import BURNED_IN, BURNED_IN_MEANS, Pictures, Release
from rarl.images import thumbnail
from rarl.params import Params
from rarl.records import Sample, image_file, read_records
from rarl.registry import DATA_SETS

SEED = 7
PER_MODALITY = 4
NEAR_SHOWN = 4
ANSWERS_SHOWN = 6
CATEGORIES_SHOWN = 8
PHANTOM_ROOT = "data/phantom"

MODALITIES = {
    "mri": "MRI",
    "ct": "CT",
    "xray": "X-ray",
    "pathology": "pathology",
    "other": "other",
    "unknown": "modality not given",
}
KINDS = {"yes_no": "yes or no", "choice": "choice", "number": "number", "open": "open"}
#: The lines of a data set's table, in order; a line without any value in it is left out.
COUNTS = {
    "rows": "Rows in the file",
    "read": "Usable here",
    "refused": "Refused",
    "missing_rows": "Without their image here",
    "images": "Images named",
    "missing_images": "Images not here",
    **{name: f"{label[0].upper()}{label[1:]}" for name, label in MODALITIES.items()},
    **{name: f"Answer: {label}" for name, label in KINDS.items()},
    "annotated": "Reasoning annotated",
    "duplicate_rows": "Rows that stand twice",
    "conflicting_groups": "Questions with conflicting answers",
    "rows_in_conflicting_groups": "Their rows",
    "groups_with_yes_and_no": "Both yes and no",
    "images_also_in_train": "Images also in its training split",
    "rows_with_training_image": "Their rows",
    "images_in_own_train": "Images that we train on",
    "rows_with_own_train_image": "Their rows",
    "images_in_own_dev": "Images of our development rows",
    "rows_of_own_test": "Rows of our own test set",
    "near_duplicates_of_own_train": "Look like a training image",
    "near_duplicates_of_own_dev": "Look like a development image",
}
#: Shown even where it is 0.
ALWAYS = ("rows", "read", "refused", "missing_rows", "images")
WORDS = ((1, 4), (5, 6), (7, 8), (9, 10), (11, 15), (16, 25), (26, None))
PIXELS = ((1, 127), (128, 255), (256, 383), (384, 511), (512, 767), (768, 1023), (1024, None))


def render(
    params: Params, sets: Sets, absent: dict[str, list[str]], found: Findings, pictures: Pictures
) -> dict[str, str]:
    """File name -> text of the page (HTML) and of the same without pictures (Markdown)."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = context(params, sets, absent, found, pictures)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    return {name: environment.get_template(name).render(**shown) for name in ("data_card.html", "data_card.md")}


def context(params: Params, sets: Sets, absent: dict[str, list[str]], found: Findings, pictures: Pictures) -> dict:
    """Everything that the templates show."""
    files = Files(params)
    cards = []
    for name, (adapter, releases) in sets.items():
        known = asdict(adapter.DECLARED)
        cards.append(
            {
                "name": name,
                "label": DATA_SETS[name].label,
                "role": "training, development and own test set" if name == params.own_test else "benchmark",
                "trained": name == params.own_test,
                **{key: known[key] for key in ("licence", "page", "citation", "known")},
                "forms": sorted({release.form for release in releases.values() if release.rows}),
                "absent": absent.get(name, []),
                "splits": list(releases),
                "counts": counts(found, name, releases),
                "findings": findings(found, name, releases),
                "quirks": quirks(releases),
                "plots": plots(releases, pictures),
                "gallery": gallery(name, releases, files),
            }
        )
    pairs = Counter(((a.set, a.split), (b.set, b.split)) for a, b in found.shared)
    alike = Counter(((a.set, a.split), (b.set, b.split)) for a, b, *_ in found.near)
    return {
        "data": Path(params.data.root).name,
        "phantom": Path(params.data.root) == Path(PHANTOM_ROOT),
        "deviations": found.deviations,
        "cards": cards,
        "gone": [DATA_SETS[name].label for name in params.benchmarks if name not in sets],
        "labels": {name: data_set.label for name, data_set in DATA_SETS.items()},
        "overview": overview(params, found),
        "pairs": [
            {"first": first, "second": second, "same": pairs[first, second], "alike": alike[first, second]}
            for first, second in dict.fromkeys([*pairs, *alike])
        ],
        "near": near_pictures(found, files),
    }  # fmt: skip


class Files:
    """Where the file of an image is, whatever its records call it."""

    def __init__(self, params: Params):
        self.root = params.data.root
        self.unpacked: dict[str, str] = {}
        records = [Path(f"data/curated/{split}.jsonl") for split in ("train", "dev", "test")]
        for path in [*records, *map(params.samples_file, params.benchmarks)]:
            for sample in read_records(path, Sample) if path.is_file() else []:
                if sample.image.startswith("data/"):
                    self.unpacked[Path(sample.image).name] = sample.image

    def find(self, image: str) -> Path | None:
        """None where the picture was not unpacked, such as those of a training split that is not used."""
        path = image_file(self.root, self.unpacked.get(image, image))
        return path if path.is_file() else None


def overview(params: Params, found: Findings) -> list[dict]:
    """One line for each split that is trained on or evaluated."""
    lines = []
    for name, splits in found.counts.items():
        for split, count in splits.items():
            if name == params.own_test or split == "test":
                lines.append({"set": name, "split": split, **count})
    return lines


def counts(found: Findings, name: str, releases: dict[str, Release]) -> list[dict]:
    """The lines of one set's table: a label, and for each split the count, what is declared and a mark."""
    lines = []
    for key, label in COUNTS.items():
        cells = []
        for split, release in releases.items():
            value = found.counts[name][split].get(key)
            expected = found.declared[name][split].get(key)
            partial = key in OF_SAMPLES and len(release.samples) < len(release.seen)
            unknown = value is None or expected is None or partial
            cells.append(
                {"value": value, "declared": expected, "same": None if unknown else value == expected}
            )  # fmt: skip
        if key in ALWAYS or any(cell["value"] or cell["declared"] is not None for cell in cells):
            lines.append({"label": label, "cells": cells})
    return lines


def findings(found: Findings, name: str, releases: dict[str, Release]) -> list[str]:
    """What the counts say, in sentences."""
    said = []
    for split, release in releases.items():
        count = found.counts[name][split]
        rows = f"of the {count['rows']:,} {split} rows"
        for key, images, text in _SHARED:
            if count.get(key):
                many = f" ({number(count[images], 'image')})" if images else ""
                said.append(f"{count[key]:,} {rows} {text}{many}.")
        if count["conflicting_groups"]:
            said.append(
                f"{count['conflicting_groups']:,} questions about one image have conflicting answers in {split} "
                f"({count['rows_in_conflicting_groups']:,} rows; {count['groups_with_yes_and_no']:,} both yes and no)."
            )
        if count["duplicate_rows"]:
            said.append(f"{number(count['duplicate_rows'], 'row')} of {split} repeat another one word for word.")
        for ours in ("train", "dev"):
            if alike := count.get(f"near_duplicates_of_own_{ours}"):
                said.append(f"{number(alike, 'image')} of {split} look nearly like one of our {ours} images.")
        if count["missing_rows"]:
            said.append(
                f"{count['missing_rows']:,} {rows} have no image here ({number(count['missing_images'], 'image')})."
            )
        said += [
            f"{refused:,} {rows} refused: {reason} (first {row})."
            for reason, (refused, row) in release.refusals.items()
        ]
        if burned_in := release.notes[BURNED_IN]:
            said.append(f"{burned_in:,} {rows}: {BURNED_IN_MEANS}.")
    return said


_SHARED = (
    ("rows_with_training_image", "images_also_in_train", "show an image that is also in the set's own training split"),
    ("rows_of_own_test", None, "are rows of our own test set"),
    ("rows_with_own_train_image", "images_in_own_train", "show an image that we train on"),
    ("rows_with_own_dev_image", "images_in_own_dev", "show an image of our development rows"),
)  # fmt: skip


def quirks(releases: dict[str, Release]) -> list[str]:
    """What was met while reading, by split."""
    names = dict.fromkeys(name for release in releases.values() for name in release.notes)
    met = {
        name: [f"{release.notes[name]:,} in {split}" for split, release in releases.items() if release.notes[name]]
        for name in sorted(names)
    }  # fmt: skip
    return [f"{name.replace('_', ' ')}: {', '.join(counts)}" for name, counts in met.items() if counts]


def number(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def plots(releases: dict[str, Release], pictures: Pictures) -> list[dict]:
    """Distributions over all splits: title, and bars of label, count and share of the longest."""
    seen = [row for release in releases.values() for row in release.seen]
    hashes = {sample.image_sha256 for release in releases.values() for sample in release.samples}
    sizes = [max(found.width, found.height) for found in map(pictures.kept, hashes)]
    kinds, modalities = Counter(row.kind for row in seen), Counter(row.modality for row in seen)
    drawn = [
        ("Kind of answer", [(label, kinds[name]) for name, label in KINDS.items() if kinds[name]]),
        ("Modality", [(label, modalities[name]) for name, label in MODALITIES.items() if modalities[name]]),
        ("Category of the question", top(Counter(row.category for row in seen if row.category), CATEGORIES_SHOWN)),
        ("Commonest answers", top(Counter(row.answers[0].lower() for row in seen), ANSWERS_SHOWN)),
        ("Words in the question", binned([len(row.question.split()) for row in seen], WORDS)),
        ("Longer side of the image, pixels", binned(sizes, PIXELS)),
    ]  # fmt: skip
    return [
        {
            "title": title,
            "bars": [
                (label, count, round(100 * count / max(c for _, c in bars), 1)) for label, count in bars
            ],
        }
        for title, bars in drawn
        if len(bars) > 1
    ]  # fmt: skip


def top(counted: Counter, most: int) -> list[tuple[str, int]]:
    """The commonest, and what the rest comes to."""
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[most:]
    others = [(f"{len(rest):,} others", sum(count for _, count in rest))] if rest else []
    return ordered[:most] + others


def binned(values: list[int], bins: tuple) -> list[tuple[str, int]]:
    """Counts in bins of (lowest, highest); empty ones at either end are left out."""
    bars = [
        (f"{low}+" if high is None else f"{low} to {high}", sum(low <= v <= (high or v) for v in values))
        for low, high in bins
    ]  # fmt: skip
    filled = [i for i, (_, count) in enumerate(bars) if count]
    return bars[filled[0] : filled[-1] + 1] if filled else []


def gallery(name: str, releases: dict[str, Release], files: Files) -> list[dict]:
    """For each modality a few rows with different pictures: chosen by lot, with a fixed seed."""
    samples = [sample for release in releases.values() for sample in release.samples]
    random.Random(f"{SEED} {name}").shuffle(samples)
    chosen: dict[str, list[dict]] = {modality: [] for modality in MODALITIES}
    pictures_shown = set()
    for sample in samples:
        group = chosen[sample.modality]
        if len(group) < PER_MODALITY and sample.image_sha256 not in pictures_shown:
            path = files.find(sample.image)
            image = path and thumbnail(path)
            if image:
                pictures_shown.add(sample.image_sha256)
                group.append({"sample": sample, "image": image})
    return [{"label": label, "items": chosen[modality]} for modality, label in MODALITIES.items() if chosen[modality]]


def near_pictures(found: Findings, files: Files) -> list[dict]:
    """The pairs that look most alike, side by side: one of each two splits before a second of any."""
    rank: Counter = Counter()
    ordered, met = [], set()
    for first, second, dhash, phash in sorted(found.near, key=lambda pair: (max(pair[2:]), pair)):
        if (first.image, second.image) in met:
            continue  # a test picture of ours that is in SLAKE's test split too
        met.add((first.image, second.image))
        key = first.set, first.split, second.set, second.split
        ordered.append((rank[key], len(ordered), first, second, dhash, phash))
        rank[key] += 1
    shown = []
    for _, _, first, second, dhash, phash in sorted(ordered):
        paths = [files.find(place.image) for place in (first, second)]
        if len(shown) < NEAR_SHOWN and all(paths):
            shown.append(
                {
                    "images": [thumbnail(path) for path in paths],
                    "places": [f"{DATA_SETS[place.set].label}, {place.split}" for place in (first, second)],
                    "bits": (dhash, phash),
                }
            )
    return shown
