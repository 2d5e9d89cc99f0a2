"""The data card: what each data set is, its counts, what it shares with others, and what it looks like.

The page has no date and no path, so that equal data give equal bytes. Images are sampled with a fixed seed. File names
are not shown, because they may identify a person.
"""

import random
import shutil
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click
from ruamel.yaml import YAML

from rarl.data.audit import OF_SAMPLES, Findings, Sets, compare, read_sets, refuse, warn_of
from rarl.data.release import BURNED_IN, BURNED_IN_MEANS, Images, Release, require_root
from rarl.images import thumbnail
from rarl.params import Params
from rarl.records import Sample, atomic_file, image_file, read_records, write_json
from rarl.registry import DATA_SETS
from rarl.spreadsheet import write_csv

OUTPUT = Path("data/audit")
METRICS = Path("metrics/audit.json")

SEED = 7
PER_MODALITY = 4
NEAR_SHOWN = 4
ANSWERS_SHOWN = 6
CATEGORIES_SHOWN = 8
PHANTOM_ROOT = "data/phantom"

_TEXT = YAML(typ="safe").load(Path(__file__).with_name("data_card.yaml"))
MODALITIES, KINDS, COUNTS = _TEXT["modalities"], _TEXT["kinds"], _TEXT["counts"]
#: Shown even if 0.
ALWAYS = ("rows", "read", "refused", "missing_rows", "images")
WORDS = ((1, 4), (5, 6), (7, 8), (9, 10), (11, 15), (16, 25), (26, None))
PIXELS = ((1, 127), (128, 255), (256, 383), (384, 511), (512, 767), (768, 1023), (1024, None))
#: Counts on the console.
SHOWN = [key for key in COUNTS if "rows" in key or key in ("refused", "near_duplicates_of_own_train")]


def audit(params: Params) -> None:
    """Audit the releases, and write the data card, the tables of shared images and the metrics.

    Raises:
        UserError: A release is not as declared and `data.deviation` is `stop`; the outputs are written before.
    """
    start = time.monotonic()
    root = require_root(params.data.root)
    images = Images(root)
    click.echo(f"audit: reading {', '.join(params.test_sets)} below {root} ...")
    sets, absent = read_sets(params, root, images)
    found = compare(root, sets, params.own_test, images)

    shutil.rmtree(OUTPUT, ignore_errors=True)
    ends = [f"{name}_{what}" for name in ("first", "second") for what in ("set", "split", "image")]
    write_csv(OUTPUT / "shared_images.csv", [ends, *((*a, *b) for a, b in found.shared)])
    near = [(*a, *b, *bits) for a, b, *bits in found.near]
    write_csv(OUTPUT / "near_duplicates.csv", [(*ends, "dhash_bits", "phash_bits"), *near])
    for name, text in render(params, sets, absent, found, images).items():
        with atomic_file(OUTPUT / name) as file:
            file.write(text)
    write_json(METRICS, {"sets": found.counts, "deviations": found.deviations})

    for name, splits in found.counts.items():
        for split, count in splits.items():
            shown = (f"{count[key]} {key.replace('_', ' ')}" for key in SHOWN if count.get(key))
            click.echo(f"  {name:<10} {split:<8} {', '.join(shown)}")
    for name, splits in absent.items():
        click.echo(f"  {name}: {', '.join(splits)} not available")
    warn_of(found.deviations)
    click.echo(f"audit: {OUTPUT / 'data_card.html'}, {time.monotonic() - start:.1f} s")
    refuse(root, found.deviations, params.data.deviation)


