"""Tables over several experiments.

`rarl study` runs the experiments of a study and writes its table. This command writes it from experiments that were
run by hand (`dvc exp run`), or on another machine (`dvc exp pull`), on the present commit:

    table2  amount of data, with and without LoRA (paper, section 3.1)
    grid    RARL's reasoning reward and prompting diversity separately
    seeds   mean and spread over seeds
    runs    any experiments: what differs, scores, paired tests, a page

It writes `metrics/studies/<study>.csv` and `.md`; for `runs` `data/studies/runs.csv`, `.md` and `.html`. The
commands that run them are:

"""

import click

from rarl.experiments.sweeps import COMMANDS, STUDIES, compare

#: `\b` keeps click from re-wrapping the list of studies.
HELP = __doc__.replace("    table2", "\b\n    table2") + "\n\n".join(f"{k}: {COMMANDS[k]}" for k in STUDIES)


@click.command(help=HELP)
@click.argument("study", type=click.Choice(list(STUDIES)))
@click.option("--all", "everywhere", is_flag=True, help="Experiments of every commit.")
def main(study: str, everywhere: bool) -> None:
    """Compare the experiments of one study."""
    compare(study, everywhere)
