"""Estimate the memory that training needs with the present parameters, and what to change for smaller devices."""

import click

from rarl.errors import UserError
from rarl.params import load_params
from rarl.registry import METHODS
from rarl.rehearsal.bases import config_json, parse
from rarl.running.entry import ignore_warnings_between_libraries


@click.command(help=__doc__)
@click.option("--gb", "sizes", multiple=True, type=float, default=(40, 24, 16, 12), show_default=True, metavar="GB",
              help="Memory of a device; repeatable.")  # fmt: skip
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--base", help="Instead of base.source: a known base, or a folder with config.json.")
@click.option("--quantization", type=click.Choice(["nf4"]), help="Instead of model.quantization.")
def main(sizes: tuple[float, ...], device: str, base: str | None, quantization: str | None) -> None:
    """Run the command."""
    ignore_warnings_between_libraries()
    from rarl.planning.memory import configuration, estimate, relief
    from rarl.reporting.formats import markdown_table

    params = load_params()
    params.model.quantization = quantization or params.model.quantization
    if base:
        config = parse(config_json(base))
    else:
        source = params.base.source.replace("embedded", "data/base")
        config = configuration(source, params.base.revision)
        if config is None:
            found, fix = "no readable configuration", "go online, or name a known base with --base"
            raise UserError(f"base.source = {source}", found, "a model's config.json", fix)
    plans = {method: estimate(config, params, method, device) for method in METHODS}
    for method, plan in plans.items():
        click.echo(f"{method}: GB\n{plan.table()}\n")

    def cell(method: str, size: float) -> str:
        steps = relief(config, params, method, device, size)
        after = steps[-1][1] if steps else plans[method].total
        return ", ".join([f"{after:.1f}{' (too much)' * (after > size)}", *(f"`{change}`" for change, _ in steps)])

    rows = [[f"{size:g} GB", *(cell(method, size) for method in METHODS)] for size in sizes]
    click.echo("\n".join(markdown_table(["a device of", *METHODS], rows)))
