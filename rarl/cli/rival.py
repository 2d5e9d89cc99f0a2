"""List definitions of rivals, models of others, or add some to params.yaml and to its `models`.

Without a slug, list those that are shipped (rarl/rivals.yaml). docs/rivals.md describes their keys.
"""

from pathlib import Path

import click

from rarl.errors import UserError
from rarl.params import load_params
from rarl.profiles import round_trip, write_params
from rarl.running.entry import explained

SHIPPED = Path(__file__).parents[1] / "rivals.yaml"


@click.command(help=__doc__)
@click.argument("slugs", nargs=-1, metavar="[SLUG]...")
@click.option("--params", "path", default="params.yaml", show_default=True, type=click.Path(path_type=Path))
@explained()
def main(slugs: tuple[str, ...], path: Path) -> None:
    """Run the command."""
    yaml = round_trip()
    shipped = yaml.load(SHIPPED.read_text(encoding="utf-8"))
    if not slugs:
        for slug, definition in shipped.items():
            place = definition.get("source") or f"{definition['model']} at {definition['base_url']}"
            click.echo(f"{slug:15}{definition['label']:16}{place}")
        return
    load_params(path)  # an error if it is missing or not valid
    params = yaml.load(path.read_text(encoding="utf-8"))
    defined = params.setdefault("rival", {})
    for slug in slugs:
        if slug not in shipped and slug not in defined:
            fix = "choose one of them, or write its block under `rival:` (docs/rivals.md)"
            raise UserError(slug, "no such definition", f"one of {', '.join(shipped)}", fix)
        defined.setdefault(slug, shipped.get(slug))
        if slug not in params["models"]:
            params["models"].append(slug)
    write_params(path, params)
    click.echo(
        f"{path}: {', '.join(slugs)} defined under `rival` and listed under `models`; `dvc repro` asks what is new"
    )
