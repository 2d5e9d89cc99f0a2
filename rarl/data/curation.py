"""Read the training source's train, development and test rows: Silvar-Med rebuilt from SLAKE, your own, or SAT.

Writes `data/curated/{train,dev,test}.jsonl`, `data/curated/pictures/` (images from a table or a DICOM file),
`data/curated/unmatched_explanations.csv` (Silvar-Med's explanations without a row) and `metrics/curate.json`. The
stage `audit` compares the rows with the benchmarks.
"""

import os
import shutil
import time
from collections import Counter
from itertools import starmap
from pathlib import Path

import click

from rarl.data.annotations import left_out_file
from rarl.errors import UserError
from rarl.params import Params
from rarl.records import Sample, write_json, write_records
from rarl.spreadsheet import write_csv

OUTPUT = Path("data/curated")
IMAGES = OUTPUT / "pictures"
UNMATCHED = OUTPUT / "unmatched_explanations.csv"
METRICS = Path("metrics/curate.json")


def curate(params: Params) -> None:
    """Curate the train, development and test rows.

    Raises:
        UserError: There is no usable training row, or the release is not as declared.
    """
    from rarl.data.adapters import load_adapter
    from rarl.data.annotations import join
    from rarl.data.audit import compare_with_declared, own_splits_apart, refuse, report_losses, require_images
    from rarl.data.release import Images, require_root

    start = time.monotonic()
    root, source = require_root(params.data.root), params.train.source
    adapter = load_adapter(source)
    click.echo(f"curate: reading {source} below {root} ...")
    releases = adapter.training(root, params, Images(root, IMAGES))
    for split, release in releases.items():
        report_losses(split, release)
        require_images(f"{root}: {source}, {split} rows", release, params.data.missing)
    refuse(root, compare_with_declared(root, adapter, releases.values()), params.data.deviation)
    if not releases["train"].samples:
        raise UserError(
            f"{root}: {source}, train rows",
            "no usable row",
            "rows to train on",
            "check which rows were refused, and that the images exist",
        )
    own_splits_apart(root, releases)
    joined, left_out = join(releases, params.annotations) if params.annotations else ({}, {})
    unmatched = adapter.unmatched(adapter.explanations(root), releases.values()) if source == "silvar_med" else []
    _write(releases, unmatched, left_out)
    counts = {split: _counts(release) for split, release in releases.items()}
    more = _source_counts(params, releases) | ({"annotations": joined} if joined else {})
    write_json(METRICS, {**counts, **more})
    _report(params, counts, more, unmatched)
    _report_doubts(left_out, joined)
    click.echo(f"curate: done in {time.monotonic() - start:.1f} s")


_IDLE = {
    "train": ": the reasoning reward is idle, and SFT learns answers only.",
    "test": ": reasoning scores will read `not annotated`.",
}
_ANNOTATE = {
    "silvar_med": "Put Silvar-Med's explanations in silvar_med/ below data.root, or write some: `rarl annotate`.",
    "own": "Write explanations into the column `reasoning` of your table, or on the page of `rarl annotate`.",
}


def _report(params: Params, counts: dict, more: dict, unmatched: list) -> None:
    """Print the counts, and a note where something is missing."""
    for split, count in counts.items():
        click.echo(f"  {split:<6}" + ", ".join(f"{value} {name}" for name, value in count.items()))
        if count["total"] and not count["annotated"]:
            click.echo(f"  NOTE: 0 of {count['total']} {split} rows are annotated" + _IDLE.get(split, "."))
            if split == "train" and params.train.source in _ANNOTATE:
                click.echo(f"  {_ANNOTATE[params.train.source]}")
    wanted, total = params.train.samples, counts["train"]["total"]
    if wanted and wanted > total:
        click.echo(f"  NOTE: train.samples is {wanted}, but there are only {total} train rows; all are used.")
    for source in ("explanations", "annotations"):
        if any(more.get(source, {}).values()):
            click.echo(f"  {source}: " + ", ".join(starmap(_shown, more[source].items())))
    if unmatched:
        click.echo(f"  WARNING: {len(unmatched)} explanations have no row, see {UNMATCHED}")


def _report_doubts(left_out: dict[str, list[Sample]], annotations: dict) -> None:
    """Print how many rows physicians call not visible or wrong, what has become of them, and annotations of no row."""
    for split, samples in left_out.items():
        if samples:
            click.echo(f"  NOTE: {len(samples)} {split} rows are left out by annotation: {left_out_file(split)}")
    if kept := sum(annotations.get("kept_in_test", {}).values()):
        click.echo(f"  NOTE: {kept} test rows are scored, though annotated as not visible or wrong question")
    if lost := annotations.get("without_a_row"):
        click.echo(f"  NOTE: {lost} annotations are of no row here: its image, question or answers were others")


def _shown(name: str, value: int | str | dict) -> str:
    parts = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else ""
    return f"{name} ({parts})" if parts else f"{value} {name}"


def _source_counts(params: Params, releases: dict) -> dict:
    """Return the counts that only some training sources have."""
    from rarl.data.release import BURNED_IN

    notes, more = sum((release.notes for release in releases.values()), Counter()), {}
    if params.train.source == "silvar_med":
        more["explanations"] = {
            "read": notes["explanations_read"],
            "matched_rows": notes["explanations_matched"],
            "empty": notes["explanations_empty"],
            "without_a_row": notes["explanations_without_a_row"],
            "rows_with_differing": notes["rows_with_differing_explanations"],
        }
    if params.train.source == "own":
        more["split"] = {**params.own.model_dump(), "rows_without_patient": notes["rows_without_patient"]}
    if notes[BURNED_IN]:
        more[BURNED_IN] = notes[BURNED_IN]
    return more


def _write(releases: dict, unmatched: list, left_out: dict[str, list[Sample]]) -> None:
    """Write the folder atomically, with the unpacked images that its rows name and no others.

    `left_out`: split -> the rows that annotations have taken out of it; in files of their own, where there are any.
    """
    partial = OUTPUT.with_name(OUTPUT.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        named = set()
        files = {f"{split}.jsonl": release.samples for split, release in releases.items()}
        files |= {left_out_file(split).name: samples for split, samples in left_out.items() if samples}
        for name, samples in files.items():
            write_records(partial / name, samples)
            named |= {sample.image for sample in samples}
        rows = [(of.file, of.row, of.image, of.question) for of in unmatched]
        write_csv(partial / UNMATCHED.name, [("file", "row", "image", "question"), *rows])
        if IMAGES.is_dir():
            for path in IMAGES.iterdir():
                if path.as_posix() not in named:
                    path.unlink()
            os.replace(IMAGES, partial / IMAGES.name)
        shutil.rmtree(OUTPUT, ignore_errors=True)
        os.replace(partial, OUTPUT)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _counts(release) -> dict:
    samples = release.samples
    modality = Counter(sample.modality for sample in samples)
    return {
        "total": len(samples),
        **{name: modality[name] for name in ("mri", "ct", "xray")},
        "yes_no": sum(sample.kind == "yes_no" for sample in samples),
        "annotated": sum(sample.reasoning is not None for sample in samples),
        "images": len({sample.image_sha256 for sample in samples}),
        "missing_images": len({image for _, image in release.missing_images}),
        "missing_rows": len(release.missing_images),
        "refused": len(release.refused),
    }
