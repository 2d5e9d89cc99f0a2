"""Several experiments side by side: the parameters that differ, the scores, and paired tests against the first.

An experiment is `rarl.studies.experiments.Experiment`: what git and DVC keep of one run. The tests pair the same
questions by their ids, and need both runs' verdicts in DVC's cache or remote; without them the page shows only the
intervals. One family of tests (Holm) holds all rows of all experiments that the change could affect: a row whose
predictions and verdicts are the same bytes in both runs is `unchanged` and not tested.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import click
import pandas as pd
from ruamel.yaml import YAML

from rarl.profiles import leaves
from rarl.records import atomic_file, predictions_file, verdicts_file
from rarl.registry import JUDGE_KINDS
from rarl.reporting import page, tables
from rarl.reporting.formats import records
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.stats import holm, paired
from rarl.reporting.tables import GAP

#: Outside of what git tracks, so that the daily comparison leaves the tree clean and re-runs no stage.
OUTPUT = Path("data/studies")
CELL = ["n", "unscored", "final", "final_low", "final_high", "n_effective", "untagged", "answer_words"]
#: Standard deviation of the final score over seeds, by profile, model, mode and test set (`rarl compare seeds`).
SEEDS = "metrics/studies/seeds.csv"

#: Values of the column `test`; the last is for rows that are also rows of `slake`, which would be tested twice.
TESTED, UNCHANGED, PART = "tested", "unchanged", "part of slake"
#: The other values -> what they mean, and what to do.
UNTESTED = YAML(typ="safe", pure=True).load(Path(__file__).with_suffix(".yaml"))
#: What a paired test leaves out.
ONE_SEED = (
    "A test compares two trained models on the same questions. It does not include that another seed trains another "
    "model"
)


def scores(runs: Sequence, alpha: float = 0.05) -> pd.DataFrame:
    """Return a line per experiment, model, mode and test set: the main judge's score and the paired difference.

    The difference is to the first experiment, in points, with p by `stats.sign_flip` after Holm over all rows that the
    change could affect and whose verdicts are available for both runs. The column `test` says which rows these are,
    and why the others are not tested (`UNTESTED`).
    """
    lines = [line for run in runs for line in rows(runs[0], run, main_judge(runs[0]), main_judge(run), alpha)]
    correct(lines, alpha)
    keys = ["experiment", "model", "mode", "set", "judge"]
    columns = [*keys, *CELL, "form_blind", "test", *GAP, "p", "p_holm", "differs", "seed_sd"]
    frame = pd.DataFrame(lines, columns=columns)
    digits = dict.fromkeys([*CELL[2:], "form_blind", *GAP], 2) | {"p": 5, "p_holm": 5}
    return frame.astype(dict.fromkeys(CELL[:2], "Int64") | dict.fromkeys(digits, float)).round(digits)


def main_judge(run) -> str:
    """Return the judge that a run's report compares models by."""
    return run.params["report"]["main_judge"]


def rows(first, run, theirs: str, judge: str, alpha: float) -> Iterator[dict]:
    """Yield a line per model, mode and test set of a run: its scores by `judge`, the test and the difference.

    The test is against the first run's scores by the judge `theirs`.
    """
    images = cache(lambda name: shared_images(first, run, name))
    spread, blind = seed_spread(first), form_blind_judge(run.params)
    for model in run.params["models"]:
        same = status(first, run, model, theirs, judge)
        for mode, sets in run.json(f"metrics/scores/{model}.json").items():
            for name, judges in sets.items():
                cell = {} if same == "not run" else judges.get(judge, {})
                line = {"experiment": run.name, "model": model, "mode": mode, "set": name, "judge": judge}
                line |= {key: cell.get(key) for key in CELL} | {"seed_sd": spread.get((model, mode, name))}
                line["form_blind"] = judges.get(blind, {}).get("final") if cell else None
                yield line | compared(first, run, (model, mode, name), judge, same, images, 1 - alpha)


