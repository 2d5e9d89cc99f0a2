r"""Annotate rows in the browser: the reasoning that training learns from, written or approved by physicians.

\b
    rarl annotate --rater anna                      open the page (http://127.0.0.1:7861); Ctrl-C ends it
    rarl annotate --rater anna --raters anna,ben    plan the rows for two, 20 % of them for both
    rarl annotate --rater anna --order useful --ask base,sft
                                                    plan with what the models do not know first
    rarl annotate --rater anna --drafts sft         with drafts by a model, to accept, edit or reject
    rarl annotate --agreement                       kappa of the findings, with intervals
    rarl annotate --rater cara --adjudicate         decide where others disagree
    rarl annotate --export                          bring the annotations into training: then run `dvc repro`

Everything is saved as it is typed in data/annotations/raters/<rater>.jsonl; the same command continues where you
stopped. The first call plans the rows, from data/curated, and later ones follow the plan. The page is served to this
machine only, and opens only with the token in its address, which is new at each start.
"""

import click

from rarl.params import load_params
from rarl.processes.pinning import pin
from rarl.running.entry import explained, ignore_warnings_between_libraries


def names(_context, _option, value: str | None) -> tuple[str, ...] | None:
    """Split --raters or --ask."""
    return tuple(dict.fromkeys(value.split(","))) if value else None


@click.command(help=__doc__.replace(r"\b", "\b"))
@click.option("--rater", help="Pseudonym of who annotates: a to z, 0 to 9 and _.")
@click.option("--raters", callback=names, help="Who shares the rows, separated by commas (default: the rater alone).")
@click.option("--overlap", type=click.FloatRange(0, 1), help="Share of the rows that all raters get (default: 0.2).")
@click.option("--split", type=click.Choice(["train", "dev", "test"]), help="Rows to annotate (default: train).")
@click.option("--order", type=click.Choice(["random", "useful"]), help="Which rows come first (default: random).")
@click.option(
    "--ask", callback=names, metavar="MODELS", help="For a new useful order: ask these about all rows first."
)
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only the first N rows of that order.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of order and overlap (default: that of params.yaml).")
@click.option("--drafts", metavar="MODEL", help="Show drafts by base, sft, grpo, rarl or a rival.")
@click.option("--adjudicate", is_flag=True, help="Show the rows on which others disagree, side by side.")
@click.option("--agreement", is_flag=True, help="Print the agreement of the raters.")
@click.option("--export", "exporting", is_flag=True, help="Write the table for `curate`, and name it in params.yaml.")
@click.option("--port", default=7861, show_default=True, type=click.IntRange(0, 65535))
@explained()
def main(agreement: bool, exporting: bool, rater: str | None, ask: tuple[str, ...] | None, **options) -> None:
    """Annotate, or print the agreement, or export."""
    ignore_warnings_between_libraries()
    params = load_params()
    pin(params)
    from rarl.annotating import console

    if exporting:
        console.export_annotations()
    elif agreement:
        console.print_agreement(params)
    elif rater is None:
        raise click.UsageError("--rater is needed, to keep your annotations apart from others'.")
    else:
        console.annotate(params, rater, ask=ask or (), **options)
