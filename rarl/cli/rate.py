"""Human evaluation: rate the models' answers on a page in the browser, without knowing whose they are.

\b
    rarl rate                 open the page (http://127.0.0.1:7860); Ctrl-C ends it
    rarl rate --sample 50     50 questions, the same for every rater
    rarl rate --export        make the ratings a judge: then run `dvc repro`

Every click is saved at once in data/ratings/<rater>.jsonl; the same command goes on where it stopped. This is no
stage: `dvc repro` never waits for people. The page is served to this machine only, unless --host is given, and to nobody
without the token in its address, which is new at each start.
"""

import re
import threading
from pathlib import Path

import click

from rarl.errors import UserError
from rarl.judges.human import folder, ratings_file, read_ratings
from rarl.model_card import NOT_CLINICAL
from rarl.params import Params, load_params
from rarl.rating import blinding, worklist
from rarl.rating.access import LOCAL, hosts_of
from rarl.rating.export import counts, export, present_answers
from rarl.reporting.inputs import Run


def pairs(_context, _option, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """`user:password` of each --auth."""
    for value in values:
        if not all(value.partition(":")):
            raise click.BadParameter("expected user:password")
    return [tuple(value.split(":", 1)) for value in values]


def host_names(_context, _option, values: tuple[str, ...]) -> tuple[str, ...]:
    """The names of each --name, without pattern or port."""
    for value in values:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", value):
            raise click.BadParameter("expected a host name such as rate.example.org, without port")
    return values


@click.command(help=__doc__)
@click.option("--rater", help="Whose page it is; without it, the page asks for a name.")
@click.option("--models", help="Whose answers are rated, with commas between (default: all).")
@click.option("--mode", help="Under which mode they were asked (default: the main one).")
@click.option("--set", "test_set", help="A test set (default: the own one).")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="N questions, the same for all raters.")  # fmt: skip
@click.option("--disputed", is_flag=True, help="Only answers on which the raters so far are even.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535))
@click.option("--name", "names", multiple=True, callback=host_names, metavar="HOST", help="A further host name by which the page is reached, such as that of a proxy; may be given often.")  # fmt: skip
@click.option("--auth", multiple=True, callback=pairs, envvar="RARL_RATE_AUTH", metavar="USER:PASSWORD", help="Ask for this password; may be given often. Better in the variable RARL_RATE_AUTH.")  # fmt: skip
@click.option("--export", "exporting", is_flag=True, help="Write the ratings' judges into params.yaml.")  # fmt: skip
def main(rater, models, mode, test_set, sample, disputed, host, port, names, auth, exporting):
    params = load_params()
    click.echo(NOT_CLINICAL)
    for name in blinding.renew(params):
        click.echo(f"{name}: its tokens could be read as models' names; they are now random. `--export` takes them into params.yaml.")  # fmt: skip
    if exporting:
        tell_export(params)
        return
    if rater is not None:
        ratings_file(rater)
    models = models.split(",") if models else params.models
    mode = mode or Run(params).main_mode
    test_set = test_set or params.own_test
    worklist.checked(params, models, mode, test_set)
    items = worklist.answers(params, models, mode, test_set)

    def queue_of(name: str) -> list[worklist.Item]:
        chosen = worklist.disputed(items, read_ratings()) if disputed else items
        return worklist.queue_of(chosen, name, params.seed, sample)

    # How many there are is the same for every name.
    chosen = queue_of(rater or "somebody")
    if not chosen:
        click.echo("No answers are disputed." if disputed else "There are no answers to rate.")
        return
    from rarl.rating import page

    title = (
        f"{len(chosen)} answers to {len({item.sample.id for item in chosen})} questions of {test_set}, {mode} mode."
    )
    blocks = page.build(queue_of, params.data.root, rater, title)
    address = page.serve(blocks, host, port, auth or None, names)
    click.echo(f"{title} Equal answers of several models are rated once.")
    tell_ratings(params)
    if host not in LOCAL:
        click.echo(open_to_others(host, bool(auth)), err=True)
        click.echo(f"It is answered as {', '.join(hosts_of(host, names))}; --name adds another.")
    click.echo(f"Rate at {address}\nEvery click is saved at once; Ctrl-C ends.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        blocks.close(verbose=False)
    click.echo()
    tell_ratings(params)
    click.echo("`rarl rate --export` and `dvc repro` bring them into the report.")


def open_to_others(host: str, password: bool) -> str:
    """The warning where the page is served to other machines."""
    guard = "with a password, but" if password else "WITHOUT A PASSWORD (see --auth) and"
    return (
        f"WARNING: everybody who reaches {host} and has the address gets this page, {guard} without encryption. It shows "
        "images and texts of patients. Behind an ssh tunnel, or a proxy with TLS, --host is not needed."
    )


def tell_ratings(params: Params) -> None:
    """How much each rater has done, and what of it is of answers that are no longer there."""
    for rater, count in counts(read_ratings(), present_answers(params)).items():
        stale = f", {count.stale} of them of answers that no present model gives: not used" if count.stale else ""
        click.echo(f"  {rater}: {count.ratings} answers rated{stale}")


def tell_export(params: Params) -> None:
    """
    Raises:
        UserError: nobody has rated anything.
    """
    if not read_ratings():
        raise UserError(str(folder()), "no ratings", "a file <rater>.jsonl", "rate with `rarl rate`")
    tell_ratings(params)
    path = Path("params.yaml")
    changed = export(path)
    if changed:
        click.echo(f"{path}: judges {', '.join(changed)} hold the present ratings. Now run `dvc repro`.")  # fmt: skip
    else:
        click.echo(f"{path}: nothing has changed since the last export.")
