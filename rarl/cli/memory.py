"""Plan the memory of a training with the present parameters, and what to turn on smaller devices."""

import click

from rarl.errors import UserError
from rarl.memory_plan import configuration, estimate, relief
from rarl.params import load_params
from rarl.registry import METHODS


@click.command(help="Plan the memory of a training with the present parameters, and what to turn on smaller devices.")
@click.option("--gb", "sizes", multiple=True, type=float, default=(40, 24, 16, 12), show_default=True,
              help="Memory of a device; may be given often.")  # fmt: skip
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
def main(sizes, device):
    params = load_params()
    source = params.base.source.replace("embedded", "data/base")
    config = configuration(source, params.base.revision)
    if config is None:
        raise UserError(f"base.source = {source}", "no configuration that can be read", "a base", "go online")
    pixels = params.model.max_pixels
    for method in METHODS:
        click.echo(f"{method}: GB\n{estimate(config, params, pixels, method, device).table()}\n")

    def cell(method: str, have: float) -> str:
        steps = relief(config, params, pixels, method, device, have)
        after = steps[-1][1] if steps else estimate(config, params, pixels, method, device).total
        turns = [f"`{change}`" for change, _ in steps]
        return ", ".join([f"{after:.1f}" + (" (too much)" if after > have else ""), *turns])

    click.echo(f"| a device of | {' | '.join(METHODS)} |\n|" + "---|" * (len(METHODS) + 1))
    for have in sizes:
        click.echo(f"| {have:g} GB | " + " | ".join(cell(method, have) for method in METHODS) + " |")
