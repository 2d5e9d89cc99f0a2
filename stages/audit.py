"""Audit every release that is used, and write the data card.

Reads all splits of the training source and of the listed benchmarks, counts them against what is declared of
the release, and looks for pictures and questions that splits share. Writes `metrics/audit.json`,
`data/audit/{shared_images,near_duplicates}.csv` and `data/audit/data_card.{html,md}`; then stops where a
release is not as declared, unless `data.deviation` is `report`.
"""

import shutil
import time
from pathlib import Path

import click

from stages.errors import stage_main
from stages.params import Params, load_params
from stages.records import atomic_file, write_json
from stages.spreadsheet import write_csv

OUTPUT = Path("data/audit")
METRICS = Path("metrics/audit.json")


@click.command()
@stage_main
def main() -> None:
    """Audit the releases and write the data card."""
    from stages.datasets import data_card
    from stages.datasets.audit import compare, refuse
    from stages.datasets.release import Pictures, require_root

    start = time.monotonic()
    params = load_params()
    root, own = require_root(params.data.root), params.own_test
    pictures = Pictures(root)
    click.echo(f"audit: reading {', '.join(params.test_sets)} below {root} ...")
    sets, absent = read_sets(params, root, pictures)
    found = compare(root, sets, own, pictures)

    shutil.rmtree(OUTPUT, ignore_errors=True)
    ends = [f"{name}_{what}" for name in ("first", "second") for what in ("set", "split", "image")]
    write_csv(OUTPUT / "shared_images.csv", [ends, *((*a, *b) for a, b in found.shared)])
    near = [(*a, *b, *bits) for a, b, *bits in found.near]
    write_csv(OUTPUT / "near_duplicates.csv", [(*ends, "dhash_bits", "phash_bits"), *near])
    for name, text in data_card.render(params, sets, absent, found, pictures).items():
        with atomic_file(OUTPUT / name) as file:
            file.write(text)
    write_json(METRICS, {"sets": found.counts, "deviations": found.deviations})

    for name, splits in found.counts.items():
        for split, counts in splits.items():
            shown = {key: counts[key] for key in _SHOWN if counts.get(key)}
            click.echo(
                f"  {name:<10} {split:<8} "
                + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in shown.items())
            )
    for name, splits in absent.items():
        click.echo(f"  {name}: {', '.join(splits)} not there")
    for line in found.deviations:
        click.secho(f"  WARNING: not as declared: {line}", fg="yellow", err=True)
    click.echo(f"audit: {OUTPUT / 'data_card.html'}, {time.monotonic() - start:.1f} s")
    refuse(root, found.deviations, params.data.deviation)


_SHOWN = (
    "rows",
    "refused",
    "missing_rows",
    "duplicate_rows",
    "rows_with_training_image",
    "rows_in_conflicting_groups",
    "rows_of_own_test",
    "rows_with_own_train_image",
    "near_duplicates_of_own_train",
)


def read_sets(params: Params, root: Path, pictures) -> tuple[dict, dict[str, list[str]]]:
    """Every split of the training source and of the listed benchmarks.

    Returns:
        name -> (adapter, split -> release), and name -> splits that are not there.
    """
    from stages.datasets import ADAPTERS, SOURCES
    from stages.datasets.audit import selection
    from stages.datasets.release import MissingRelease, read

    source = SOURCES[params.train.source]
    sets, absent = {params.own_test: (source, source.training(root, params, pictures))}, {}
    for name in params.benchmarks:
        adapter = ADAPTERS[name]
        published = {split for form in adapter.DECLARED.counts.values() for split in form}
        releases = {}
        for split in ("train", "validate", "test"):
            if split in (published or {"test"}):
                try:
                    releases[split] = read(
                        adapter, root, split, pictures=pictures, **selection(name, params)
                    )
                except MissingRelease:
                    # Whether a benchmark may be missing, its own stage decides.
                    absent.setdefault(name, []).append(split)
        if releases:
            sets[name] = adapter, releases
    return sets, absent


if __name__ == "__main__":
    main()
