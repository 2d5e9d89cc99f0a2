"""Stage `pretrain` (frozen): make the embedded base again, from scratch, on general-domain drawings.

Takes under an hour on two cores. Its weights are kept in git, so nobody needs to run it; who wants to:
`dvc unfreeze pretrain && dvc repro --single-item pretrain`.
"""

from pathlib import Path

import click

from rarl.entry import stage_main
from rarl.records import write_json


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--seed", default=3, show_default=True)
@stage_main
def main(output, seed):
    from rarl.pretraining.training import card, general_accuracy, pretrain, save_base

    model, processor = pretrain(seed, threads=2, say=click.echo)
    save_base(model, processor, output)
    accuracy = general_accuracy(output)
    write_json("metrics/base.json", accuracy)
    text = card(accuracy, sum(p.numel() for p in model.parameters()), seed)
    (output / "README.md").write_text(text, encoding="utf-8")
    click.echo(f"pretrain: {accuracy['reasoning']['all']} % of general-domain questions right")


if __name__ == "__main__":
    main()