def correct(lines: Sequence[dict], alpha: float) -> None:
    """Add Holm's `p_holm` and `differs` to the lines with a `p`, which are one family."""
    tested = [line for line in lines if "p" in line]
    for line, p, reject in zip(tested, *holm([line["p"] for line in tested], alpha)):
        line |= {"p_holm": p, "differs": reject}


def status(first, run, model: str, theirs: str, judge: str) -> str | None:
    """Return why a model's rows cannot be compared with the first run's, or `unchanged`; None if rows may differ."""
    if run.out_of_date(model):
        return "not run"
    if run is first:
        return None
    if first.out_of_date(model):
        return "baseline not run"
    if run.unexplained(first, model):
        return "other numbers"
    if judge != theirs:
        return "other judge"
    paths = (f"data/predictions/{model}", f"data/verdicts/{model}/{judge}")
    hashes = [[one.made.get(path) for path in paths] for one in (first, run)]
    return UNCHANGED if all(hashes[0]) and hashes[0] == hashes[1] else None


def form_blind_judge(params: dict) -> str | None:
    """Return the first judge beside the main one that rates what an answer means; see `Run.form_blind_judge`."""
    kinds = {judge: JUDGE_KINDS[params["judge"][judge]["kind"]] for judge in params["judges"]}
    others = (judge for judge in kinds if judge != params["report"]["main_judge"])
    return next((judge for judge in others if kinds[judge].form_blind), None)


def compared(
    first,
    run,
    place: tuple[str, str, str],
    judge: str,
    same: str | None,
    images: Callable[[str], dict],
    confidence: float,
) -> dict:
    """Return the column `test` of one row, and the paired test if there is one; `missing` says what a test lacks.

    `place` is model, mode and test set; `images` returns `shared_images` of a test set.
    """
    model, mode, name = place
    if run is first or same not in (None, UNCHANGED):
        return {"test": same}
    if name == WITHOUT_OWN_TEST:
        return {"test": PART}
    if same:
        return {"test": same}
    files = (predictions_file(model, mode, name), verdicts_file(model, judge, mode, name))
    before, after = ([one.tracked(file.as_posix()) for file in files] for one in (first, run))
    if missing := [f"verdicts of {one.name}" for one, found in ((first, before), (run, after)) if not found[1]]:
        return {"test": "not at hand", "missing": missing}
    if before == after:
        return {"test": UNCHANGED}
    if missing := [f"questions of {one.name}" for one in (first, run) if not questions(one, name)]:
        return {"test": "not at hand", "missing": missing}
    test = paired_by_id(finals(before[1]), finals(after[1]), images(name), confidence)
    return {"test": TESTED} | test if test else {"test": "other questions"}


def seed_spread(run) -> dict[tuple[str, str, str], float]:
    """Return (model, mode, test set) -> standard deviation of the final score over seeds, in points, if known."""
    rows = csv.DictReader(io.StringIO(run.text(SEEDS) or ""))
    return {
        (row["model"], row["mode"], row["set"]): float(row["sd"])
        for row in rows
        if row["profile"] == run.params["profile"] and row["sd"]
    }


def finals(text: str) -> dict[str, int]:
    """Return the final score by question id from a file of verdicts; empty if the file is damaged."""
    try:
        lines = [json.loads(line) for line in text.splitlines()]
        return {v["id"]: v["prediction_score"] for v in lines if v["prediction_score"] is not None}
    except (ValueError, KeyError, TypeError):
        return {}


def shared_images(first, run, name: str) -> dict[str, str | None]:
    """Return the hash of the image by question id; None if question, image and answers are not the same in both."""
    theirs, ours = questions(first, name), questions(run, name)
    return {id: asked[0] if theirs.get(id) == ours.get(id) else None for id, asked in (theirs | ours).items()}


