"""Draw the phantom releases and the truth about them.

Writes `data/phantom/` (SLAKE, Silvar-Med, VQA-RAD, VQA-Med, Path-VQA and CV-Bench, each in the
real release's on-disk format, with `declared.json`: how many rows and pictures there are) and
`data/phantom_truth.jsonl` (what was drawn, for the truth judge).
"""

import json
import os
import shutil
import time
from pathlib import Path

import click

from rarl.entry import stage_main
from rarl.params import load_params
from rarl.records import atomic_file


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("data/phantom"), show_default=True)
@click.option("--truth", type=click.Path(path_type=Path), default=Path("data/phantom_truth.jsonl"), show_default=True)
@stage_main
def main(output: Path, truth: Path) -> None:
    """Draw phantom pictures with known findings, in the real releases' formats."""
    from rarl.phantom.releases import write_releases

    start = time.monotonic()
    params = load_params().phantom
    click.echo(f"phantom: drawing {params.image_size} px pictures (seeds {params.seed} and {params.test_seed}) ...")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        written = write_releases(partial, params)
        with atomic_file(truth) as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in written.truth)
        shutil.rmtree(output, ignore_errors=True)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for release, what, count in written.drawn:
        click.echo(f"  {release:<11} {what:<28} {count:>5}")
    click.echo(f"phantom: {len(written.truth)} questions with known truth, {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
