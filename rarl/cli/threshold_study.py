"""Calibrate the semantic judge's two thresholds on labelled pairs of the development split (no pipeline stage).

The labels are made by rule from `data/curated/dev.jsonl` (see `rarl/studies/threshold.py`). The report shows the curve
and the kinds of pairs; to use the thresholds, set them under `judge:` in `params.yaml`.

Writes `metrics/studies/semantic_threshold.json` and `.md` (numbers only), and every labelled pair with its cosine to
`data/studies/semantic_threshold.csv`, which stays out of git: on real data it holds texts about patients.
"""

from pathlib import Path

import click

from rarl.cache import hash_path
from rarl.errors import UserError
from rarl.params import load_params
from rarl.records import Sample, atomic_file, read_records, write_json
from rarl.running.entry import stage_main
from rarl.spreadsheet import write_csv

ROWS = Path("data/curated/dev.jsonl")
OUTPUT = Path("metrics/studies/semantic_threshold.json")
PAIRS = Path("data/studies/semantic_threshold.csv")


@click.command(help=__doc__)
@click.option("--seed", default=20, show_default=True, help="Seed of the bootstrap.")
@click.option(
    "--rows",
    "labelled",
    type=click.Path(path_type=Path),
    help="Labelled rows, as for `rarl study judges`: also say which threshold they would choose.",
)
@stage_main
def main(seed: int, labelled: Path | None) -> None:
    """Write the study's numbers, its page and the labelled pairs."""
    from rarl.studies.judges import read_rows
    from rarl.studies.threshold import as_markdown, on_labelled_rows, study

    source, samples = load_params().encoder.source, read_records(ROWS, Sample)
    parts, pairs = study(samples, source, seed)
    if not parts:
        found = "neither open answers nor annotated reasoning to make pairs of"
        fix = "use another training source, or keep the shipped thresholds"
        raise UserError(str(ROWS), found, "development rows with open questions", fix)
    numbers = {"encoder": source, "rows": len(samples), "rows_sha256": hash_path(ROWS), "parts": parts}
    if labelled:
        numbers["labelled_rows"] = on_labelled_rows(read_rows(labelled), source)
    write_json(OUTPUT, numbers)
    with atomic_file(OUTPUT.with_suffix(".md")) as file:
        file.write(as_markdown(numbers, f"rarl study threshold --seed {seed}{' --rows FILE' if labelled else ''}"))
    write_csv(PAIRS, [("part", "row", "kind", "right", "cosine", "text", "reference"), *pairs])
    for part, found in parts.items():
        click.echo(
            f"threshold_study: {part} {found['chosen']} [{found['low']:.2f}, {found['high']:.2f}], "
            f"AUC {found['auc']}, {found['right']} right and {found['wrong']} wrong pairs"
        )
    if labelled:
        click.echo("threshold_study: labelled rows {chosen} [{low}, {high}]".format(**numbers["labelled_rows"]))
    click.echo(f"{OUTPUT}, {OUTPUT.with_suffix('.md')}, {PAIRS}")
