"""Read one benchmark release into the common record.

Writes `data/benchmarks/<set>.jsonl`, `data/benchmarks/pictures/<set>/` (images from a table or a DICOM file, and
their number) and `metrics/benchmark/<set>.json`. A missing release gives an empty file and `available: false`, or an
error if `data.missing` is `stop`.
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
    from rarl.data.audit import compare_with_declared, refuse, report_losses, require_images, selection
    from rarl.data.release import Images, MissingRelease, Release, read, require_root

    start = time.monotonic()
    data = params.data
    unpacked = Path(f"data/benchmarks/pictures/{name}")
    root = require_root(data.root)
    adapter = load_adapter(name)
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    absent, found = None, []
    try:
        release = read(adapter, root, "test", images=Images(root, unpacked), **selection(name, params))
    except MissingRelease as error:
        if data.missing == "stop":
            raise
        release, absent = Release(name, "test"), error
    else:
        report_losses(f"benchmark {name}", release)
        found = compare_with_declared(root, adapter, [release])
        refuse(root, found, data.deviation)
    require_images(f"{root}: {name}", release, data.missing)
    # The folder is an output of the stage: DVC warns of an empty one.
    note = f"{sum(1 for _ in unpacked.iterdir())} pictures of {name} that lay in a table or a DICOM file\n"
    (unpacked / "unpacked.txt").write_text(note, encoding="utf-8")
    summary = summarize(release, absent is None, not found)
    write_records(Path(f"data/benchmarks/{name}.jsonl"), release.samples)
    write_json(Path(f"metrics/benchmark/{name}.json"), summary)

    if absent is not None:
        click.secho(f"WARNING: benchmark {name} is NOT AVAILABLE and left out of every table.", fg="yellow", err=True)
        click.echo(absent.format_message(), err=True)
        return
    for note, count in summary["notes"].items():
        click.echo(f"  {note.replace('_', ' ')}: {count}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items())
    rows = f"{summary['read']} of {release.rows} rows ({kinds})"
    click.echo(f"benchmark {name}: {rows}, {time.monotonic() - start:.1f} s")


def summarize(release, available: bool, as_declared: bool) -> dict:
    """Return the counts of a release for `metrics/benchmark/`."""
    samples = release.samples
    return {
        "available": available,
        "as_declared": as_declared,
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
