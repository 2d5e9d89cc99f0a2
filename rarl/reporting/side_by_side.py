"""Several experiments in one comparison: the parameters that differ, the scores, and paired tests against the first.

An experiment is `rarl.studies.experiments.Experiment`: what git and DVC keep of one run. The tests pair the same
questions by their ids, and need both runs' verdicts in DVC's cache or remote; without them only the intervals are
side by side. One family of tests (Holm) holds all rows of all experiments that the change could move: a row whose
predictions and verdicts are the same bytes in both runs is `unchanged` and not tested.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rarl.records import predictions_file, verdicts_file
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.stats import holm, mcnemar

COLUMNS = [
    "experiment", "model", "mode", "set", "judge", "n", "unscored", "final", "final_low", "final_high",
    "test", "difference", "low", "high", "p", "p_holm", "differs", "seed_sd",
]  # fmt: skip
#: Standard deviation of the final score over seeds, by profile, model, mode and test set (`compare seeds`).
SEEDS = "metrics/studies/seeds.csv"

TESTED, UNCHANGED = "tested", "unchanged"
#: What the column `test` has where there is no test -> what that means, and what to do.
UNTESTED = {
    "not run": "the scores there are older than its parameters or code, because only some stages were run: "
    "run the whole pipeline with `dvc exp run` and no stage's name",
    "baseline not run": "the first run's scores are older than its parameters or code: `dvc repro`, "
    "`git add dvc.lock metrics`, `git commit`, then run the experiments again",
    "other numbers": "stages made other results of the same parameters, code and inputs, so the first run is another "
    "machine's or of other packages, and the difference is not the parameters'. Make the baseline here: "
    "`git stash`, `dvc repro`, `git add dvc.lock metrics`, `git commit`, then run the experiments again",
    "not at hand": "the verdicts of one of the two runs are neither in DVC's cache nor in a remote: `dvc pull` if another "
    "machine has them, or `git stash` and `dvc repro` for those of this commit",
    "other judge": "the two runs have different main judges (report.main_judge)",
}  # fmt: skip


def scores(runs: Sequence, alpha: float = 0.05) -> pd.DataFrame:
    """A line for each experiment, model, mode and test set: the main judge's score and, where the change could move it
    and both runs' verdicts are at hand, the paired difference to the first experiment in points, with McNemar's p
    after Holm over all of these."""
    first, lines = runs[0], []
    spread = seed_spread(first)
    for run in runs:
        judge = run.params["report"]["main_judge"]
        for model in run.params["models"]:
            same = standing(first, run, model)
            for mode, sets in run.json(f"metrics/scores/{model}.json").items():
                for name, judges in sets.items():
                    cell = {} if same == "not run" else judges.get(judge, {})
                    line = {"experiment": run.name, "model": model, "mode": mode, "set": name, "judge": judge}
                    line |= {key: cell.get(key) for key in COLUMNS[5:10]}
                    line["seed_sd"] = spread.get((model, mode, name))
                    if name != WITHOUT_OWN_TEST:  # some of the rows of `slake`
                        line |= compared(first, run, model, mode, name, same, 1 - alpha)
                    lines.append(line)
    tested = [line for line in lines if "p" in line]
    adjusted, differs = holm([line["p"] for line in tested], alpha)
    for line, p, reject in zip(tested, adjusted, differs):
        line |= {"p_holm": p, "differs": reject}
    frame = pd.DataFrame(lines, columns=COLUMNS).astype({"n": "Int64", "unscored": "Int64"})
    return frame.round(dict.fromkeys(COLUMNS[7:10] + COLUMNS[11:13], 2) | {"p": 5, "p_holm": 5})


def standing(first, run, model: str) -> str | None:
    """Why a model's rows cannot be compared with the first run's, or `unchanged`; None where the rows have to be looked at."""
    if run.out_of_date(model):
        return "not run"
    if run is first:
        return None
    if first.out_of_date(model):
        return "baseline not run"
    if run.unexplained(first, model):
        return "other numbers"
    judge = run.params["report"]["main_judge"]
    if judge != first.params["report"]["main_judge"]:
        return "other judge"
    paths = (f"data/predictions/{model}", f"data/verdicts/{model}/{judge}")
    hashes = [[one.made.get(path) for path in paths] for one in (first, run)]
    return UNCHANGED if all(hashes[0]) and hashes[0] == hashes[1] else None


def compared(first, run, model: str, mode: str, name: str, same: str | None, confidence: float) -> dict:
    """The column `test` of one row, and the paired test where there is one; empty for the first run."""
    if run is first or same:
        return {"test": same}
    judge = run.params["report"]["main_judge"]
    files = (predictions_file(model, mode, name), verdicts_file(model, judge, mode, name))
    before, after = ([one.tracked(file.as_posix()) for file in files] for one in (first, run))
    if not before[1] or not after[1]:
        return {"test": "not at hand"}
    if before == after:
        return {"test": UNCHANGED}
    test = paired(finals(before[1]), finals(after[1]), confidence)
    return {"test": TESTED if test else "not at hand"} | test


def seed_spread(run) -> dict[tuple[str, str, str], float]:
    """(model, mode, test set) -> standard deviation of the final score over seeds, in points, where it was studied."""
    rows = csv.DictReader(io.StringIO(run.text(SEEDS) or ""))
    return {
        (row["model"], row["mode"], row["set"]): float(row["sd"])
        for row in rows
        if row["profile"] == run.params["profile"] and row["sd"]
    }


def finals(text: str) -> dict[str, int]:
    """Final score by question's id, of a file of verdicts; empty where the file is damaged."""
    try:
        lines = [json.loads(line) for line in text.splitlines()]
        return {v["id"]: v["prediction_score"] for v in lines if v["prediction_score"] is not None}
    except (ValueError, KeyError, TypeError):
        return {}


