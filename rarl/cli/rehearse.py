"""Run every part of the pipeline once at a base's real size, with random weights, and compare memory with the plan.

Nothing is downloaded: the configurations of published bases are kept in the package. A base of 2 billion parameters
takes a quarter of an hour on two cores and 5 GB of disk in `.cache/`, `qwen2_vl_0_5b` a quarter of the disk. What is
trained, and how (`lora`, `train.trainable`, `model.quantization`), is as in params.yaml.
"""

import json

import click

from rarl.params import load_params
from rarl.running.entry import explained, ignore_warnings_between_libraries


@click.command(help=__doc__)
@click.option("--base", default="qwen2_vl_2b", show_default=True, help="A known base, or a folder with config.json.")
@click.option("--quantization", type=click.Choice(["nf4"]), help="Instead of model.quantization.")
@click.option("--pixels", default=224 * 224, show_default=True, type=click.IntRange(min=28 * 28), help="Of an image.")
@click.option("--prompts", default=1, show_default=True, type=click.IntRange(min=1), help="Prompts of a step.")
@click.option("--group", default=2, show_default=True, type=click.IntRange(min=2), help="Completions per prompt.")
@click.option("--tokens", default=8, show_default=True, type=click.IntRange(min=1), help="Length of a completion.")
@click.option("--keep", is_flag=True, help="Keep the folder with the weights.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@explained()
def main(base: str, quantization: str | None, keep: bool, as_json: bool, **sizes: int) -> None:
    """Run the command."""
    ignore_warnings_between_libraries()
    from rarl.rehearsal.run import page, rehearse, write

    params = load_params()
    params.model.quantization = quantization or params.model.quantization
    result = rehearse(base, params, **sizes, keep=keep)
    write(result)
    click.echo(json.dumps(result, indent=1) if as_json else page(result))
