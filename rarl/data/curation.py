"""Read the training source's train, development and test rows: Silvar-Med rebuilt from SLAKE, your own, or SAT.

Writes `data/curated/{train,dev,test}.jsonl`, `data/curated/pictures/` (pictures that lie in a table or in a
DICOM file), `data/curated/unmatched_explanations.csv` (Silvar-Med's that belong to no row) and
`metrics/curate.json`. How the rows compare with the benchmarks, the stage `audit` says.
"""

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import click

from rarl.errors import UserError
from rarl.params import Params
from rarl.records import write_json, write_records
from rarl.spreadsheet import write_csv

OUTPUT = Path("data/curated")
PICTURES = OUTPUT / "pictures"
UNMATCHED = OUTPUT / "unmatched_explanations.csv"
METRICS = Path("metrics/curate.json")


def curate(params: Params) -> None:
    """Curate the train, development and test rows."""
    from rarl.data.adapters import load_adapter
    from rarl.data.audit import compare_with_declared, own_splits_apart, refuse, require_images
    from rarl.data.release import BURNED_IN, Pictures, require_root

    start = time.monotonic()
    root, source = require_root(params.data.root), params.train.source
    adapter = load_adapter(source)
    click.echo(f"curate: reading {source} below {root} ...")
    releases = adapter.training(root, params, Pictures(root, PICTURES))
    for split, release in releases.items():
        _say_what_is_left_out(split, release)
        require_images(f"{root}: {source}, {split} rows", release, params.data.missing)
    found = compare_with_declared(root, adapter, releases.values())
    refuse(root, found, params.data.deviation)
    if not releases["train"].samples:
        raise UserError(
            f"{root}: {source}, train rows",
            "no usable row",
            "rows to train on",
            "check what was refused, and that the images are there",
        )
    own_splits_apart(root, releases)
    unmatched = adapter.unmatched(root, releases.values()) if source == "silvar_med" else []
    _write(releases, unmatched)
    counts = {split: _counts(release) for split, release in releases.items()}
    joined = _explanations(releases) if source == "silvar_med" else {}
    more = {"explanations": joined} if joined else {}
    if source == "own":
        without = sum(release.notes["rows_without_patient"] for release in releases.values())
        more["split"] = {**params.own.model_dump(), "rows_without_patient": without}
    if burned_in := sum(release.notes[BURNED_IN] for release in releases.values()):
        more[BURNED_IN] = burned_in
    write_json(METRICS, {**counts, **more})
    for split, count in counts.items():
        click.echo(f"  {split:<6}" + ", ".join(f"{value} {name}" for name, value in count.items()))
        if count["total"] and not count["annotated"]:
            click.echo(f"  NOTE: 0 of {count['total']} {split} rows are annotated" + _IDLE.get(split, "."))
            if split == "train" and source in _ANNOTATE:
                click.echo(f"  {_ANNOTATE[source]}")
    wanted, there = params.train.samples, counts["train"]["total"]
    if wanted and wanted > there:
        click.echo(f"  NOTE: train.samples is {wanted}, and all {there} train rows there are will be used.")
    if joined.get("read"):
        click.echo("  explanations: " + ", ".join(f"{value} {name}" for name, value in joined.items()))
    if unmatched:
        click.echo(f"  WARNING: {len(unmatched)} explanations have no row, see {UNMATCHED}")
    click.echo(f"curate: done in {time.monotonic() - start:.1f} s")


_IDLE = {
    "train": ": the reasoning reward is idle, and SFT learns answers only.",
    "test": ": reasoning scores will read `not annotated`.",
}
_ANNOTATE = {
    "silvar_med": "Put Silvar-Med's explanations in silvar_med/ below data.root.",
    "own": "Write explanations into the column `reasoning` of your table.",
}


def _explanations(releases: dict) -> dict[str, int]:
    """What became of Silvar-Med's explanations: read, joined to a row, and not."""
    notes = sum((release.notes for release in releases.values()), Counter())
    return {
        "read": notes["explanations_read"],
        "matched_rows": notes["explanations_matched"],
        "empty": notes["explanations_empty"],
        "without_a_row": notes["explanations_without_a_row"],
        "rows_with_differing": notes["rows_with_differing_explanations"],
    }


def _write(releases: dict, unmatched: list) -> None:
    """The folder appears whole or not at all, with the pictures that its rows name and no others."""
    partial = OUTPUT.with_name(OUTPUT.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        named = set()
        for split, release in releases.items():
            write_records(partial / f"{split}.jsonl", release.samples)
            named |= {sample.image for sample in release.samples}
        header = ("file", "row", "image", "question")
        rows = [(of.file, of.row, of.image, of.question) for of in unmatched]
        write_csv(partial / UNMATCHED.name, [header, *rows])
        if PICTURES.is_dir():
            for path in PICTURES.iterdir():
                if path.as_posix() not in named:
                    path.unlink()
            os.replace(PICTURES, partial / PICTURES.name)
        shutil.rmtree(OUTPUT, ignore_errors=True)
        os.replace(partial, OUTPUT)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _say_what_is_left_out(split: str, release) -> None:
    from rarl.data.release import BURNED_IN, BURNED_IN_MEANS

    if release.missing_images:
        images = len({image for _, image in release.missing_images})
        click.echo(
            f"  WARNING: {split}: {len(release.missing_images)} of {release.rows} rows left out, {images} images are missing"
        )
    for reason, (count, row) in release.refusals.items():
        click.echo(f"  WARNING: {split}: {count} rows refused: {reason} (first {row})")
    if count := release.notes[BURNED_IN]:
        click.echo(f"  WARNING: {split}: {count} rows: {BURNED_IN_MEANS}")


def _counts(release) -> dict:
    samples = release.samples
    modality = Counter(sample.modality for sample in samples)
    return {
        "total": len(samples),
        "mri": modality["mri"],
        "ct": modality["ct"],
        "xray": modality["xray"],
        "yes_no": sum(sample.kind == "yes_no" for sample in samples),
        "annotated": sum(sample.reasoning is not None for sample in samples),
        "images": len({sample.image_sha256 for sample in samples}),
        "missing_images": len({image for _, image in release.missing_images}),
        "missing_rows": len(release.missing_images),
        "refused": len(release.refused),
    }
