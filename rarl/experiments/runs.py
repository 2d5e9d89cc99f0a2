"""Several experiments side by side: the parameters that differ, the scores, and paired tests against the first.

An experiment is `rarl.experiments.revisions.Experiment`: what git and DVC keep of one run. The tests pair the same
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

from rarl.errors import UserError
from rarl.experiments.revisions import ASIDE, Experiment, experiments, git
from rarl.profiles import leaves
from rarl.records import atomic_file, predictions_file, verdicts_file
from rarl.registry import JUDGE_KINDS, MODELS, rival_of
from rarl.reporting import page
from rarl.reporting.formats import records
from rarl.reporting.inputs import FIELDS
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.stats import holm, over_seeds, paired
from rarl.reporting.tables import GAP

#: Outside of what git tracks, so that the daily comparison leaves the tree clean and re-runs no stage.
OUTPUT = Path("data/studies")
#: The form of the answers: columns that are missing in older experiments.
FORM = ("untagged", "answer_words", "form_blind")
CELL = ["n", "unscored", "final", "final_low", "final_high", "n_effective", *FORM]
#: Standard deviation of the final score over seeds, by profile, model, mode and test set (`rarl study seeds`).
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
    columns = [*keys, *CELL, "test", *GAP, "p", "p_holm", "differs", "seed_sd"]
    frame = pd.DataFrame(lines, columns=columns)
    digits = dict.fromkeys([*CELL[2:], *GAP], 2) | {"p": 5, "p_holm": 5}
    return frame.astype(dict.fromkeys(CELL[:2], "Int64") | dict.fromkeys(digits, float)).round(digits)


def main_judge(run) -> str:
    """Return the judge that a run's report compares models by."""
    return run.params["report"]["main_judge"]


def cells(run, model: str, judge: str | None = None) -> dict[tuple[str, str], dict]:
    """Return (mode, test set) -> a model's scores by a judge, by default the main one; empty where it gave none.

    With `form_blind`, the score by the form-blind judge.
    """
    judge, blind = judge or main_judge(run), form_blind_judge(run.params)
    return {
        (mode, name): judges[judge] | {"form_blind": judges.get(blind, {}).get("final")} if judges.get(judge) else {}
        for mode, sets in run.json(f"metrics/scores/{model}.json").items()
        for name, judges in sets.items()
    }


def rows(first, run, theirs: str, judge: str, alpha: float, seeds: tuple[list, list] | None = None) -> Iterator[dict]:
    """Yield a line per model, mode and test set of a run: its scores by `judge`, the test and the difference.

    The test is against the first run's scores by the judge `theirs`. `seeds` are the runs of several seeds
    (`seeds_of`) of the first and of this run, these two first. The line of a test over several seeds has their numbers
    in `seeds`, and the means in `first_percent` and `second_percent`.
    """
    sides = seeds or ([first], [run])
    images = cache(lambda name: shared_images(first, run, name))
    spread = seed_spread(first)
    for model in run.params["models"]:
        ready = tuple([one for one in side if one is side[0] or not one.out_of_date(model)] for side in sides)
        same = status(ready, model, theirs, judge)
        for (mode, name), cell in cells(run, model, judge).items():
            scored = {} if same == "not run" else cell
            line = {"experiment": run.name, "model": model, "mode": mode, "set": name, "judge": judge}
            line |= {key: scored.get(key) for key in CELL} | {"seed_sd": spread.get((model, mode, name))}
            yield line | compared(ready, (model, mode, name), judge, same, images, 1 - alpha)


def correct(lines: Sequence[dict], alpha: float) -> None:
    """Add Holm's `p_holm` and `differs` to the lines with a `p`, which are one family."""
    tested = [line for line in lines if "p" in line]
    for line, p, reject in zip(tested, *holm([line["p"] for line in tested], alpha)):
        line |= {"p_holm": p, "differs": reject}


def status(sides: tuple[list, list], model: str, theirs: str, judge: str) -> str | None:
    """Return why a model's rows cannot be compared with the first run's, or `unchanged`; None if rows may differ."""
    first, run = sides[0][0], sides[1][0]
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
    paths = (f"data/predictions/{model}", f"data/verdicts/{model}")
    hashes = [[[one.made.get(path) for path in paths] for one in pair] for pair in same_seed(sides)]
    return UNCHANGED if all(all(before) and before == after for before, after in hashes) else None


def same_seed(sides: tuple[list, list]) -> list[tuple]:
    """Return the pairs of runs of one seed, a run of each side; the first of each side if no seed is on both."""
    pairs = [(a, b) for a in sides[0] for b in sides[1] if a.params["seed"] == b.params["seed"]]
    return pairs or [(sides[0][0], sides[1][0])]


def form_blind_judge(params: dict) -> str | None:
    """Return the first judge beside the main one that rates what an answer means; see `Run.form_blind_judge`."""
    kinds = {judge: JUDGE_KINDS[params["judge"][judge]["kind"]] for judge in params["judges"]}
    others = (judge for judge in kinds if judge != params["report"]["main_judge"])
    return next((judge for judge in others if kinds[judge].form_blind), None)


