"""Compare the judges with rows that people have labelled (no pipeline stage).

ROWS has one answer per line, as JSON lines or CSV: question, answers (the references), prediction (the model's
completion or answer), judge (who labelled it), right (0 or 1) and optionally kind and choices; other fields are not
read. Fifty rows of your own show whether a judge can be trusted on your data. docs/studies.md has an example.

Judges run with their settings in `params.yaml`. Peers are simple comparisons beside them: exact, substring, recall,
token_f1, bertscore, cosine, terms.

Nothing is written without --out or --list.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from rarl.params import load_params
from rarl.records import atomic_file, write_json
from rarl.running.entry import stage_main
from rarl.spreadsheet import write_csv

FILE = click.Path(path_type=Path)
#: Columns of --list.
LISTED = (
    "judge",
    "verdict",
    "labelled",
    "labelled_by",
    "kind",
    "line",
    "question",
    "reference",
    "prediction",
    "reason",
)


def _number(ctx: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """None for `all`."""
    if value != "all" and not value.isdecimal():
        raise click.BadParameter(f"'{value}' is neither a number nor `all`.")
    return None if value == "all" else int(value)


@click.command(help=__doc__)
@click.argument("rows", type=FILE)
@click.option(
    "--judges", metavar="NAMES", help="Judges and peers, with commas; default: all lexical and semantic judges."
)
@click.option("--before", type=FILE, help="File that --json printed earlier, to compare with.")
@click.option(
    "--disagreements",
    "most",
    default="10",
    show_default=True,
    callback=_number,
    metavar="N|all",
    help="Disagreements to print for each judge.",
)
@click.option("--list", "listed", type=FILE, help="CSV file for all disagreements; it has the texts of the rows.")
@click.option("--out", type=FILE, help="Write the figures to OUT.json and OUT.md, such as metrics/studies/judges.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures by kind as JSON, and nothing else.")
@click.option("--seed", default=20, show_default=True, help="Seed of the bootstrap.")
@stage_main
def main(rows, judges, before, most, listed, out, as_json, seed):
    """Print the figures and the disagreements, and write what was asked for."""
    from rarl.studies.judges import TABLE, chosen_judges, read_before, read_rows, study

    params, labelled = load_params(), read_rows(rows)
    names, earlier = chosen_judges(params, judges), read_before(before) if before else {}
    with redirect_stdout(sys.stderr):  # an LLM judge reports its cost
        found = study(labelled, names, params, seed)
    if as_json:
        click.echo(json.dumps(TABLE.dump_python(found.kinds), indent=2, allow_nan=False))
    else:
        show(found, earlier, most)
    for name, result in found.results.items():
        unscored = f", {result.accepted.count(None)} without a verdict" if None in result.accepted else ""
        click.echo(f"judges_study: {name} {len(labelled)} rows in {result.seconds:.1f} s{unscored}", err=True)
    if len({row.right for row in labelled}) == 1:
        label = "right" if labelled[0].right else "wrong"
        click.echo(f"judges_study: all rows are labelled {label}: kappa needs rows with both labels", err=True)
    if listed:
        write_list(listed, found)
    if out:
        write(out, found, f"rarl study judges {rows.name} --judges {','.join(names)} --seed {seed}", earlier)


def show(found, before: dict, most: int | None) -> None:
    """Print a table for each labeller, and at most `most` disagreements of each judge (None: all)."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rarl.studies.judges import HEAD, one_line

    console = Console(highlight=False)
    for labelled_by in found.labellers():
        title = escape(f"Labelled by {one_line(labelled_by)}")
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
        for number, name in enumerate(HEAD):
            text = number < 2
            table.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
        for line in found.table(labelled_by, before):
            table.add_row(*line)
        console.print(table)
    for name in found.results:
        differ = found.disagreements(name)
        for row, reason in differ[:most]:
            verdict, label = ("rejects", "right") if row.right else ("accepts", "wrong")
            click.echo(f"\n{name} {verdict}, labelled {label} by {one_line(row.judge)} ({row.kind}, line {row.line})")
            texts = {"question": row.question, "reference": " / ".join(row.answers), "prediction": row.prediction}
            for key, text in (texts | {"reason": reason}).items():
                click.echo(f"  {key:<11} {one_line(text)}")
        if left := len(differ) - len(differ[:most]):
            click.echo(f"\n{left} more disagreements of {name}: --disagreements all, or --list FILE.csv")


def write_list(path: Path, found) -> None:
    """Write every disagreement with its texts."""
    lines = [LISTED]
    for name in found.results:
        for row, reason in found.disagreements(name):
            verdicts = ("wrong", "right") if row.right else ("right", "wrong")
            texts = (row.question, "|".join(row.answers), row.prediction, reason)
            lines.append((name, *verdicts, row.judge, row.kind, row.line, *texts))
    write_csv(path, lines)
    click.echo(f"judges_study: {path}", err=True)


def write(out: Path, found, command: str, before: dict) -> None:
    """Write the figures as JSON and as Markdown."""
    files = [out.with_name(f"{out.name}{suffix}") for suffix in (".json", ".md")]
    write_json(files[0], found.as_json(command))
    with atomic_file(files[1]) as file:
        file.write(found.as_markdown(command, before))
    click.echo(f"judges_study: {', '.join(map(str, files))}", err=True)
