"""The main tables in the console, printed when the pipeline ends."""

from collections.abc import Iterable

import pandas as pd
from rich.console import Console
from rich.table import Table

from rarl.reporting.claims import verdict_on
from rarl.reporting.findings import WARNING, findings
from rarl.reporting.formats import form, p_value, percent, records, signed
from rarl.reporting.inputs import Run
from rarl.reporting.page import NOT_CLINICAL, is_phantom
from rarl.reporting.tables import BASELINES, RIVALS, paper


def show(run: Run, frames: dict[str, pd.DataFrame]) -> None:
    """Print the own test, the comparisons between models and the verdicts on the paper's claims."""
    console = Console(highlight=False)
    own, judges = records(frames["own_test"]), [run.main_judge, *filter(None, [run.form_blind_judge])]
    numbers = {
        "final",
        "interval",
        "reasoning",
        "n",
        "effective",
        "difference",
        "p (Holm)",
        "words",
        "untagged",
        *judges,
    }

    def show_table(title: str, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
        table = Table(title=title, title_justify="left")
        for name in columns:
            right = name in numbers
            table.add_column(name, justify="right" if right else "left", no_wrap=right)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    columns = ("model", "mode", "final", "interval", "reasoning", "n", "effective")
    lines = (_own_test(row, run.labels) for row in own)
    show_table(f"Own test by the {run.main_judge} judge, percent", columns, lines)
    shapes = [_form(row, len(judges), run.labels) for row in own if row["model"] not in BASELINES]
    show_table("Form of the answers, and final scores", ("model", "mode", "words", "untagged", *judges), shapes)
    for which in ("", RIVALS):
        if len(tests := frames["paired_tests"].query("family == 'between models' + @which")):
            columns = ("comparison", "difference", "interval", "p (Holm)", "")
            lines = (_test(test, run.labels) for test in records(tests))
            show_table(f"Paired differences on the own test{which}, points", columns, lines)
    lines = records(frames["claims"])
    verdicts = [
        (claim["text"], *(verdict_on(claim["id"], source, lines) for source in ("paper", "ours")))
        for claim in paper()["claims"]
    ]
    show_table("The paper's claims", ("claim", "paper", "ours"), verdicts)
    for sentence in findings(run, frames):
        console.print(f"• {sentence}", markup=False, style="bold yellow" if sentence.startswith(WARNING) else None)
    if is_phantom(run):
        console.print("PHANTOM RESULTS: synthetic images, no medical meaning.", style="bold yellow")
    console.print(NOT_CLINICAL, style="bold")


def _own_test(row: dict, labels: dict[str, str]) -> tuple[str, ...]:
    interval = "" if row["final_low"] is None else f"{percent(row['final_low'])} to {percent(row['final_high'])}"
    if row["model"] in BASELINES:
        label, reasoning = BASELINES[row["model"]], ""
    else:
        label = labels[row["model"]]
        reasoning = "not annotated" if row["reasoning"] is None else percent(row["reasoning"])
    scores = (percent(row["final"]), interval, reasoning)
    return label, row["mode"], *scores, str(row["n"]), percent(row["n_effective"])


def _form(row: dict, judges: int, labels: dict[str, str]) -> tuple[str, ...]:
    untagged, words = form(row)
    return (
        labels[row["model"]],
        row["mode"],
        words,
        untagged,
        *map(percent, (row["final"], row["form_blind"])[:judges]),
    )


def _test(test: dict, labels: dict[str, str]) -> tuple[str, ...]:
    comparison = f"{labels[test['second']]} vs {labels[test['first']]}"
    interval = f"{signed(test['low'])} to {signed(test['high'])}"
    verdict = "significant" if test["differs"] else "not significant"
    return comparison, signed(test["difference"]), interval, p_value(test["p_holm"]), verdict
