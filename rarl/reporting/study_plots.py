"""The figures of studies over experiments, as SVG.

Each takes the rows of a study's table (`study_tables.study`), and returns an empty string without data.
"""

from textwrap import wrap

from rarl.registry import MODELS, Model
from rarl.reporting import plots
from rarl.reporting.formats import as_text
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.study_tables import annotation_score, sweep_blocks
from rarl.reporting.tables import SETS


def seeds(rows: list[dict], models: dict[str, Model] = MODELS) -> str:
    """Plot mean and range over seeds of each model on each test set, in the first row's mode."""
    cells: dict[str, dict] = {}
    for row in rows:
        if row["mode"] == rows[0]["mode"] and row["set"] != WITHOUT_OWN_TEST and row["mean"] is not None:
            label = SETS.get(row["set"], row["set"])
            cells.setdefault(label, {})[row["model"]] = (row["mean"], row["low"], row["high"])
    return plots.dots(cells, models, "Mean and range over seeds", "seeds")


def grid(rows: list[dict]) -> str:
    """Plot RARL's own-test score with and without each of its two changes."""
    on = {"yes": "reasoning reward", "no": "no reasoning reward"}
    bars = [
        row
        | {
            "colour": plots.COLOURS["rarl"],
            "faint": False,
            "label": f"{on[row['reasoning_reward']]}, prompts: {row['prompts']}",
        }
        for row in rows
        if row["final"] is not None
    ]
    return plots.bars(bars, {}, "RARL on the own test set", "grid")


def table2(rows: list[dict]) -> str:
    """Plot our totals on CV-Bench over the number of training samples, a line for each method."""
    lines: dict[str, list] = {}
    for row in rows:
        if row["source"] != "paper" and row.get("Total_low") is not None:
            point = (row["samples"], row["Total"], row["Total_low"], row["Total_high"])
            lines.setdefault(row["method"], []).append(point)
    styles = {name: ("sft" if name.startswith("SFT") else "grpo", "w/o LoRA" in name) for name in lines}
    level = next((points[0][1:] for points in lines.values() if points[0][0] is None), None)
    trained = {name: sorted(points) for name, points in lines.items() if points[0][0] is not None}
    return plots.by_samples(trained, styles, level, "CV-Bench, total")


def sweep(rows: list[dict], models: dict[str, Model] = MODELS) -> str:
    """Plot each model's score with its interval on the first test set, for every combination of the swept keys."""
    blocks = sweep_blocks(rows)
    if not blocks:
        return ""
    cells = {}
    for line in blocks[0]["lines"]:
        settings = (f"{key.rpartition('.')[2]} {as_text(value)}" for key, value in line["values"].items())
        label = "\n".join(wrap(", ".join(settings) or "all seeds", 32))
        cells[label] = {
            model: (cell["final"], cell["final_low"], cell["final_high"])
            for model, cell in line["models"].items()
            if cell["final"] is not None
        }
    return plots.dots(cells, models, SETS.get(blocks[0]["set"], blocks[0]["set"]), "sweep")


def losses(rows: list[dict]) -> str:
    """Plot each RL model's score with its interval on the first test set, for every loss."""
    cells: dict[str, dict] = {}
    test_set = rows[0]["set"] if rows else ""
    for row in rows:
        if row["set"] == test_set and row["final"] is not None:
            cells.setdefault(row["loss"], {})[row["model"]] = (row["final"], row["final_low"], row["final_high"])
    return plots.dots(cells, MODELS, SETS.get(test_set, test_set), "losses")


def annotation(rows: list[dict]) -> str:
    """Plot SFT's and RARL's scores on the own test set over the annotated share of the training rows."""
    plain = f"{MODELS['rarl'].label}, no reasoning reward"
    styles = {MODELS[model].label: (model, "-") for model in ("sft", "rarl")} | {plain: ("rarl", ":")}
    panels: dict[str, dict[str, list]] = {}
    for row in rows:
        if row["mean_low"] is None:
            continue
        lines = panels.setdefault(annotation_score(row), {})
        point = (100 * row["share"], row["mean"], row["mean_low"], row["mean_high"])
        if row["reasoning_reward"] != "no" or row["share"] == 0:
            lines.setdefault(MODELS[row["model"]].label, []).append(point)
        if row["reasoning_reward"] == "no":
            lines.setdefault(plain, []).append(point)
    return plots.by_share(panels, styles) if panels else ""


#: Study -> its figure.
FIGURES = {"annotation": annotation, "losses": losses, "seeds": seeds, "grid": grid, "table2": table2, "sweep": sweep}
