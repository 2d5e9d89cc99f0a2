"""Stage `judge`: one judge's verdict on every prediction of one model.

Reads `data/predictions/<model>/<mode>/<set>.jsonl` beside the set's samples, and writes
`data/verdicts/<model>/<judge>/<mode>/<set>.jsonl`.
"""

import click

from rarl.entry import stage_main
from rarl.errors import UserError
from rarl.judges.verdicts import judge_model
from rarl.params import load_params


@click.command()
@click.option("--judge", "name", required=True, help="Slug of a judge in params.yaml.")
@click.option("--model", required=True, help="Slug of a model with predictions.")
@stage_main
def main(name: str, model: str) -> None:
    """Judge every prediction of one model."""
    params = load_params()
    if name not in params.judge:
        raise UserError(
            f"--judge {name}",
            "no such judge",
            f"one of {', '.join(params.judge)}",
            "define it under `judge:` in params.yaml",
        )
    judge_model(params, name, model)


if __name__ == "__main__":
    main()
