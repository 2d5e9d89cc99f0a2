"""Tables over several experiments.

Each study is one `dvc exp run --queue` command with choices, then `dvc queue start`, then this command, which reads
the experiments of the present commit from git:

    table2  amount of data, with and without LoRA (paper, section 3.1)
    grid    RARL's reasoning reward and prompting diversity separately
    seeds   mean and spread over seeds
    runs    any experiments: what differs, scores, paired tests, a page

It writes `metrics/studies/<study>.csv` and `.md`; for `runs` `data/studies/runs.csv`, `.md` and `.html`. The
commands are:

"""

import click

from rarl.studies.sweeps import COMMANDS, compare

#: `\b` keeps click from re-wrapping the list of studies.
HELP = __doc__.replace("    table2", "\b\n    table2") + "\n\n".join(f"{k}: {v}" for k, v in COMMANDS.items())


@click.command(help=HELP)
@click.argument("study", type=click.Choice(list(COMMANDS)))
@click.option("--all", "everywhere", is_flag=True, help="Experiments of every commit.")
def main(study: str, everywhere: bool) -> None:
    """Compare the experiments of one study."""
    compare(study, everywhere)
