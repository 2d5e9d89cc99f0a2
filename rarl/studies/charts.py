"""The charts of the tables over experiments, as SVG files of their own."""

import pandas as pd

from rarl.reporting import plots
from rarl.reporting.formats import records
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.tables import MODELS, SETS

#: Label of a row -> model -> score and the ends of its interval or range.
Rows = dict[str, dict[str, tuple[float, float, float]]]


def chart(study: str, frame: pd.DataFrame) -> str:
    """Return a table's chart; empty if it has none."""
    if study not in CHARTS:
        return ""
    rows, title = CHARTS[study](frame)
    rows = {label: {model: cell for model, cell in cells.items() if None not in cell} for label, cells in rows.items()}
    svg = plots.dots(rows, MODELS, title)
    # Alone in its file, it has no page to take colours and fonts from.
    svg = svg.replace("var(--line)", "#d0d0d0").replace("inherit", "sans-serif")
    return svg.replace("<svg", '<svg style="background: #fff"', 1)


def sweep(frame: pd.DataFrame) -> tuple[Rows, str]:
    """Return the own test's score and interval of each combination."""
    names = list(frame.columns)
    keys = names[: names.index("model")]
    own = next(name for name in names if f"{name}_low" in names)
    rows: Rows = {}
    for line in records(frame):
        label = ", ".join(f"{key.rpartition('.')[2]} {line[key]}" for key in keys) or "all seeds"
        rows.setdefault(label, {})[line["model"]] = tuple(line[f"{own}{end}"] for end in ("", "_low", "_high"))
    return rows, f"{SETS.get(own, own)}: final score and interval"


def seeds(frame: pd.DataFrame) -> tuple[Rows, str]:
    """Return mean and range over seeds on each test set, in the first mode."""
    rows: Rows = {}
    for line in records(frame[frame["mode"] == frame["mode"].iloc[0]]):
        if line["set"] != WITHOUT_OWN_TEST:
            cells = rows.setdefault(SETS.get(line["set"], line["set"]), {})
            cells[line["model"]] = (line["mean"], line["low"], line["high"])
    return rows, "Mean and range over seeds"


def grid(frame: pd.DataFrame) -> tuple[Rows, str]:
    """Return RARL's score and interval on the own test with and without its two changes."""
    rows = {
        f"reasoning reward: {line['reasoning_reward']}, prompts: {line['prompts']}": {
            "rarl": (line["final"], line["final_low"], line["final_high"])
        }
        for line in records(frame)
    }
    return rows, "Own test: final score and interval"


def table2(frame: pd.DataFrame) -> tuple[Rows, str]:
    """Return our total on CV-Bench and its interval by number of samples, with and without LoRA."""
    rows: Rows = {}
    for line in records(frame[frame["source"] != "paper"]):
        model = "base" if line["samples"] is None else "sft" if line["method"].startswith("SFT") else "grpo"
        full = ", all weights" if "w/o LoRA" in line["method"] else ""
        label = "untuned" if model == "base" else f"{line['samples']} samples{full}"
        rows.setdefault(label, {})[model] = (line["Total"], line["Total_low"], line["Total_high"])
    return rows, "CV-Bench: total and interval"


CHARTS = {"sweep": sweep, "seeds": seeds, "grid": grid, "table2": table2}
