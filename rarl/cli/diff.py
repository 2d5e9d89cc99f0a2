"""Compare two revisions: the parameters that differ, and which scores moved beyond noise.

A and B are git revisions, branches, tags or names of experiments. Without B, A is compared with the workspace; without
both, HEAD is. A difference is B minus A, in points, on the questions that both answered, with an interval and a paired
test that are clustered by image. `higher` and `lower` are significant after Holm's correction over all scores that the
changes can move. If no score differs, nothing is printed on stdout, and one line on stderr.

Finished experiments on the same commit that differ from A or B only in `seed` are further seeds of it. The difference
is then that of the means over seeds, and the interval and the test include the spread over seeds.
"""

import os

import click

from rarl.errors import UserError
from rarl.running.entry import ignore_warnings_between_libraries


@click.command(help=__doc__, epilog="`dvc metrics diff` shows every metric that moved, without a test.")
@click.argument("a", default="HEAD")
@click.argument("b", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print strict JSON: every row, and nothing else on stdout.")
@click.option("--md", is_flag=True, help="Print Markdown, for a comment on a pull request.")
@click.option("--all", "everything", is_flag=True, help="Print every row that moved, however small.")
@click.option("--one-seed", is_flag=True, help="Compare A and B alone, without experiments of other seeds.")
@click.option(
    "--exit-code",
    is_flag=True,
    help="Exit like git: 1 if any score differs, significant or not, and 0 if none does. 2 is an error, or no "
    "difference where some scores cannot be compared.",
)
def main(a: str, b: str | None, as_json: bool, md: bool, everything: bool, one_seed: bool, exit_code: bool) -> None:
    """Run the command."""
    ignore_warnings_between_libraries()
    from rarl.experiments import diff
    from rarl.experiments.revisions import Workspace, find, git

    try:
        os.chdir(git("rev-parse", "--show-toplevel").strip())
        found = diff.diff(find(a), find(b) if b else Workspace(), one_seed)
    except UserError as error:
        error.exit_code = 2
        raise
    if as_json or md:
        click.echo(diff.as_json(found) if as_json else diff.markdown(found, everything))
    elif found.status:
        click.echo(diff.text(found, everything))
    else:
        click.echo(diff.text(found, everything), err=True)
    if exit_code:
        raise SystemExit(found.status)
