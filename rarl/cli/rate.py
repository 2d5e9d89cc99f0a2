r"""Human evaluation: rate the models' answers in the browser, without knowing which model gave them.

\b
    rarl rate                 open the page (http://127.0.0.1:7860); Ctrl-C ends it
    rarl rate --sample 50     50 questions, the same for every rater
    rarl rate --export        make the ratings a judge: then run `dvc repro`

Every click is saved at once in data/ratings/<rater>.jsonl; the same command continues where you stopped. This is not
a stage: `dvc repro` never waits for people. The page is served to this machine only, unless --host is given, and
opens only with the token in its address, which is new at each start.
"""

import re

import click

from rarl.rating import console


def pairs(_context, _option, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """Split `user:password` of each --auth."""
    for value in values:
        if not all(value.partition(":")):
            raise click.BadParameter("expected user:password")
    return [tuple(value.split(":", 1)) for value in values]


def host_names(_context, _option, values: tuple[str, ...]) -> tuple[str, ...]:
    """Check each --name: a host name, without pattern or port."""
    for value in values:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", value):
            raise click.BadParameter("expected a host name such as rate.example.org, without port")
    return values


NAME = "Another host name by which the page is reached, such as a proxy's; can be repeated."
AUTH = "Ask for this password; can be repeated. Safer in the environment variable RARL_RATE_AUTH."


@click.command(help=__doc__.replace(r"\b", "\b"))
@click.option("--rater", help="Whose page it is; without it, the page asks for a name.")
@click.option("--models", help="Models whose answers are rated, separated by commas (default: all).")
@click.option("--mode", help="Mode of the answers (default: the main one).")
@click.option("--set", "test_set", help="A test set (default: the own one).")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="N questions, the same for all raters.")
@click.option("--disputed", is_flag=True, help="Only answers on which the raters so far are tied.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535))
@click.option("--name", "names", multiple=True, callback=host_names, metavar="HOST", help=NAME)
@click.option("--auth", multiple=True, callback=pairs, envvar="RARL_RATE_AUTH", metavar="USER:PASSWORD", help=AUTH)
@click.option("--export", "exporting", is_flag=True, help="Write the judges of the ratings into params.yaml.")
def main(exporting: bool, **options) -> None:
    """Rate, or export the ratings."""
    if exporting:
        console.export_ratings()
    else:
        console.rate(**options)
