"""What `rarl annotate` runs and prints: serve the page until Ctrl-C, compute agreement, or export."""

import hashlib
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click

from rarl.annotating import plan
from rarl.annotating.agreement import agreement, overlaps, reason
from rarl.annotating.session import Annotations, Item, Proposal, Session, annotations_file, read_annotations
from rarl.data.annotations import content_key, folder, left_out_file
from rarl.errors import UserError
from rarl.params import Params
from rarl.records import Sample, read_records, write_json
from rarl.sharing.model_card import NOT_CLINICAL

AGREEMENT = "agreement.json"


def samples_of(split: str) -> dict[str, Sample]:
    """Content -> row of a split, as `curate` has written it, with those that it has left out by their verdict."""
    files = [Path(f"data/curated/{split}.jsonl"), *filter(Path.is_file, [left_out_file(split)])]
    return {content_key(sample): sample for path in files for sample in read_records(path, Sample)}


def planned(params: Params, rater: str, options: Mapping[str, object], ask: tuple[str, ...] = ()) -> plan.Plan:
    """The plan in its file, or a new one from the options; None stands for an option that is not given.

    For a new plan in the order `useful`, the models `ask` are asked about all rows.

    Raises:
        UserError: an option is not what the plan has, or the rater is not among those of a new plan.
    """
    given = {key: value for key, value in options.items() if value is not None}
    known = plan.read()
    if known:
        for key, value in given.items():
            if value != getattr(known, key):
                found, fix = f"{value}, but {plan.file()} has {getattr(known, key)}", "leave the option out, or delete"
                fix += f" {plan.file()} to plan again; annotations stay"
                raise UserError(f"--{key}", found, "the option that the plan was made with", fix)
        return known
    from rarl.annotating.usefulness import usefulness

    defaults = {"raters": (rater,), "overlap": 0.2, "order": "random", "seed": params.seed}
    wanted = plan.Plan(**defaults | given)
    if rater not in wanted.raters:
        found, fix = f"not among --raters {','.join(wanted.raters)}", "correct the name, or add it to --raters"
        raise UserError(f"--rater {rater}", found, "one of those who share the rows", fix)
    if ask and wanted.order != "useful":
        found, fix = "the order is random", "add --order useful, or leave --ask out"
        raise UserError(f"--ask {','.join(ask)}", found, "an order that depends on the models' answers", fix)
    samples = list(samples_of(wanted.split).values())
    annotated = {content for own in read_annotations().values() for content in own}
    made = plan.make(wanted, samples, partial(usefulness, params, ask), annotated)
    click.echo(f"{plan.file()}: {len(made.rows)} rows for {', '.join(made.raters)}, {made.order} order.")
    return made


def queue_of(params: Params, rater: str, made: plan.Plan, drafts: str | None) -> list[Item]:
    """The rows of a rater with a model's drafts, as far as the rows are still there."""
    samples = samples_of(made.split)
    rows = [samples[row.content] for row in made.of(rater) if row.content in samples]
    if gone := len(made.of(rater)) - len(rows):
        click.echo(f"{gone} planned rows are not in data/curated/{made.split}.jsonl any more, or have changed.")
    proposals = {}
    if drafts:
        from rarl.annotating.drafts import proposals as ask_for

        proposals = ask_for(drafts, params, rows)
    return [Item(row, proposals.get(content_key(row), ())) for row in rows]


def disputed(rater: str, made: plan.Plan, raters: Mapping[str, Annotations]) -> list[Item]:
    """The rows on which others disagree, their annotations in an order that does not reveal the rater.

    Raises:
        UserError: the rater has rows of their own to finish, and is blind to others until then.
    """
    samples = samples_of(made.split)
    if rater in made.raters:
        own = raters.get(rater, {})
        left = [row for row in made.of(rater) if row.content not in own or own[row.content].verdict is None]
        if left:
            found = f"{len(left)} unfinished rows of their own"
            raise UserError(f"--rater {rater} --adjudicate", found, "a reader who has finished", "finish these first")
    items = []
    for row in overlaps(raters, {content: sample.image_sha256 for content, sample in samples.items()}):
        others = [own[row.content] for name, own in raters.items() if name != rater and row.content in own]
        if rater in row.by or any(one.adjudicates for one in others) or not reason(row):
            continue
        order = sorted(row.by, key=lambda name: hashlib.sha256(f"{row.content} {name}".encode()).digest())
        proposals = [Proposal(name, one.text, one.findings, one.verdict) for name in order for one in [row.by[name]]]
        items.append(Item(samples[row.content], tuple(proposals), tuple(sorted(row.by))))
    return items