@cache
def questions(run, name: str) -> dict[str, tuple]:
    """Return image, question and answers by id; empty if they are neither in DVC's cache nor in a remote."""
    own = name == run.params["train"]["source"]
    text = run.tracked("data/curated/test.jsonl" if own else f"data/benchmarks/{name}.jsonl") or ""
    try:
        lines = [json.loads(line) for line in text.splitlines()]
        return {line["id"]: (line["image_sha256"], line.get("question"), line.get("answers")) for line in lines}
    except (ValueError, KeyError, TypeError):  # a damaged file
        return {}


def paired_by_id(
    first: dict[str, int], second: dict[str, int], images: dict[str, str | None], confidence: float
) -> dict:
    """`stats.mcnemar` on the questions that both runs scored; {} if there are none.

    `images` is of `shared_images`. A question that it does not have is taken for the only one about its image.
    """
    both = [id for id in first if id in second and images.get(id, id) is not None]
    series = ([one[id] for id in both] for one in (first, second))
    test = paired(*series, [images.get(id, id) for id in both], confidence)
    return {key: test[key] for key in (*GAP, "p")} if test else {}


def differing(runs: Sequence) -> list[tuple[str, list]]:
    """Return the parameters whose value is not the same in all experiments: dotted key, a value for each."""
    flat = [dict(leaves(run.params)) for run in runs]
    for values in flat:  # A path says more about a machine than a reader needs
        if "data.root" in values:
            values["data.root"] = Path(values["data.root"]).name
    rows = [
        (key, [values.get(key) for values in flat]) for key in dict.fromkeys(key for values in flat for key in values)
    ]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def summary(frame: pd.DataFrame) -> list[str]:
    """Return for each experiment, in sentences, what changed, what could not, and what is not tested and why."""
    sentences = []
    for name, rows in frame[frame["test"].notna()].groupby("experiment", sort=False):
        counts = rows["test"].value_counts()
        found = [
            f"{r.model}, {r.mode}, {r.set} {r.difference:+.1f}" for r in rows[rows["differs"].eq(True)].itertuples()
        ]
        if tested := counts.get(TESTED, 0):
            listed = ": " + "; ".join(found) if found else ""
            sentences.append(f"{name}: {len(found)} of {tested} rows differ significantly{listed}")
        if unchanged := counts.get(UNCHANGED, 0):
            sentences.append(f"{name}: {unchanged} rows are unchanged (same predictions and verdicts) and not tested")
        sentences += [f"{name}: {sentence}" for sentence in untested(zip(rows["model"], rows["test"]))]
    if frame["differs"].eq(True).any():
        sentences.append(f"{ONE_SEED}: compare a difference with the column seed_sd (`rarl compare seeds`)")
    return sentences


def untested(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return a sentence per reason why rows, given as model and value of `test`, are not tested."""
    models: dict[str, list[str]] = {}
    for model, test in rows:
        models.setdefault(test, []).append(model)
    return [
        f"{len(models[reason])} rows ({', '.join(dict.fromkeys(models[reason]))}) are not tested, because {meaning}"
        for reason, meaning in UNTESTED.items()
        if reason in models
    ]


def render(runs: Sequence, frame: pd.DataFrame) -> str:
    """Return the comparison as one HTML page that needs no network."""
    blocks: dict[tuple, dict] = {}
    for line in records(frame):
        models = blocks.setdefault((line["mode"], line["set"]), {})
        models.setdefault(line["model"], {})[line["experiment"]] = line
    return page.template("runs.html", Path(__file__).parent).render(
        names=[run.name for run in runs],
        parameters=differing(runs),
        blocks=blocks,
        labels=tables.MODELS,
        summary=summary(frame),
        phantom=any(run.params["data"]["root"] == page.PHANTOM_ROOT for run in runs),
    )


def report(runs: Sequence, frame: pd.DataFrame) -> None:
    """Write the page, and print the parameters that differ and the summary."""
    path = OUTPUT / "runs.html"
    with atomic_file(path) as file:
        file.write(render(runs, frame))
    for key, values in differing(runs):
        click.echo(f"{key}: {', '.join(map(str, values))}")
    for line in (*summary(frame), path):
        click.echo(line)