def paired(first: dict[str, int], second: dict[str, int], confidence: float) -> dict:
    """McNemar's test on the questions that both runs have a score of; empty where they share none."""
    both = sorted(first.keys() & second.keys())
    if not both:
        return {}
    test = mcnemar([first[id] for id in both], [second[id] for id in both], confidence)
    return {key: test[key] for key in ("difference", "low", "high", "p")}


def differing(runs: Sequence) -> list[tuple[str, list]]:
    """Parameters whose value is not the same in all experiments: dotted key, a value for each."""
    from rarl.reporting.page import leaves

    flat = [leaves(run.params) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    for values in flat:  # a path says more about a machine than a reader needs
        if "data.root" in values:
            values["data.root"] = Path(values["data.root"]).name
    rows = [(key, [values.get(key) for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def summary(frame: pd.DataFrame) -> list[str]:
    """What the table says of each experiment, in sentences: what could move, what did, and what is not tested and why."""
    said = []
    for name, rows in frame[frame["test"].notna()].groupby("experiment", sort=False):
        counts = rows["test"].value_counts()
        tested, beyond = counts.get(TESTED, 0), rows[rows["differs"].eq(True)]
        if tested:
            found = [f"{line.model}, {line.mode}, {line.set} {line.difference:+.1f}" for line in beyond.itertuples()]
            said.append(
                f"{name}: {len(found)} of {tested} rows differ" + (": " if found else "") + "; ".join(found)
            )  # fmt: skip
        if unchanged := counts.get(UNCHANGED, 0):
            said.append(
                f"{name}: {unchanged} rows are unchanged, with the same predictions and verdicts, and not tested"
            )
        for reason, meaning in UNTESTED.items():
            if reason in counts:
                models = ", ".join(rows.loc[rows["test"] == reason, "model"].unique())
                said.append(f"{name}: {counts[reason]} rows ({models}) are not tested, since {meaning}")
    if frame["differs"].eq(True).any():
        said.append(
            "A test compares two trained models on the same questions. That another seed trains another model is not in "
            "it: compare a difference with the column seed_sd (`rarl compare seeds`)"
        )
    return said


def render(runs: Sequence, frame: pd.DataFrame) -> str:
    """The comparison as one HTML page without network."""
    from rarl.reporting import page, tables

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
        summary=summary(frame),
        phantom=any(run.params["data"]["root"] == page.PHANTOM_ROOT for run in runs),
    )
