"""Stage `infer`: ask one model every question of every test set, under each mode.

What was asked before is not asked again: predictions are kept by model, mode, test set and decoding. Without a GPU the
cores share the test sets.
"""

import click

from rarl.entry import stage_main
from rarl.launch import on_several_processes
from rarl.params import load_params
from rarl.predictions import infer


@click.command()
@click.option("--model", required=True, help="Name of a folder below data/models.")
@stage_main
def main(model):
    """Ask one model every question of every test set, under each mode."""
    params = load_params()
    if not on_several_processes(params, "stages.infer", ["--model", model]):
        infer(model, params)


if __name__ == "__main__":
    main()
