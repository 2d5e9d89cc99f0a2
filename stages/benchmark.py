"""Read one benchmark release into the common record.

Writes `data/benchmarks/<set>.jsonl` and `metrics/benchmark/<set>.json`. A release that is not there
gives an empty file and `available: false`, or an error where `data.missing` is `stop`.
"""

import time
from collections import Counter
from pathlib import Path

import click

from stages.errors import UserError, stage_main
from stages.params import BENCHMARKS, load_params
from stages.records import write_json, write_records


@click.command()
@click.option(
    "--set", "name", type=click.Choice(BENCHMARKS), required=True, help="The benchmark's slug."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="[default: data/benchmarks/<set>.jsonl]"
)
@click.option(
    "--metrics", type=click.Path(path_type=Path), help="[default: metrics/benchmark/<set>.json]"
)
@stage_main
def main(name: str, output: Path | None, metrics: Path | None) -> None:
    """Read one benchmark's test rows."""
    from stages.datasets import ADAPTERS
    from stages.datasets.release import MissingRelease, Release, require_root

    start = time.monotonic()
    data = load_params().data
    output = output or Path(f"data/benchmarks/{name}.jsonl")
    metrics = metrics or Path(f"metrics/benchmark/{name}.json")
    root = require_root(data.root)
    adapter = ADAPTERS[name]
    absent = None
    try:
        release = adapter.read(root, "test")
    except MissingRelease as error:
        if data.missing == "stop":
            raise
        release, absent = Release(name, "test"), error
    if release.missing_images and data.missing == "stop":
        row, image = release.missing_images[0]
        raise UserError(
            f"{root}: {name}",
            f"{len(release.missing_images)} of {release.rows} rows without their image, first {image} (row {row})",
            "every image (data.missing is `stop`)",
            "get the images, or set data.missing to skip",
        )
    samples = release.samples
    summary = {
        "available": absent is None,
        "rows": release.rows,
        "read": len(samples),
        "refused": dict(sorted(Counter(reason for _, reason in release.refused).items())),
        "missing_rows": len(release.missing_images),
        "missing_images": len({image for _, image in release.missing_images}),
        "images": len({sample.image_sha256 for sample in samples}),
        "kinds": dict(sorted(Counter(sample.kind for sample in samples).items())),
        "categories": dict(
            sorted(Counter(sample.category for sample in samples if sample.category).items())
        ),
        "notes": {key: count for key, count in sorted(release.notes.items()) if count},
    }
    if name == "slake":
        # The own test set's rows are inside SLAKE's English test rows: scores are shown with and without them.
        summary["own_test_overlap"] = sum(sample.category == "Abnormality" for sample in samples)
    write_records(output, samples)
    write_json(metrics, summary)

    if absent is not None:
        click.secho(
            f"WARNING: benchmark {name} is NOT AVAILABLE and left out of every table.",
            fg="yellow",
            err=True,
        )
        click.echo(absent.format_message(), err=True)
        return
    if release.missing_images:
        click.secho(
            f"WARNING: benchmark {name}: {len(release.missing_images)} of {release.rows} rows left out, "
            f"{summary['missing_images']} images are missing",
            fg="yellow",
            err=True,
        )
    for reason, count in summary["refused"].items():
        click.echo(f"  {count} rows refused: {reason}")
    for note, count in summary["notes"].items():
        click.echo(f"  {note.replace('_', ' ')}: {count}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items())
    click.echo(
        f"benchmark {name}: {len(samples)} of {release.rows} rows ({kinds}), {time.monotonic() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
