"""Audit every release that is used, and write the data card.

Reads all splits of the training source and of the listed benchmarks, counts them against what is declared of
the release, and looks for images and questions that splits share. Writes `metrics/audit.json`,
`data/audit/{shared_images,near_duplicates}.csv` and `data/audit/data_card.{html,md}`; then stops where a
release is not as declared, unless `data.deviation` is `report`.
"""

import shutil
import time
from pathlib import Path

import click

from rarl.entry import stage_main
from rarl.params import load_params
from rarl.records import atomic_file, write_json
from rarl.spreadsheet import write_csv

OUTPUT = Path("data/audit")
METRICS = Path("metrics/audit.json")


@click.command()
@stage_main
def main() -> None:
    """Audit the releases and write the data card."""
    from rarl.data import data_card
    from rarl.data.audit import compare, read_sets, refuse, warn_of
    from rarl.data.release import Images, require_root

    start = time.monotonic()
    params = load_params()
    root, own = require_root(params.data.root), params.own_test
    images = Images(root)
    click.echo(f"audit: reading {', '.join(params.test_sets)} below {root} ...")
    sets, absent = read_sets(params, root, images)
    found = compare(root, sets, own, images)

    shutil.rmtree(OUTPUT, ignore_errors=True)
    ends = [f"{name}_{what}" for name in ("first", "second") for what in ("set", "split", "image")]
    write_csv(OUTPUT / "shared_images.csv", [ends, *((*a, *b) for a, b in found.shared)])
    near = [(*a, *b, *bits) for a, b, *bits in found.near]
    write_csv(OUTPUT / "near_duplicates.csv", [(*ends, "dhash_bits", "phash_bits"), *near])
    for name, text in data_card.render(params, sets, absent, found, images).items():
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
    warn_of(found.deviations)
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


if __name__ == "__main__":
    main()
