"""Stage `truth`: the findings of the phantoms in the test sets (`data/truth.jsonl`).

Empty for real data, whose judges therefore do not depend on the phantoms' parameters.
"""

import json
from pathlib import Path

import click

from rarl.entry import stage_main
from rarl.params import load_params
from rarl.records import Sample, atomic_file, read_records


@click.command()
@stage_main
def main():
    """Keep the truth of the test sets' phantoms."""
    params = load_params()
    samples = [sample for name in params.test_sets for sample in read_records(params.samples_file(name), Sample)]
    images = {sample.image_sha256 for sample in samples}
    with Path("data/phantom_truth.jsonl").open(encoding="utf-8") as known, atomic_file("data/truth.jsonl") as kept:
        kept.writelines(line for line in known if json.loads(line)["image_sha256"] in images)


if __name__ == "__main__":
    main()
