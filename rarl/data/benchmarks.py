"""Read one benchmark release into the common record.

Writes `data/benchmarks/<set>.jsonl`, `data/benchmarks/pictures/<set>/` (pictures that lie in a table or in a
DICOM file, and how many they are) and `metrics/benchmark/<set>.json`. A release that is not there gives an empty file
and `available: false`, or an error where `data.missing` is `stop`.
"""

import shutil
import time
from collections import Counter
from pathlib import Path

import click

from rarl.params import Params
from rarl.records import write_json, write_records


def read_benchmark(params: Params, name: str) -> None:
    """Read one benchmark's test rows."""
    from rarl.data.adapters import load_adapter
    from rarl.data.audit import compare_with_declared, refuse, require_images, selection
    from rarl.data.release import BURNED_IN, BURNED_IN_MEANS, MissingRelease, Pictures, Release, read, require_root

    start = time.monotonic()
    data = params.data
    output = Path(f"data/benchmarks/{name}.jsonl")
    pictures = Path(f"data/benchmarks/pictures/{name}")
    metrics = Path(f"metrics/benchmark/{name}.json")
    root = require_root(data.root)
    adapter = load_adapter(name)
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    absent, found = None, []
    try:
        release = read(adapter, root, "test", pictures=Pictures(root, pictures), **selection(name, params))
    except MissingRelease as error:
        if data.missing == "stop":
            raise
        release, absent = Release(name, "test"), error
    else:
        found = compare_with_declared(root, adapter, [release])
        refuse(root, found, data.deviation)
    require_images(f"{root}: {name}", release, data.missing)
    samples = release.samples
    # The folder is an output of the stage: DVC warns of an empty one.
    unpacked = sum(1 for _ in pictures.iterdir())
    (pictures / "unpacked.txt").write_text(
        f"{unpacked} pictures of {name} that lay in a table or a DICOM file\n", encoding="utf-8"
    )
    summary = {
        "available": absent is None,
        "as_declared": not found,
        "rows": release.rows,
        "read": len(samples),
        "refused": {reason: count for reason, (count, _) in sorted(release.refusals.items())},
        "missing_rows": len(release.missing_images),
        "missing_images": len({image for _, image in release.missing_images}),
        "images": len({sample.image_sha256 for sample in samples}),
        "kinds": dict(sorted(Counter(sample.kind for sample in samples).items())),
        "categories": dict(sorted(Counter(sample.category for sample in samples if sample.category).items())),
        "notes": {key: count for key, count in sorted(release.notes.items()) if count},
    }
    write_records(output, samples)
    write_json(metrics, summary)

    if absent is not None:
        click.secho(f"WARNING: benchmark {name} is NOT AVAILABLE and left out of every table.", fg="yellow", err=True)
        click.echo(absent.format_message(), err=True)
        return
    if release.missing_images:
        click.secho(
            f"WARNING: benchmark {name}: {len(release.missing_images)} of {release.rows} rows left out, "
            f"{summary['missing_images']} images are missing",
            fg="yellow",
            err=True,
        )
    for reason, (count, row) in release.refusals.items():
        click.echo(f"  {count} rows refused: {reason} (first {row})")
    if count := release.notes[BURNED_IN]:
        click.secho(f"WARNING: benchmark {name}: {count} rows: {BURNED_IN_MEANS}", fg="yellow", err=True)
    for note, count in summary["notes"].items():
        click.echo(f"  {note.replace('_', ' ')}: {count}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items())
    click.echo(f"benchmark {name}: {len(samples)} of {release.rows} rows ({kinds}), {time.monotonic() - start:.1f} s")
