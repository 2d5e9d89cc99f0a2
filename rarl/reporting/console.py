"""The main tables in the console: what a reader wants to see when the pipeline ends."""

import pandas as pd
from rich.console import Console
from rich.table import Table

from rarl.reporting.claims import overall
from rarl.reporting.inputs import Run
from rarl.reporting.page import NOT_CLINICAL, findings, is_phantom, p_value, percent, records, signed
from rarl.reporting.tables import BASELINES, MODELS, paper


def show(run: Run, frames: dict[str, pd.DataFrame]) -> None:
    """Print the own test, the comparisons between models and the verdicts on the paper's claims."""
    console = Console(highlight=False)
    own = Table(title=f"Own test by the {run.main_judge} judge, percent", title_justify="left")
    for name in ("model", "mode", "final", "interval", "reasoning", "n"):
        own.add_column(name, justify="left" if name in ("model", "mode") else "right")
    for row in records(frames["own_test"]):
        low, high = row["final_low"], row["final_high"]
        own.add_row(
            MODELS.get(row["model"]) or BASELINES[row["model"]],
            row["mode"],
            percent(row["final"]),
            "" if low is None else f"{percent(low)} to {percent(high)}",
            ""
            if row["model"] in BASELINES
            else "not annotated"
            if row["reasoning"] is None
            else percent(row["reasoning"]),
            str(row["n"]),
        )
    console.print(own)
    tests = records(frames["paired_tests"].query("family == 'between models'"))
    if tests:
        table = Table(title="Paired differences on the own test, points", title_justify="left")
        for name in ("comparison", "difference", "interval", "p (Holm)", ""):
            table.add_column(name, justify="left" if name in ("comparison", "") else "right")
        for t in tests:
            table.add_row(
                f"{MODELS[t['second']]} vs {MODELS[t['first']]}",
                signed(t["difference"]),
                f"{signed(t['low'])} to {signed(t['high'])}",
                p_value(t["p_holm"]),
                "differs" if t["differs"] else "within noise",
            )
        console.print(table)
    claims = Table(title="The paper's claims", title_justify="left")
    for name in ("claim", "paper", "ours"):
        claims.add_column(name)
    lines = records(frames["claims"])
    for claim in paper()["claims"]:
        own = [line for line in lines if line["claim"] == claim["id"]]
        verdicts = [
            overall([line["verdict"] for line in own if line["source"] == source]) for source in ("paper", "ours")
        ]
        claims.add_row(claim["text"], *verdicts)
    console.print(claims)
    for sentence in findings(run, frames):
        console.print(f"• {sentence}", markup=False)
    if is_phantom(run):
        console.print("PHANTOM RESULTS: drawn images, no medical meaning.", style="bold yellow")
    console.print(NOT_CLINICAL, style="bold")
