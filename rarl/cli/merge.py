"""Merge a trained adapter into its base: whole weights in the hub's layout, which load without PEFT."""

from pathlib import Path

import click

from rarl.errors import UserError
from rarl.params import load_params
from rarl.processes.pinning import pin
from rarl.running.entry import explained, ignore_warnings_between_libraries
from rarl.sharing.model_folder import find, measured, merge
from rarl.sharing.model_index import eval_results


@click.command(help=__doc__)
@click.option("--model", "name", required=True, help="A name in data/models, or a folder.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="A new folder.")
@explained()
def main(name: str, output: Path) -> None:
    """Run the command."""
    ignore_warnings_between_libraries()
    params = load_params()
    pin(params)
    folder = find(name)
    try:
        results = eval_results(measured(folder), params)
    except UserError as error:
        results = []
        click.echo(f"merge: the card has no scores; {error.parts[1]}", err=True)
    merge(name, output, params, results)
    click.echo(f"merge: {folder} -> {output} ({params.model.dtype}); set base.source to it to use it as a base")
