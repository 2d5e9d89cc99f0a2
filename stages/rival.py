"""Stage `rival`: write how one rival is asked, and where its weights are (`data/models/<slug>/`)."""

from pathlib import Path

import click

from rarl.rivals import write_folder
from rarl.running.entry import stage


@stage
@click.option("--rival", required=True, help="Slug of a definition under `rival` in params.yaml.")
def main(params, rival):
    """Write the folder of one rival."""
    write_folder(rival, params.rival[rival], Path("data/models") / rival)


if __name__ == "__main__":
    main()