def annotate(
    params: Params, rater: str, drafts: str | None, adjudicate: bool, port: int, ask: tuple[str, ...] = (), **options
) -> None:
    """Serve the page until Ctrl-C; the arguments are the options of `rarl annotate`.

    Raises:
        UserError: a package or a model is missing, or a name or an option cannot be right.
    """
    annotations_file(rater)
    if missing := [name for name in ("starlette", "uvicorn") if not find_spec(name)]:
        fix = "pip install -c constraints.txt -e '.[annotate]'"
        raise UserError("rarl annotate", f"not installed: {', '.join(missing)}", "the packages of the page", fix)
    for option, model in [*(("--ask", model) for model in ask), *([("--drafts", drafts)] if drafts else [])]:
        if model not in params.all_models:
            known = f"one of {', '.join(params.all_models)}"
            raise UserError(f"{option} {model}", "no such model in params.yaml", known, "name one of these")
    click.echo(NOT_CLINICAL)
    made = plan.read() if adjudicate else planned(params, rater, options, ask)
    if made is None:
        fix = "plan again, as in `rarl annotate --rater anna --raters anna,ben`; annotations stay"
        raise UserError(str(plan.file()), "no such file", "the plan of the rows that others have annotated", fix)
    items = disputed(rater, made, read_annotations()) if adjudicate else queue_of(params, rater, made, drafts)
    if not items:
        click.echo("There is nothing to decide." if adjudicate else f"There are no rows for {rater}.")
        return
    from rarl.annotating.page import Page, Served
    from rarl.annotating.sources import dicom_files

    session = Session(rater, items)
    dicom = dicom_files(params.data.root, {item.sample.image for item in items})
    page = Page(session, params.data.root, f"{len(items)} rows of {made.split}.jsonl.", dicom)
    served = Served(page, port)
    click.echo(f"{session.done} of {len(items)} rows are finished.\nAnnotate at {served.address}")
    click.echo("Everything is saved as it is typed; Ctrl-C ends.")
    try:
        served.run()
    except KeyboardInterrupt:
        click.echo()
    session.reload()
    click.echo(f"{session.done} of {len(items)} rows are finished. Next: `rarl annotate --export`, then `dvc repro`.")


def print_agreement(params: Params) -> None:
    """Print the agreement of raters with common rows, and write it to `data/annotations/agreement.json`.

    Raises:
        UserError: no row has been finished by several raters.
    """
    made = plan.read()
    samples = samples_of(made.split if made else "train")
    rows = overlaps(read_annotations(), {content: sample.image_sha256 for content, sample in samples.items()})
    if not rows:
        found, fix = "no row that several raters have finished", "annotate with --raters and --overlap above 0"
        raise UserError(str(folder() / "raters"), found, "common rows", fix)
    found = {"all": agreement(rows, params.seed)}
    if made and made.order == "useful":  # a selection of hard rows: only those at random stand for the whole
        at_random = {row.content for row in made.rows if row.chosen == "random"}
        found["random"] = agreement([row for row in rows if row.content in at_random], params.seed)
    for which, groups in found.items():
        for group in groups:
            print_group(which, group)
    write_json(folder() / AGREEMENT, found)


def print_group(which: str, group: Mapping) -> None:
    """Print the agreement of some raters on `all` their common rows, or on the `random` ones."""
    click.echo(f"{', '.join(group['raters'])}: {which} common rows, {group['rows']}, of {group['images']} images")
    for name, what in (("findings_kappa", "findings"), ("verdict_kappa", "verdict"), ("text_f1", "text")):
        measure = "F1 of clinical facts" if what == "text" else f"{group['kappa']}'s kappa"
        value, low, high = group[name]
        shown = "undefined" if value is None else f"{value:.2f}"
        click.echo(f"  {what}: {measure} {shown}" + (f" [{low:.2f}, {high:.2f}]" if low is not None else ""))
    reasons = ", ".join(f"{count} {why}" for why, count in group["disagreements"].items())
    click.echo(f"  for a third reader: {reasons or 'none'}")


def export_annotations() -> None:
    """Write the table and name it in `params.yaml`."""
    from rarl.annotating.export import export

    made, raters = plan.read(), read_annotations()
    for name in dict.fromkeys([*(made.raters if made else ()), *raters]):
        count = sum(one.verdict is not None for one in raters.get(name, {}).values())
        click.echo(f"{name}: {count} finished rows")
    digest, rows, disputed_rows = export(raters)
    click.echo(f"{folder() / digest}.jsonl: {rows} rows. params.yaml names it; now run `dvc repro`.")
    if disputed_rows:
        click.echo(f"{disputed_rows} disputed rows are left out: `rarl annotate --adjudicate` decides.")
