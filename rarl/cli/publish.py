"""Publish a trained model on the Hugging Face Hub: first what would be pushed, then, if you agree, the push.

Pushes the adapter, or with --merged the whole weights, and the model card with the measured scores. Nothing is sent
without --yes or a yes to the question. The token is that of `hf auth login`.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from rarl.params import load_params
from rarl.processes.pinning import pin
from rarl.running.entry import explained, ignore_warnings_between_libraries
from rarl.sharing.publishing import check_repository, describe, prepare, push


@click.command(help=__doc__)
@click.argument("model")
@click.option("--to", "repository", required=True, metavar="USER/NAME", help="The repository on the hub.")
@click.option("--merged", is_flag=True, help="Push whole weights, merged as by `rarl merge`.")
@click.option("--public", is_flag=True, help="Create a public repository instead of a private one.")
@click.option("--no-scores", is_flag=True, help="Leave the measured scores out of the card.")
@click.option("--yes", is_flag=True, help="Push without asking.")
@explained()
def main(model: str, repository: str, merged: bool, public: bool, no_scores: bool, yes: bool) -> None:
    """Run the command."""
    ignore_warnings_between_libraries()
    params = load_params()
    pin(params)
    check_repository(repository)
    cache = Path(".cache")
    cache.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix="publish-") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        notes = prepare(model, folder, repository, params, merged, not no_scores)
        click.echo(f"publish: {model} -> {repository} ({'public' if public else 'private'})\n")
        click.echo(describe(folder, notes))
        if not yes and not (sys.stdin.isatty() and click.confirm("\nPush these files?")):
            click.echo("\nNothing was sent. With --yes, these files are pushed.")
            return
        click.echo(f"\nPushed: {push(folder, repository, public)}")
