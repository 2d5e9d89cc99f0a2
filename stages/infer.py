"""Stage `infer`: ask one model every question of every test set, under each mode.

What was asked before is not asked again: predictions are kept by model, mode, test set and decoding. Without a GPU the
cores share the test sets.
"""

import click

from rarl.inference.predictions import infer
from rarl.processes.launch import on_several_processes
from rarl.running.entry import stage


@stage
@click.option("--model", required=True, help="Name of a folder below data/models.")
def main(params, model):
    """Ask one model every question of every test set, under each mode."""
    at_endpoint = model in params.rival and params.rival[model].base_url
    if at_endpoint or not on_several_processes(params, "stages.infer", ["--model", model]):
        infer(model, params)


if __name__ == "__main__":
    main()
