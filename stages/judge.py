"""Stage `judge`: one judge's verdict on every prediction of one model.

Reads `data/predictions/<model>/<mode>/<set>.jsonl` and the set's samples, and writes
`data/verdicts/<model>/<judge>/<mode>/<set>.jsonl`.
"""

import click

from rarl.entry import stage
from rarl.errors import UserError
from rarl.judges.verdicts import judge_model


@stage
@click.option("--judge", required=True, help="Slug of a judge in params.yaml.")
@click.option("--model", required=True, help="Slug of a model with predictions.")
def main(params, judge, model):
    """Judge every prediction of one model."""
    if judge not in params.judge:
        known = ", ".join(params.judge)
        raise UserError(
            f"--judge {judge}", "no such judge", f"one of {known}", "define it under `judge:` in params.yaml"
        )
    judge_model(params, judge, model)


if __name__ == "__main__":
    main()
