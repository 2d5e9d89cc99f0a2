"""Stage `truth`: the findings of the phantoms in the test sets (`data/truth.jsonl`).

Empty for real data, whose judges therefore do not depend on the phantoms' parameters.
"""

import json
from pathlib import Path

from rarl.records import Sample, atomic_file, read_records
from rarl.running.entry import stage


@stage
def main(params):
    """Keep the truth of the test sets' phantoms."""
    samples = [sample for name in params.test_sets for sample in read_records(params.samples_file(name), Sample)]
    images = {sample.image_sha256 for sample in samples}
    with Path("data/phantom_truth.jsonl").open(encoding="utf-8") as known, atomic_file("data/truth.jsonl") as kept:
        kept.writelines(line for line in known if json.loads(line)["image_sha256"] in images)


if __name__ == "__main__":
    main()
