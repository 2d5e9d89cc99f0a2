"""The tables of studies over experiments, which the report shows, and the training noise that the seeds measure."""

from pathlib import Path
from statistics import NormalDist

import pandas as pd

from rarl.registry import MODELS
from rarl.reporting.formats import records, signed
from rarl.reporting.inputs import Run

STUDIES = Path("metrics/studies")


def study(name: str, profile: str) -> list[dict]:
    """Return the rows of a study that was run; only those of this profile if the table names profiles."""
    path = STUDIES / f"{name}.csv"
    rows = records(pd.read_csv(path)) if path.is_file() else []
    return [row for row in rows if row.get("profile", profile) == profile]


def training_noise(run: Run, own: pd.DataFrame) -> dict[str, dict]:
    """Return how the own-test score of each model varies over seeds, beside how it varies over questions.

    Args:
        run: the run, whose profile and main mode select the rows of `seeds.csv`.
        own: the table `own_test`.

    Returns:
        Model -> `seeds`, `sd`, `low` and `high` over seeds; `error`, the standard error over questions in points;
        `larger`, the larger of the two; and `outside`, whether this run's score is outside the range over seeds.
        Models without two seeds are left out. Empty if the base, which no seed changes, has another score in
        `seeds.csv`: then its data or settings are others.
    """
    place = (run.main_mode, run.params.own_test)
    spread = {row["model"]: row for row in study("seeds", run.params.profile) if (row["mode"], row["set"]) == place}
    quantile = NormalDist().inv_cdf((1 + run.confidence) / 2)
    found = {}
    for row in records(own[(own["mode"] == run.main_mode) & own["final"].notna()]):
        noise = spread.get(row["model"], {"sd": None})
        if noise["sd"] is not None:
            error = (row["final_high"] - row["final_low"]) / 2 / quantile
            found[row["model"]] = noise | {
                "seeds": int(noise["seeds"]),
                "error": error,
                "larger": "seeds" if noise["sd"] > error else "questions",
                "outside": not noise["low"] <= row["final"] <= noise["high"],
            }
    return {} if found.get("base", {"outside": False})["outside"] else found


def could_be_noise(difference: float, noises: list[dict], confidence: float) -> bool:
    """Whether two trainings, one of each method, can differ by this much if the methods are equally good on average.

    Student's t with the Welch-Satterthwaite degrees of freedom, because a few seeds give a rough standard deviation.

    Args:
        difference: between the two scores, in points.
        noises: of the two models (`training_noise`).
        confidence: such as 0.95.
    """
    from scipy.special import stdtrit

    variances = [noise["sd"] ** 2 for noise in noises]
    if not sum(variances):
        return False
    parts = sum(v**2 / (noise["seeds"] - 1) for v, noise in zip(variances, noises))
    quantile = stdtrit(sum(variances) ** 2 / parts, (1 + confidence) / 2)
    return abs(difference) <= quantile * sum(variances) ** 0.5


def sweep_blocks(rows: list[dict]) -> list[dict]:
    """Return the table of `rarl study sweep` as one block per test set.

    Args:
        rows: of `sweep.csv`, one per combination and model: the swept keys, `model`, `seeds` if there were several,
            then for each test set its score, and columns that begin with its name, such as `slake_low`.

    Returns:
        For each test set: `set`, and `lines` with the `values` of the swept keys and a cell for each model.
    """
    names = list(rows[0]) if rows else []
    keys = [name for name in names[: names.index("model")] if name != "profile"] if rows else []
    blocks = []
    for name in names:
        if f"{name}_low" not in names:
            continue
        lines: dict[tuple, dict] = {}
        for row in rows:
            values = {key: row[key] for key in keys}
            parts = {column.removeprefix(f"{name}_"): row[column] for column in names if column.startswith(f"{name}_")}
            ends = {f"final_{end}": parts.pop(end) for end in ("low", "high")}
            cell = {"final": row[name], **ends, "seeds": row.get("seeds"), **parts}
            line = lines.setdefault(tuple(values.values()), {"values": values, "models": {}})
            line["models"][row["model"]] = cell
        blocks.append({"set": name, "lines": list(lines.values())})
    return blocks


def annotation_score(row: dict) -> str:
    """Return the label of a score in `annotation.csv`, such as `reasoning score, truth`."""
    return f"{row['score']} score, {row['judge']}"


def annotation_notes(rows: list[dict]) -> list[str]:
    """Return in sentences what `rarl study annotation` found, and what it can and cannot tell.

    Args:
        rows: of `annotation.csv`.
    """
    tests = [row for row in rows if row["difference"] is not None]
    if not tests:
        return []
    seeds, found = int(rows[0]["seeds"]), [row for row in tests if row["differs"]]
    notes = [
        f"{len(found)} of {len(tests)} differences from the trainings without annotations are beyond the noise of "
        "questions and seeds (Holm over all of them)."
    ]
    notes += [
        f"{MODELS[row['model']].label}, {100 * row['share']:g} % annotated ({int(row['rows'])} rows), "
        f"{annotation_score(row)}: {signed(row['difference'])} points "
        f"({signed(row['difference_low'])} to {signed(row['difference_high'])})."
        for row in found
    ]
    for score in dict.fromkeys(map(annotation_score, tests)):
        of = [row for row in tests if annotation_score(row) == score]
        halves = [(row["difference_high"] - row["difference_low"]) / 2 for row in of]
        notes.append(
            f"{score.capitalize()}: with {seeds} seeds the intervals of the differences are {min(halves):.0f} to "
            f"{max(halves):.0f} points to each side."
        )
    if {row["share"] for row in rows if row["reasoning_reward"] == "no"} == {0}:
        notes.append(
            "RARL without its reasoning reward reads no annotation: at every share it has the scores of share 0."
        )
    return [
        *notes,
        "Smaller effects do not show, so a flat curve is no proof that annotations are of no use.",
        "On phantoms the annotations are made from what the image shows, without errors and in one style; those of "
        "physicians may need more rows, or fewer.",
        "The annotated rows are a random share: an order by usefulness is not tested here.",
    ]
