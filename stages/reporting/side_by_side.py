"""Several experiments in one comparison: the parameters that differ, the scores, and paired tests against the first.

An experiment is `stages.compare.Experiment`: what git and DVC keep of one run. The tests pair the same questions by
their ids, and need both runs' verdicts in DVC's cache (or its remote, after `dvc pull`); without them only the
intervals stand side by side.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stages.reporting.statistics import holm, mcnemar

COLUMNS = [
    "experiment", "model", "mode", "set", "judge", "n", "unscored", "final", "final_low", "final_high",
    "difference", "low", "high", "p", "p_holm", "differs",
]  # fmt: skip


def scores(runs: Sequence, alpha: float = 0.05) -> pd.DataFrame:
    """A line for each experiment, model, mode and test set: the main judge's score and, where both runs' verdicts are at
    hand, the paired difference to the first experiment in points, with McNemar's p after Holm over all of them."""
    first, lines = runs[0], []
    for run in runs:
        judge = run.params["report"]["main_judge"]
        for model in run.params["models"]:
            for mode, sets in run.json(f"metrics/scores/{model}.json").items():
                for name, judges in sets.items():
                    cell = judges.get(judge, {})
                    line = {
                        "experiment": run.name,
                        "model": model,
                        "mode": mode,
                        "set": name,
                        "judge": judge,
                    }
                    line |= {key: cell.get(key) for key in COLUMNS[5:10]}
                    if run is not first and judge == first.params["report"]["main_judge"]:
                        line |= paired(
                            first.finals(model, mode, name),
                            run.finals(model, mode, name),
                            1 - alpha,
                        )
                    lines.append(line)
    tested = [line for line in lines if "p" in line]
    adjusted, differs = holm([line["p"] for line in tested], alpha)
    for line, p, reject in zip(tested, adjusted, differs):
        line |= {"p_holm": p, "differs": reject}
    frame = pd.DataFrame(lines, columns=COLUMNS)
    return frame.round(dict.fromkeys(COLUMNS[7:13], 2) | {"p": 5, "p_holm": 5})


def paired(first: dict[str, int], second: dict[str, int], confidence: float) -> dict:
    """McNemar's test on the questions that both runs have a score of; empty where they share none."""
    both = sorted(first.keys() & second.keys())
    if not both:
        return {}
    test = mcnemar([first[id] for id in both], [second[id] for id in both], confidence)
    return {key: test[key] for key in ("difference", "low", "high", "p")}


def differing(runs: Sequence) -> list[tuple[str, list]]:
    """Parameters whose value is not the same in all experiments: dotted key, a value for each."""
    from stages.reporting.page import leaves

    flat = [leaves(run.params) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    for values in flat:  # a path says more about a machine than a reader needs
        values["data.root"] = Path(values["data.root"]).name
    rows = [(key, [values.get(key) for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def render(runs: Sequence, frame: pd.DataFrame) -> str:
    """The comparison as one HTML page without network."""
    from stages.reporting import page, tables

    blocks: dict[tuple, dict] = {}
    for line in page.records(frame):
        models = blocks.setdefault((line["mode"], line["set"]), {})
        models.setdefault(line["model"], {})[line["experiment"]] = line
    return page.template("side_by_side.html").render(
        not_clinical=page.NOT_CLINICAL,
        names=[run.name for run in runs],
        parameters=differing(runs),
        blocks=blocks,
        labels=tables.MODELS,
        sets=tables.SETS,
        tested=bool(frame["p"].notna().any()),
        phantom=any(run.params["data"]["root"] == page.PHANTOM_ROOT for run in runs),
    )
