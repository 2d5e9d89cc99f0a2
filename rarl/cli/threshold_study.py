"""Calibrate the semantic judge's two thresholds on labelled pairs of the development split (no pipeline stage).

The labels are made by rule from `data/curated/dev.jsonl` (see `rarl/studies/threshold.py`). The report shows the
curve and the labels' kinds; to use the thresholds that are found, put them under `judge:` in `params.yaml`.

Writes `metrics/studies/semantic_threshold.json` and `.md` (numbers only), and every labelled pair with its cosine to
`data/studies/semantic_threshold.csv`, which stays out of git: on real data it holds texts about patients.
"""

from pathlib import Path

import click

from rarl.cache import hash_path
from rarl.entry import stage_main
from rarl.errors import UserError
from rarl.params import load_params
from rarl.records import Sample, atomic_file, read_records, write_json
from rarl.spreadsheet import write_csv

ROWS = Path("data/curated/dev.jsonl")
OUTPUT = Path("metrics/studies/semantic_threshold.json")
PAIRS = Path("data/studies/semantic_threshold.csv")


@click.command(help=__doc__)
@click.option("--seed", default=20, show_default=True, help="Of the bootstrap.")
@stage_main
def main(seed: int) -> None:
    from rarl.judges.semantic import embed, similarity
    from rarl.studies.threshold import answer_pairs, as_markdown, calibrate, reasoning_pairs

    source = load_params().encoder.source
    samples = read_records(ROWS, Sample)
    parts, lines = {}, []
    for part, pairs in (("answers", answer_pairs(samples)), ("reasoning", reasoning_pairs(samples))):
        texts = sorted({text for pair in pairs for text in (pair.text, pair.reference)})
        vectors = embed(texts, source) if texts else {}
        exact = part == "answers"
        cosines = [similarity(vectors, p.text, p.reference, exact) for p in pairs]
        if found := calibrate(pairs, cosines, seed):
            parts[part] = found
            lines += [(part, p.row, p.kind, int(p.right), c, p.text, p.reference)
                      for p, c in zip(pairs, cosines)]  # fmt: skip
    if not parts:
        raise UserError(
            str(ROWS), "neither open answers nor annotated reasoning of which pairs could be made",
            "development rows with open questions", "take another training source, or keep the shipped thresholds",
        )  # fmt: skip
    study = {"encoder": source, "rows": len(samples), "rows_sha256": hash_path(ROWS), "parts": parts}
    write_json(OUTPUT, study)
    with atomic_file(OUTPUT.with_suffix(".md")) as file:
        file.write(as_markdown(study, f"rarl study threshold --seed {seed}"))
    write_csv(PAIRS, [("part", "row", "kind", "right", "cosine", "text", "reference"), *lines])
    for part, found in parts.items():
        click.echo(
            f"threshold_study: {part} {found['chosen']} [{found['low']:.2f}, {found['high']:.2f}], AUC {found['auc']}, "
            f"{found['right']} right and {found['wrong']} wrong pairs"
        )
    click.echo(f"{OUTPUT}, {OUTPUT.with_suffix('.md')}, {PAIRS}")