def compared(
    sides: tuple[list, list],
    place: tuple[str, str, str],
    judge: str,
    same: str | None,
    images: Callable[[str], dict],
    confidence: float,
    score: str = "final",
) -> dict:
    """Return the column `test` of one row, and the paired test if there is one; `missing` says what a test lacks.

    `place` is model, mode and test set; `images` returns `shared_images` of a test set; `score` is `final` or
    `reasoning`.
    """
    model, mode, name = place
    ends = first, run = sides[0][0], sides[1][0]
    if run is first or same not in (None, UNCHANGED):
        return {"test": same}
    if name == WITHOUT_OWN_TEST:
        return {"test": PART}
    if same:
        return {"test": same}
    files = (predictions_file(model, mode, name), verdicts_file(model, judge, mode, name))
    found = {one: [one.tracked(file.as_posix()) for file in files] for side in sides for one in side}
    if missing := [f"verdicts of {one.name}" for one in ends if not found[one][1]]:
        return {"test": "not at hand", "missing": missing}
    if all(found[a] == found[b] for a, b in same_seed(sides)):
        return {"test": UNCHANGED}
    if missing := [f"questions of {one.name}" for one in ends if not questions(one, name)]:
        return {"test": "not at hand", "missing": missing}
    used = [
        [one for one in side if found[one][1] and questions(one, name) == questions(side[0], name)] for side in sides
    ]
    missing = [f"verdicts on the same questions of {one.name}" for one in found if one not in (*used[0], *used[1])]
    series = ([scores_by_id(found[one][1], score) for one in side] for side in used)
    test = paired_by_id(*series, images(name), confidence)
    if not test:
        return {"test": "other questions"}
    counts = {"seeds": [*map(len, used)]} if sum(map(len, used)) > 2 else {}
    return {"test": TESTED, "missing": missing} | test | counts


def seed_spread(run) -> dict[tuple[str, str, str], float]:
    """Return (model, mode, test set) -> standard deviation of the final score over seeds, in points, if known."""
    rows = csv.DictReader(io.StringIO(run.text(SEEDS) or ""))
    return {
        (row["model"], row["mode"], row["set"]): float(row["sd"])
        for row in rows
        if row["profile"] == run.params["profile"] and row["sd"]
    }


def scores_by_id(text: str, score: str = "final") -> dict[str, int]:
    """Return the final or reasoning score by question id from a file of verdicts; empty if the file is damaged."""
    field = FIELDS[score]
    try:
        lines = [json.loads(line) for line in text.splitlines()]
        return {v["id"]: v[field] for v in lines if v[field] is not None}
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
    first: Sequence[dict[str, int]],
    second: Sequence[dict[str, int]],
    images: dict[str, str | None],
    confidence: float,
) -> dict:
    """`stats.paired` or `stats.over_seeds` on the questions that every seed of both scored; {} if there are none.

    `images` is of `shared_images`. A question that it does not have is taken for the only one about its image.
    """
    both = [id for id in first[0] if all(id in one for one in (*first, *second)) and images.get(id, id) is not None]
    if not both:
        return {}
    sides = [[[one[id] for id in both] for one in side] for side in (first, second)]
    clusters = [images.get(id, id) for id in both]
    if len(first) == len(second) == 1:
        test = paired(sides[0][0], sides[1][0], clusters, confidence)
        return {key: test[key] for key in (*GAP, "p")}
    return over_seeds(*sides, clusters, confidence)


def seeds_of(run: Experiment, others: Iterable[Experiment]) -> list[Experiment]:
    """Return a run and those of the others that differ from it only in `seed`, one of each seed."""
    found = {run.params["seed"]: run}
    for other in others:
        try:
            if other.params["seed"] not in found and only_the_seed(run, other):
                found[other.params["seed"]] = other
        except UserError:  # parameters of another version
            continue
    return [*found.values()]


def only_the_seed(run: Experiment, other: Experiment) -> bool:
    """Whether two runs differ in nothing but `seed`: the same other parameters, the same code and data."""
    return {key for key, _ in differing([run, other])} <= {"seed"} and inputs(run) == inputs(other)


@cache
def inputs(run: Experiment) -> dict[tuple[str, str], object]:
    """Return (stage, path) -> hash of what a run's stages read and none of them wrote: code and data."""
    from dvc.dependency.param import ParamsDependency

    above = {str(path) for out in run.made for path in Path(out).parents}

    def made(path: str) -> bool:
        return path in above or any(str(part) in run.made for part in (Path(path), *Path(path).parents))

    return {
        (name, dep.def_path): dep.hash_info
        for name, stage in run.stages.items()
        for dep in stage.deps
        if name not in ASIDE and not isinstance(dep, ParamsDependency) and not made(dep.def_path)
    }


def seeds_of_both(first: Experiment, second: Experiment) -> tuple[list[Experiment], list[Experiment]]:
    """Return `seeds_of` both runs among the experiments on their commits, or just these if only the seed differs."""
    if only_the_seed(first, second):
        return [first], [second]
    bases = [base_of(run) for run in (first, second)]
    found = experiments(everywhere=True)[1:]
    others = {
        base: [Experiment(base[:7], base), *(one for one in found if f"/{base[:2]}/{base[2:]}/" in one.revision)]
        for base in {*bases}
    }
    return tuple(seeds_of(run, others[base]) for run, base in zip((first, second), bases))


def base_of(run: Experiment) -> str:
    """Return the commit that a run is an experiment on, or else is."""
    commit = git("rev-parse", f"{run.revision or 'HEAD'}^{{commit}}").strip()
    refs = git("for-each-ref", "--points-at", commit, "--format=%(refname)", "refs/exps").split()
    paths = [ref.split("/") for ref in refs]  # refs/exps/<2 digits>/<38 digits>/<name>
    return next((path[2] + path[3] for path in paths if len(path) == 5), commit)


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
        sentences.append(f"{ONE_SEED}: compare a difference with the column seed_sd (`rarl study seeds`)")
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
    models = dict(MODELS)
    for run in runs:
        rivals = run.params.get("rival", {}).items()
        models |= {slug: rival_of(rival["label"], number) for number, (slug, rival) in enumerate(rivals)}
    return page.template("runs.html", Path(__file__).parent).render(
        names=[run.name for run in runs],
        parameters=differing(runs),
        blocks=blocks,
        labels={slug: model.label for slug, model in models.items()},
        colours=page.colours(models),
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
