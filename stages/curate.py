"""Rebuild Silvar-Med's train, development and test rows from SLAKE, and audit them.

Writes `data/curated/{train,dev,test}.jsonl`, `data/curated/near_duplicates.csv` and `metrics/curate.json`.
"""

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import click

from stages.errors import UserError, stage_main
from stages.params import load_params
from stages.records import atomic_file, write_json, write_records

#: Our splits and SLAKE's: `validate.json` is not used by the paper and picks checkpoints here.
SPLITS = {"train": "train", "dev": "validate", "test": "test"}


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("data/curated"), show_default=True
)
@click.option(
    "--metrics",
    type=click.Path(path_type=Path),
    default=Path("metrics/curate.json"),
    show_default=True,
)
@stage_main
def main(output: Path, metrics: Path) -> None:
    """Curate the train, development and test rows, and audit them."""
    from stages.datasets import silvar_med
    from stages.datasets.release import require_root

    start = time.monotonic()
    params = load_params()
    root = require_root(params.data.root)
    click.echo(f"curate: reading SLAKE below {root} ...")
    releases = {split: silvar_med.read(root, theirs) for split, theirs in SPLITS.items()}
    for split, release in releases.items():
        _say_what_is_left_out(split, release)
        if release.missing_images and params.data.missing == "stop":
            row, image = release.missing_images[0]
            raise UserError(
                f"{root}: SLAKE {SPLITS[split]}",
                f"{len(release.missing_images)} rows without their image, first {image} (row {row})",
                "every image (data.missing is `stop`)",
                "get the images, or set data.missing to skip",
            )
    samples = {split: release.samples for split, release in releases.items()}
    if not samples["train"]:
        raise UserError(
            f"{root}: SLAKE train",
            "no usable Abnormality row",
            "rows to train on",
            "check the images below slake/imgs/",
        )
    audit, near = _audit(root, samples, params.benchmarks)

    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for split, rows in samples.items():
            write_records(partial / f"{split}.jsonl", rows)
        with atomic_file(partial / "near_duplicates.csv") as file:
            file.writelines(",".join(pair) + "\n" for pair in [("image", "looks_like"), *near])
        shutil.rmtree(output, ignore_errors=True)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts = {split: _counts(release) for split, release in releases.items()}
    write_json(metrics, {**counts, "audit": audit})
    for split, count in counts.items():
        click.echo(f"  {split:<6}" + ", ".join(f"{value} {name}" for name, value in count.items()))
        if count["total"] and not count["annotated"]:
            click.echo(f"  NOTE: 0 of {count['total']} {split} rows are annotated" + _IDLE[split])
    click.echo(f"curate: done in {time.monotonic() - start:.1f} s")


_IDLE = {
    "train": ": the reasoning reward is idle, and SFT learns answers only. Put Silvar-Med's explanations in silvar_med/.",
    "dev": ".",
    "test": ": reasoning scores will read `not annotated`.",
}


def _say_what_is_left_out(split: str, release) -> None:
    if release.missing_images:
        images = len({image for _, image in release.missing_images})
        click.echo(
            f"  WARNING: {split}: {len(release.missing_images)} of {release.rows} rows left out, {images} images are missing"
        )
    for reason, count in Counter(reason for _, reason in release.refused).most_common():
        click.echo(f"  WARNING: {split}: {count} rows refused: {reason}")


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


def _audit(root: Path, samples: dict, benchmarks: list[str]) -> tuple[dict, list[tuple[str, str]]]:
    """Compare the splits with each other and with the benchmarks that are there.

    Returns:
        The counts, and the pairs of near duplicates.

    Raises:
        UserError: a picture is in two of the own splits.
    """
    from stages.datasets import ADAPTERS
    from stages.datasets.audit import conflicting_answers, near_duplicates, shared_images
    from stages.datasets.release import MissingRelease

    for first, second in (("train", "dev"), ("train", "test"), ("dev", "test")):
        pairs = shared_images(samples[first], samples[second])
        if pairs:
            raise UserError(
                f"{root}: SLAKE {SPLITS[first]} and {SPLITS[second]}",
                f"{len(pairs)} images are in both, first {pairs[0][0]} = {pairs[0][1]}",
                "no shared image between training, development and test",
                "get the release's original files: a shared image would make the scores too good",
            )
    near = near_duplicates(root, samples)
    if near:
        click.echo(
            f"  {len(near)} pairs of near duplicates across splits, listed in near_duplicates.csv; first {' and '.join(near[0])}"
        )
    audit = {
        "shared_images": 0,
        "near_duplicates": len(near),
        "conflicting_answers": {
            split: conflicting_answers(rows) for split, rows in samples.items()
        },
        "training_images_in_benchmarks": {},
    }
    for name in benchmarks:
        try:
            theirs = ADAPTERS[name].read(root, "test").samples
        except MissingRelease:
            continue  # said, and decided upon, by the benchmark stage
        shared = shared_images(samples["train"], theirs)
        hashes = {sample.image_sha256 for sample in samples["train"]}
        rows = sum(sample.image_sha256 in hashes for sample in theirs)
        audit["training_images_in_benchmarks"][name] = {"images": len(shared), "rows": rows}
        if shared:
            click.echo(
                f"  WARNING: {len(shared)} training images are in {name} ({rows} of {len(theirs)} rows)"
            )
    return audit, near


if __name__ == "__main__":
    main()