def render(
    params: Params, sets: Sets, absent: dict[str, list[str]], found: Findings, images: Images
) -> dict[str, str]:
    """Return file name -> text, of the HTML page and of its Markdown version without images."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = context(params, sets, absent, found, images)
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


def context(params: Params, sets: Sets, absent: dict[str, list[str]], found: Findings, images: Images) -> dict:
    """Return the variables of the templates."""
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
                "plots": plots(releases, images),
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
        "overview": [
            {"set": name, "split": split, **count}
            for name, splits in found.counts.items()
            for split, count in splits.items()
            if name == params.own_test or split == "test"
        ],
        "pairs": [
            {"first": first, "second": second, "same": pairs[first, second], "alike": alike[first, second]}
            for first, second in dict.fromkeys([*pairs, *alike])
        ],
        "near": near_images(found, files),
    }


class Files:
    """Finds the file of an image by its name in the release or in the records."""

    def __init__(self, params: Params):
        self.root = params.data.root
        self.unpacked: dict[str, str] = {}
        records = [Path(f"data/curated/{split}.jsonl") for split in ("train", "dev", "test")]
        for path in [*records, *map(params.samples_file, params.benchmarks)]:
            for sample in read_records(path, Sample) if path.is_file() else []:
                if sample.image.startswith("data/"):
                    self.unpacked[Path(sample.image).name] = sample.image

    def find(self, image: str) -> Path | None:
        """Return its path, or None if it was not unpacked (for example of an unused training split)."""
        path = image_file(self.root, self.unpacked.get(image, image))
        return path if path.is_file() else None


def counts(found: Findings, name: str, releases: dict[str, Release]) -> list[dict]:
    """Return the lines of one data set's table: a label, and per split the count, the declared count and a mark."""
    lines = []
    for key, label in COUNTS.items():
        cells = []
        for split, release in releases.items():
            value = found.counts[name][split].get(key)
            expected = found.declared[name][split].get(key)
            partial = key in OF_SAMPLES and len(release.samples) < len(release.seen)
            unknown = value is None or expected is None or partial
            cells.append({"value": value, "declared": expected, "same": None if unknown else value == expected})
        if key in ALWAYS or any(cell["value"] or cell["declared"] is not None for cell in cells):
            lines.append({"label": label, "cells": cells})
    return lines


def findings(found: Findings, name: str, releases: dict[str, Release]) -> list[str]:
    """Describe the counts in sentences."""
    lines = []
    for split, release in releases.items():
        count = found.counts[name][split]
        rows = f"of the {count['rows']:,} {split} rows"
        for key, images, text in _TEXT["shared"]:
            if count.get(key):
                many = f" ({number(count[images], 'image')})" if images else ""
                lines.append(f"{count[key]:,} {rows} {text}{many}.")
        if count["conflicting_groups"]:
            lines.append(
                f"{count['conflicting_groups']:,} questions about one image have conflicting answers in {split} "
                f"({count['rows_in_conflicting_groups']:,} rows; {count['groups_with_yes_and_no']:,} both yes and no)."
            )
        if count["duplicate_rows"]:
            lines.append(f"{number(count['duplicate_rows'], 'row')} of {split} are exact duplicates.")
        for ours in ("train", "dev"):
            if alike := count.get(f"near_duplicates_of_own_{ours}"):
                lines.append(f"{number(alike, 'image')} of {split} are near duplicates of one of our {ours} images.")
        if count["missing_rows"]:
            lines.append(
                f"{count['missing_rows']:,} {rows} lack their image ({number(count['missing_images'], 'image')})."
            )
        lines += [
            f"{refused:,} {rows} refused: {reason} (first {row})."
            for reason, (refused, row) in release.refusals.items()
        ]
        if burned_in := release.notes[BURNED_IN]:
            lines.append(f"{burned_in:,} {rows}: {BURNED_IN_MEANS}.")
    return lines


def quirks(releases: dict[str, Release]) -> list[str]:
    """List the notes of the releases, by split."""
    names = dict.fromkeys(name for release in releases.values() for name in release.notes)
    met = {
        name: [f"{release.notes[name]:,} in {split}" for split, release in releases.items() if release.notes[name]]
        for name in sorted(names)
    }
    return [f"{name.replace('_', ' ')}: {', '.join(counts)}" for name, counts in met.items() if counts]


