"""Studies over experiments: run what is missing of them, and write their tables."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import click

from rarl.running.entry import explained, ignore_warnings_between_libraries

HELP = """

Finished experiments of the present commit with the same parameters and code are taken; the others run through DVC's
queue, several at a time. If the command is stopped or killed, run it again: it goes on with what is missing. Before it
starts it prints how many experiments run, how long they take, and which difference the study can show.

Writes `metrics/studies/{0}.csv`, `.md` and `.svg`.
"""
OPTIONS = (
    click.option(
        "-S",
        "--set-param",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a parameter, as `dvc exp run -S` does; commas separate several values.",
    ),
    click.option(
        "-j",
        "--jobs",
        type=click.IntRange(min=1),
        help="Experiments at a time; by default as many as cores and memory have room for, and one on a GPU.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be run, and stop."),
    click.option("--json", "as_json", is_flag=True, help="Print the table as JSON, and nothing else on stdout."),
)


def command(name: str, text: str) -> Callable[[Callable], click.Command]:
    """Make a function the command of a study, with the options that all studies have."""

    def decorate(function: Callable) -> click.Command:
        function = explained()(function)
        for option in reversed(OPTIONS):
            function = option(function)
        return click.command(name, help=text + HELP.format(name))(function)

    return decorate


@command("seeds", "Train with several seeds: mean and spread of every score.")
@click.option("--seeds", default="7,8,9", show_default=True, help="The seeds, separated by commas.")
def seeds(seeds: str, settings: tuple[str, ...], **options) -> None:
    """Run the command."""
    run("seeds", [f"seed={seeds}", *settings], **options)


@command("grid", "Run RARL with and without its reasoning reward and its diverse prompts.")
def grid(**options) -> None:
    """Run the command."""
    run("grid", **options)


@command("table2", "Run the paper's Table 2: amount of data, with and without LoRA, on CV-Bench.")
def table2(**options) -> None:
    """Run the command."""
    run("table2", **options)


@command("losses", "Compare the policy losses of RL over seeds, with paired tests against the first of them.")
@click.option("--losses", default="grpo,dr_grpo,dapo", show_default=True, help="Values of `rl.loss`.")
@click.option("--seeds", default="7,8,9", show_default=True, help="The seeds, separated by commas.")
def losses(losses: str, seeds: str, settings: tuple[str, ...], **options) -> None:
    """Run the command."""
    run("losses", [f"rl.loss={losses}", f"seed={seeds}", *settings], **options)


def shares(_context, _option, value: str) -> str:
    """Return the shares as text, sorted, with 0: what the others are compared with."""
    try:
        found = sorted({0.0, *map(float, value.split(","))})
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers from 0 to 1, such as 0,0.25,1") from None
    if len(found) == 1:
        raise click.BadParameter(f"{value!r} leaves nothing to compare with the share 0; add another, such as 1")
    return ",".join(f"{share:g}" for share in found)


@command("annotation", "Train with the reasoning of a share of the annotated rows: how many annotations are enough?")
@click.option("--share", "shares", default="0,0.1,0.25,0.5,1", show_default=True, callback=shares, help="The shares.")
@click.option("--seeds", default="7,8,9", show_default=True, help="The seeds, separated by commas.")
def annotation(shares: str, seeds: str, settings: tuple[str, ...], **options) -> None:
    """Run the command."""
    if any(setting.startswith("train.annotated_share=") for setting in settings):
        raise click.UsageError("Give the shares as --share, which adds 0: what the others are compared with.")
    run("annotation", [f"train.annotated_share={shares}", f"seed={seeds}", *settings], **options)


@command("sweep", "Run all combinations of parameters: `-S lora.r=4,8,16 -S rl.beta=0,0.04` are six experiments.")
def sweep(**options) -> None:
    """Run the command."""
    run("sweep", **options)


def run(name: str, settings: Sequence[str], jobs: int | None, dry_run: bool, as_json: bool) -> None:
    """Announce a study, run what is missing of it, and write its table.

    Raises:
        UserError: a parameter is wrong, another study runs, or this is no git or DVC repository.
    """
    from rarl.experiments import announcements, running
    from rarl.experiments.designs import Design
    from rarl.experiments.progress import Progress
    from rarl.experiments.revisions import git

    ignore_warnings_between_libraries()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    os.chdir(git("rev-parse", "--show-toplevel").strip())
    with nullcontext(0) if dry_run else running.only_study() as lock:
        design = Design(name, settings)
        finished = design.finished()
        missing = [one for one in design.combinations if one.name not in finished]
        jobs = jobs or announcements.room(design, len(missing))
        seconds = announcements.seconds(design)
        for line in announcements.announcement(design, finished, jobs, seconds):
            click.echo(line, err=True)
        if dry_run:
            return
        failed = {}
        if missing:
            try:
                done = running.run(design, missing, Progress(len(missing), jobs, seconds), lock)
            except KeyboardInterrupt:
                click.echo("Stopped. What was finished is kept; run the same command again to go on.", err=True)
                raise SystemExit(130) from None
            finished, failed = finished | done.finished, done.failed
        collect(design, finished, as_json)
    if failed:
        click.echo(f"{len(failed)} of {len(missing)} experiments failed: {', '.join(failed)}.", err=True)
        click.echo("The table is without them. Correct the cause, then run the same command again.", err=True)
        raise SystemExit(1)


def collect(design, finished: dict, as_json: bool) -> None:
    """Write the table of a study, and print it."""
    from rarl.experiments import sweeps
    from rarl.reporting.formats import records

    runs = [(one, finished[one.name]) for one in design.combinations if one.name in finished]
    if design.study in sweeps.OVER_SETTINGS:
        settings: dict[tuple, list] = {}
        for one, run in runs:
            settings.setdefault(tuple((k, v) for k, v in one.values if k != "seed"), []).append(run)
        frame = sweeps.OVER_SETTINGS[design.study]([(dict(values), found) for values, found in settings.items()])
    else:
        frame = sweeps.STUDIES[design.study]([run for _, run in runs])
    if frame.empty:
        click.echo("No experiment has scores: no table was written.", err=True)
        return
    text = sweeps.write(design.study, frame)
    click.echo(json.dumps(records(frame), indent=2, ensure_ascii=False) if as_json else text)
    click.echo(f"{sweeps.OUTPUT / design.study}.csv, .md and .svg", err=True)
