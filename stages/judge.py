"""Stage `judge`: every judge's verdicts on every prediction of one model.

Reads `data/predictions/<model>/<mode>/<set>.jsonl` and the set's samples, and writes
`data/verdicts/<model>/<judge>/<mode>/<set>.jsonl`.
"""

import click

from rarl.judges.verdicts import judge_model
from rarl.running.entry import stage


@stage
@click.option("--model", required=True, help="Slug of a model with predictions.")
def main(params, model):
    """Judge every prediction of one model."""
    for judge in params.judges:
        judge_model(params, judge, model)


if __name__ == "__main__":
    main()
