"""What `rarl rate` runs and prints: serve the page until Ctrl-C, or export the ratings."""

import threading
from pathlib import Path

import click

from rarl.errors import UserError
from rarl.judges.human import folder, ratings_file, read_ratings
from rarl.params import Params, load_params
from rarl.rating import blinding, worklist
from rarl.rating.access import LOCAL, hosts_of
from rarl.rating.export import export, present_answers
from rarl.sharing.model_card import NOT_CLINICAL


def start() -> Params:
    """Load `params.yaml` and replace tokens that would tell a model's name."""
    params = load_params()
    click.echo(NOT_CLINICAL)
    for name in blinding.renew(params):
        click.echo(
            f"{name}: its tokens could be read as models' names; they are now random. "
            "`--export` writes the change to params.yaml."
        )
    return params


def rate(rater, models, mode, test_set, sample, disputed, host, port, names, auth) -> None:
    """Serve the page until Ctrl-C; the arguments are the options of `rarl rate`."""
    params = start()
    if rater is not None:
        ratings_file(rater)
    mode = mode or params.main_mode
    models = models.split(",") if models else [model for model in params.models if mode in params.modes_of(model)]
    test_set = test_set or params.own_test
    worklist.checked(params, models, mode, test_set)
    items = worklist.answers(params, models, mode, test_set)

    def queue_of(name: str) -> list[worklist.Item]:
        chosen = worklist.disputed(items, read_ratings()) if disputed else items
        return worklist.queue_of(chosen, name, params.seed, sample)

    chosen = queue_of(rater or "somebody")  # as many for every name
    if not chosen:
        click.echo("No answers are disputed." if disputed else "There are no answers to rate.")
        return
    from rarl.rating import page

    questions = len({item.sample.id for item in chosen})
    title = f"{len(chosen)} answers to {questions} questions of {test_set}, {mode} mode."
    blocks = page.RatingPage(queue_of, params.data.root, rater, title).blocks
    address = page.serve(blocks, host, port, auth or None, names)
    click.echo(f"{title} Equal answers of several models are rated once.")
    print_counts(params)
    if host not in LOCAL:
        click.echo(open_to_others(host, bool(auth)), err=True)
        click.echo(f"The page answers to the names {', '.join(hosts_of(host, names))}; --name adds another.")
    click.echo(f"Rate at {address}\nEvery click is saved at once; Ctrl-C ends.")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        blocks.close(verbose=False)
    click.echo()
    print_counts(params)
    click.echo("`rarl rate --export` and `dvc repro` bring them into the report.")


def open_to_others(host: str, password: bool) -> str:
    """The warning if the page is served to other machines."""
    guard = "with a password, but" if password else "WITHOUT A PASSWORD (see --auth) and"
    return (
        f"WARNING: everybody who reaches {host} and has the address gets this page, {guard} without encryption. It "
        "shows images and texts of patients. Behind an ssh tunnel, or a proxy with TLS, --host is not needed."
    )


def print_counts(params: Params) -> None:
    """Print how many answers each rater has rated, and how many of them no longer exist."""
    raters, present = read_ratings(), present_answers(params)
    for rater, ratings in raters.items():
        stale = len(ratings.keys() - present)
        note = f", {stale} of them of answers that no present model gives: not used" if stale else ""
        click.echo(f"  {rater}: {len(ratings)} answers rated{note}")


def export_ratings() -> None:
    """Write the human judges into `params.yaml`.

    Raises:
        UserError: nobody has rated anything.
    """
    params = start()
    if not read_ratings():
        raise UserError(str(folder()), "no ratings", "a file <rater>.jsonl", "rate with `rarl rate`")
    print_counts(params)
    path = Path("params.yaml")
    if changed := export(path):
        click.echo(f"{path}: judges {', '.join(changed)} hold the present ratings. Now run `dvc repro`.")
    else:
        click.echo(f"{path}: nothing has changed since the last export.")