def number(count: int, thing: str) -> str:
    """Format a count with its noun.

    >>> number(1, "image"), number(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def plots(releases: dict[str, Release], images: Images) -> list[dict]:
    """Return distributions over all splits: a title, and bars of label, count and percent of the longest bar."""
    seen = [row for release in releases.values() for row in release.seen]
    hashes = {sample.image_sha256 for release in releases.values() for sample in release.samples}
    sizes = [max(found.width, found.height) for found in map(images.kept, hashes)]
    kinds, modalities = Counter(row.kind for row in seen), Counter(row.modality for row in seen)
    charts = [
        ("Kind of answer", [(label, kinds[name]) for name, label in KINDS.items() if kinds[name]]),
        ("Modality", [(label, modalities[name]) for name, label in MODALITIES.items() if modalities[name]]),
        ("Category of the question", top(Counter(row.category for row in seen if row.category), CATEGORIES_SHOWN)),
        ("Most frequent answers", top(Counter(row.answers[0].lower() for row in seen), ANSWERS_SHOWN)),
        ("Words in the question", binned([len(row.question.split()) for row in seen], WORDS)),
        ("Longer side of the image, pixels", binned(sizes, PIXELS)),
    ]
    return [
        {
            "title": title,
            "bars": [(label, count, round(100 * count / max(c for _, c in bars), 1)) for label, count in bars],
        }
        for title, bars in charts
        if len(bars) > 1
    ]


def top(counted: Counter, most: int) -> list[tuple[str, int]]:
    """Return the most frequent items, and the sum of the others.

    >>> top(Counter("aabc"), 1)
    [('a', 2), ('2 others', 2)]
    """
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[most:]
    others = [(f"{len(rest):,} others", sum(count for _, count in rest))] if rest else []
    return ordered[:most] + others


def binned(values: list[int], bins: tuple) -> list[tuple[str, int]]:
    """Count values in bins of (lowest, highest); empty bins at either end are left out.

    >>> binned([2, 2, 9], ((1, 4), (5, 8), (9, None)))
    [('1 to 4', 2), ('5 to 8', 0), ('9+', 1)]
    """
    bars = [
        (f"{low}+" if high is None else f"{low} to {high}", sum(low <= v <= (high or v) for v in values))
        for low, high in bins
    ]
    filled = [i for i, (_, count) in enumerate(bars) if count]
    return bars[filled[0] : filled[-1] + 1] if filled else []


def gallery(name: str, releases: dict[str, Release], files: Files) -> list[dict]:
    """Sample a few rows of each modality, each with another image."""
    samples = [sample for release in releases.values() for sample in release.samples]
    random.Random(f"{SEED} {name}").shuffle(samples)
    chosen: dict[str, list[dict]] = {modality: [] for modality in MODALITIES}
    images_shown = set()
    for sample in samples:
        group = chosen[sample.modality]
        if len(group) == PER_MODALITY or sample.image_sha256 in images_shown:
            continue
        if (path := files.find(sample.image)) and (image := thumbnail(path)):
            images_shown.add(sample.image_sha256)
            group.append({"sample": sample, "image": image})
    return [{"label": label, "items": chosen[modality]} for modality, label in MODALITIES.items() if chosen[modality]]


def near_images(found: Findings, files: Files) -> list[dict]:
    """Return the most similar pairs: one of each two splits before a second of any."""
    rank, ranked, shown = Counter(), {}, []
    for first, second, *bits in sorted(found.near, key=lambda pair: (max(pair[2:]), pair)):
        if (first.image, second.image) not in ranked:  # a test image of ours is in SLAKE's test split too
            splits = first[:2], second[:2]
            ranked[first.image, second.image] = rank[splits], first, second, bits
            rank[splits] += 1
    for _, *places, bits in sorted(ranked.values(), key=lambda pair: pair[0]):
        paths = [files.find(place.image) for place in places]
        if len(shown) < NEAR_SHOWN and all(paths):
            names = [f"{DATA_SETS[place.set].label}, {place.split}" for place in places]
            shown.append({"images": [thumbnail(path) for path in paths], "places": names, "bits": bits})
    return shown
