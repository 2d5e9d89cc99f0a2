"""Stage `pretrain` (frozen): make the embedded base again, from scratch, on general-domain drawings.

Takes about an hour on one core. Its weights are kept in git, so nobody needs to run it; who wants to:
`dvc unfreeze pretrain && dvc repro --single-item pretrain`.
"""

from pathlib import Path

import click

from stages.errors import stage_main


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--seed", default=3, show_default=True)
@click.option(
    "--vision-steps", default=500, show_default=True, help="Steps that teach the tower alone."
)
@click.option(
    "--steps",
    default=2600,
    show_default=True,
    help="Steps that teach language and vision together.",
)
@click.option("--rows", default=16, show_default=True, help="Images a step.")
@stage_main
def main(output, seed, vision_steps, steps, rows):
    from stages.pretraining.training import pretrain, save_base

    model, processor = pretrain(seed, vision_steps, steps, rows, threads=1, say=click.echo)
    save_base(model, processor, output)


if __name__ == "__main__":
    main()
