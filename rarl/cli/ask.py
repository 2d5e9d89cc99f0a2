"""Ask a trained model one question about one image.

The answer goes to stdout, its reasoning and the name of the base to stderr.
"""

from pathlib import Path

import click

from rarl.inference.asking import ask_once
from rarl.params import load_params
from rarl.processes.pinning import pin
from rarl.running.entry import ignore_warnings_between_libraries
from rarl.sharing.model_card import NOT_CLINICAL


@click.command(help=__doc__)
@click.option("--model", "name", required=True, help="base, a name in data/models, or a folder.")
@click.option("--image", required=True, type=click.Path(path_type=Path), help="PNG, JPEG, TIFF or DICOM.")
@click.option("--question", required=True, help="A question about the image.")
@click.option("--mode", "slug", default="reasoning", show_default=True, help="Mode of params.yaml, with its prompt.")
@click.option("--choices", multiple=True, metavar="TEXT", help="An option of a multiple-choice question; repeatable.")
def main(name: str, image: Path, question: str, slug: str, choices: tuple[str, ...]) -> None:
    """Run the command."""
    ignore_warnings_between_libraries()
    params = load_params()
    pin(params)
    about, prediction = ask_once(name, image, question, slug, choices, params)
    click.echo(f"{about} {NOT_CLINICAL}", err=True)
    click.echo(f"Reasoning: {prediction.think or '(none)'}", err=True)
    if prediction.truncated:
        click.echo(f"Cut off after {prediction.tokens} tokens (decoding.max_new_tokens).", err=True)
    click.echo(prediction.answer)
