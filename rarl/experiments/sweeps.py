"""Tables over experiments: the paper's Table 2, RARL's two changes separately, seeds, and sweeps over any parameters.

`rarl study` runs the experiments of one table and writes it; `rarl compare` writes it from experiments run by hand.
"""

from collections.abc import Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

import click
import pandas as pd

from rarl.errors import UserError
from rarl.experiments import runs
from rarl.experiments.revisions import Experiment, experiments, unfinished
from rarl.records import atomic_file
from rarl.reporting import study_tables
from rarl.reporting.formats import markdown_table, percent, records
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.stats import wilson
from rarl.reporting.study_plots import FIGURES
from rarl.reporting.tables import paper
from rarl.spreadsheet import write_frame

OUTPUT = study_tables.STUDIES
TASKS = tuple(paper()["tasks"])
METHODS = {
    ("sft", "lora"): "SFT",
    ("sft", "full"): "SFT (w/o LoRA)",
    ("grpo", "lora"): "RL w/ LoRA",
    ("grpo", "full"): "RL only (w/o LoRA)",
}
#: The columns of `grid` that are a cell's.
CELL = ("n", "final", "final_low", "final_high", "reasoning", "n_effective", *runs.FORM)
#: The models that a loss changes.
RL = ("grpo", "rarl")
#: The columns of `losses`.
LOSSES = ["loss", "model", "mode", "set", "seeds", "final", "final_low", "final_high", "final_sd", *runs.FORM]
LOSSES += ["test", "difference", "difference_low", "difference_high", "p", "p_holm", "differs"]
#: The columns of `annotation`.
ANNOTATION = ["share", "rows", "model", "reasoning_reward", "score", "judge", "seeds"]
ANNOTATION += ["mean", "mean_low", "mean_high", "mean_sd", *LOSSES[LOSSES.index("test") :]]
#: Study -> the command that runs its experiments.
COMMANDS = {
    "table2": "rarl study table2",
    "grid": "rarl study grid",
    "seeds": "rarl study seeds --seeds 7,8,9",
    "losses": "rarl study losses --losses grpo,dr_grpo,gspo --seeds 7,8,9",
    "annotation": "rarl study annotation --share 0,0.1,0.25,0.5,1 --seeds 7,8,9",
    "sweep": "rarl study sweep -S lora.r=4,8,16 -S rl.beta=0,0.04",
    "runs": "rarl study sweep -S lora.r=4,16",
}


def compare(study: str, everywhere: bool) -> None:
    """Write one study's table from the experiments of the present commit (or of all), and print it.

    Raises:
        UserError: there are no experiments to compare.
    """
    found = readable(experiments(everywhere))
    frame = STUDIES[study](found)
    if len(found) < 2 or frame.empty:
        raise nothing(study, found, everywhere)
    folder = runs.OUTPUT if study == "runs" else OUTPUT
    click.echo(write(study, frame, folder))
    if study == "runs":
        runs.report(found, frame)
    click.echo(f"{folder / study}.csv and .md")


def write(study: str, frame: pd.DataFrame, folder: Path = OUTPUT) -> str:
    """Write a table as CSV, Markdown and, where it has one, a chart as SVG; return it as Markdown."""
    write_frame(folder / f"{study}.csv", frame)
    rows = [with_intervals(row) for row in records(frame)] if study in OVER_SETTINGS else records(frame)
    text = "\n".join(markdown_table(list(rows[0]), (row.values() for row in rows)))
    image = ""
    if study in FIGURES and (svg := FIGURES[study](records(frame))):
        image = f"![{study}]({study}.svg)\n\n"
        with atomic_file(folder / f"{study}.svg") as file:
            # Alone in its file, it has no page to take colours and fonts from.
            svg = svg.replace("var(--line)", "#d0d0d0").replace("inherit", "sans-serif")
            file.write(svg.replace("<svg", '<svg style="background: #fff"', 1))
    notes = study_tables.annotation_notes(records(frame)) if study == "annotation" else []
    listed = "".join(f"- {note}\n" for note in notes) + "\n" * bool(notes)
    with atomic_file(folder / f"{study}.md") as file:
        file.write(f"# {study}\n\nMade by a command such as `{COMMANDS[study]}`.\n\n{listed}{image}{text}\n")
    return text


def readable(found: list[Experiment]) -> list[Experiment]:
    """Return the experiments with valid parameters of this version, and warn about the others.

    Raises:
        UserError: the parameters of the present commit are not valid.
    """
    kept = []
    for run in found:
        try:
            if run.params:
                kept.append(run)
        except UserError as error:
            if not kept:
                raise
            click.echo(f"WARNING: {run.name} is left out. {error.format_message()}", err=True)
    return kept


def nothing(study: str, found: list[Experiment], everywhere: bool) -> UserError:
    """Return the error that says what a study lacks: experiments, scores of this commit, or those of other commits."""
    if len(found) > 1 and study == "runs":
        return UserError(
            "metrics/scores",
            "no scores in this commit or in its experiments",
            "the results of a whole run",
            "`dvc repro`, `git add dvc.lock metrics`, `git commit`, then run the experiments again",
        )
    here = f"{len(found) - 1} finished experiments" + ("" if everywhere else " on this commit")
    states = unfinished()
    waiting = [f"{count} {state}" for state, count in states.items()]
    fix = f"`{COMMANDS[study]}`" + ("; `dvc queue start` runs what is queued" if "queued" in states else "")
    if not everywhere and (others := len(experiments(everywhere=True)) - len(found)) > 0:
        here += f", {others} on other commits"
        fix += f"; or `rarl compare {study} --all` for those of every commit"
    return UserError(f"study {study}", ", ".join([here, *waiting]), "the experiments of the study", fix)


def differing_only_in(found: list[Experiment], *keys: str) -> list[Experiment]:
    """Return the experiments that have the first one's parameters except for these keys."""
    return [run for run in found if {key for key, _ in runs.differing([found[0], run])} <= set(keys)]


def by_task(run: Experiment, model: str, mode: str) -> dict[str, float]:
    """Return CV-Bench's percent right by task, over all rows (`Total`, with its interval), and the mean of the tasks.

    The paper's Total is over all rows for SFT, and the mean of the four tasks for RL with LoRA.
    """
    found = {row["value"]: row for row in run.breakdown(model, mode, "cv_bench", "category")}
    if not found:
        return {}
    scores = {task: float(found[task]["final"]) for task in TASKS if task in found}
    counts = {task: int(found[task]["n"]) for task in scores}
    n = sum(counts.values())
    total = round(sum(score * counts[task] for task, score in scores.items()) / n, 2)
    cell = runs.cells(run, model).get((mode, "cv_bench"), {})
    # Of independent questions, unless the scores of the whole test set have the effective n.
    effective = cell.get("n_effective") or n
    low, high = (round(100 * end, 2) for end in wilson(total * effective / 100, effective))
    mean = round(sum(scores.values()) / len(scores), 2)
    return (
        scores
        | {"Total": total, "Total_low": low, "Total_high": high, "Mean": mean, "n": n, "n_effective": effective}
        | {key: cell.get(key) for key in runs.FORM}
        | official(run, model, mode)
    )


def official(run: Experiment, model: str, mode: str) -> dict[str, float]:
    """Return CV-Bench's own score: the mean of 2D (the mean of ADE20K and COCO) and 3D (Omni3D)."""
    origin = {row["value"].upper(): float(row["final"]) for row in run.breakdown(model, mode, "cv_bench", "origin")}
    if not {"ADE20K", "COCO", "OMNI3D"} <= origin.keys():
        return {}
    flat = (origin["ADE20K"] + origin["COCO"]) / 2
    return {"Official": round((flat + origin["OMNI3D"]) / 2, 2)}


def table2(found: list[Experiment]) -> pd.DataFrame:
    """Return the paper's rows, then ours: a method and number of samples, by CV-Bench task, with memory and time."""
    lines = [
        {"source": "paper", **row, "Mean": round(sum(row[task] for task in TASKS) / len(TASKS), 2)}
        for row in paper()["table2"]["rows"]
    ]
    for run in found:
        params = run.params
        rows = run.json("metrics/curate.json").get("train", {}).get("total", 0)
        for model in ("base", "sft", "grpo") if params["train"]["source"] == "sat" else ():
            if model not in params["models"] or not (scores := by_task(run, model, params["modes"][0])):
                continue
            line = {"source": f"ours ({params['profile']})", "method": "Base, untuned", "experiment": "", **scores}
            if model != "base":
                cost = run.cost(model)
                line |= {
                    "method": METHODS[model, params["train"]["trainable"]],
                    "samples": min(params["train"]["samples"] or rows, rows),
                    "minutes": round(computing(cost) / 60, 1) if cost else None,
                    "memory_mb": cost.get("peak_memory_mb"),
                    "experiment": run.name,
                }
            lines.append(line)
    scores = [*TASKS, "Total", "Total_low", "Total_high", "n", "n_effective", "Mean", "Official", *runs.FORM]
    columns = ["source", "method", "samples", *scores, "minutes", "memory_mb", "experiment"]
    frame = pd.DataFrame(lines, columns=columns).drop_duplicates(columns[:-1])
    return frame.astype(dict.fromkeys(("samples", "n", "memory_mb"), "Int64")).reset_index(drop=True)


def computing(cost: dict) -> float:
    """Return the seconds of a cost that other load on the machine does not change: the processor's.

    On a GPU, and in costs of versions that did not record them, the seconds are those of the clock.
    """
    return cost["seconds"] if "card" in cost else cost.get("processor_seconds", cost["seconds"])


def grid(found: list[Experiment]) -> pd.DataFrame:
    """Return RARL's two changes to GRPO separately: four cells, final and reasoning score on the own test set."""
    lines = []
    for run in differing_only_in(found, "rarl.rewards.reasoning", "rarl.prompts"):
        rarl = run.params["rarl"]
        if cell := runs.cells(run, "rarl").get((run.params["modes"][0], run.params["train"]["source"])):
            lines.append(
                {
                    "profile": run.params["profile"],
                    "reasoning_reward": "yes" if rarl["rewards"]["reasoning"] else "no",
                    "prompts": "diverse" if len(set(rarl["prompts"])) > 1 else "one",
                    **{key: cell.get(key) for key in CELL},
                    "experiment": run.name,
                }
            )
    frame, cell = pd.DataFrame(lines), ["reasoning_reward", "prompts"]
    return frame if frame.empty else frame.drop_duplicates(cell, keep="last").sort_values(cell, ignore_index=True)


def seeds(found: list[Experiment]) -> pd.DataFrame:
    """Return mean, standard deviation, lowest and highest final score over seeds, by model, mode and test set.

    With the means of the form of the answers and of the score by the form-blind judge.
    """
    keys, values = ["model", "mode", "set"], ["final", *runs.FORM]
    lines = {}
    for run in differing_only_in(found, "seed"):
        for model in run.params["models"]:
            for place, cell in runs.cells(run, model).items():
                lines[model, *place, run.params["seed"]] = [cell.get(key) for key in values]
    frame = pd.DataFrame([(*key, *line) for key, line in lines.items()], columns=[*keys, "seed", *values])
    grouped = frame.astype(dict.fromkeys(values, float)).groupby(keys, sort=False)
    spread = grouped["final"].agg(seeds="count", mean="mean", sd="std", low="min", high="max")
    spread = spread.join(grouped[[*runs.FORM]].mean()).round(2).reset_index()
    spread.insert(0, "profile", found[0].params["profile"])
    return spread


def with_intervals(row: dict) -> dict:
    """Return a row with each score, its interval and its standard deviation over seeds in one cell.

    >>> with_intervals({"model": "sft", "own": 69.33, "own_low": 59.92, "own_high": 77.37})
    {'model': 'sft', 'own': '69.3 (59.9 to 77.4)'}
    """
    joined = {}
    for key, value in row.items():
        stem, _, end = key.rpartition("_")
        if f"{key}_low" in row and row[f"{key}_low"] is None:
            joined[key] = percent(value)
        elif f"{key}_low" in row:
            spread = f", SD {percent(row[f'{key}_sd'])}" if row.get(f"{key}_sd") is not None else ""
            joined[key] = f"{percent(value)} ({percent(row[f'{key}_low'])} to {percent(row[f'{key}_high'])}{spread})"
        elif stem not in joined or end not in ("low", "high", "sd"):
            joined[key] = value
    return joined


#: The experiments of a sweep: the swept keys with their values, without `seed`, and the experiments that have them.
Settings = Sequence[tuple[dict[str, str], Sequence[Experiment]]]


def sweep(settings: Settings) -> pd.DataFrame:
    """Return a row per combination of parameters and model: final score and interval on each test set, by main mode.

    Over several seeds the score is their mean, with its standard deviation, and the ends of the interval are the means
    of theirs: the questions are the same, so seeds do not make it narrower. The form of the answers, and the score by
    the form-blind judge, are there if an experiment has them.
    """
    lines = []
    for values, found in settings:
        for model in found[0].params["models"]:
            line = (
                {"profile": found[0].params["profile"]}
                | values
                | {"model": model}
                | ({"seeds": len(found)} if len(found) > 1 else {})
            )
            of_runs = [runs.cells(run, model) for run in found]
            for mode, name in of_runs[0]:
                if mode != found[0].params["modes"][0] or name == WITHOUT_OWN_TEST:
                    continue
                means, sd = mean_of_seeds([one.get((mode, name), {}) for one in of_runs])
                line |= dict(zip((name, f"{name}_low", f"{name}_high"), means))
                line |= {f"{name}_sd": sd} if len(found) > 1 else {}
                line |= {f"{name}_{key}": means[key] for key in runs.FORM if means[[*runs.FORM]].notna().any()}
            lines.append(line)
    return pd.DataFrame(lines)


def mean_of_seeds(cells: Sequence[dict], score: str = "final") -> tuple[pd.Series, float]:
    """Return the means over seeds of a score, its interval and the form, and the score's standard deviation.

    >>> means, sd = mean_of_seeds([{"final": 60.0}, {"final": 70.0}])
    >>> float(means["final"]), float(sd)
    (65.0, 7.07)
    """
    scores = pd.DataFrame(cells).reindex(columns=[score, f"{score}_low", f"{score}_high", *runs.FORM]).astype(float)
    return scores.mean().round(2), scores[score].std().round(2)


def losses(settings: Settings) -> pd.DataFrame:
    """Return a row per loss, RL model and test set, by main mode: its score, and the paired difference to the first.

    Score and interval are those of `sweep`. The interval of the difference, in points, is over questions and seeds;
    Holm's family are all rows of the table with a test.
    """
    first, lines = settings[0][1], []
    judge, confidence = runs.main_judge(first[0]), first[0].params["report"]["confidence"]
    for _, found in settings:
        images = cache(partial(runs.shared_images, first[0], found[0]))
        for model in (model for model in found[0].params["models"] if model in RL):
            cells = [runs.cells(run, model) for run in found]
            same = runs.status((first, found), model, judge, judge)
            for mode, name in cells[0]:
                if mode != found[0].params["modes"][0] or name == WITHOUT_OWN_TEST:
                    continue
                means, sd = mean_of_seeds([one.get((mode, name), {}) for one in cells])
                test = runs.compared((first, found), (model, mode, name), judge, same, images, confidence)
                place = {"loss": found[0].params["rl"]["loss"], "model": model, "mode": mode, "set": name}
                lines.append(test | place | {"seeds": len(found), **means, "final_sd": sd})
    return tested(lines, LOSSES, first[0])


def tested(lines: list[dict], columns: list[str], run: Experiment) -> pd.DataFrame:
    """Return lines with paired tests as a table; Holm's family are all of them."""
    runs.correct(lines, 1 - run.params["report"]["confidence"])
    for line in lines:
        line |= {f"difference_{end}": line.get(end) for end in ("low", "high")}
    frame = pd.DataFrame(lines, columns=columns)
    frame.insert(0, "profile", run.params["profile"])
    digits = dict.fromkeys(("difference", "difference_low", "difference_high"), 2) | {"p": 5, "p_holm": 5}
    return frame.astype(dict.fromkeys(digits, float)).round(digits)


def annotation(settings: Settings) -> pd.DataFrame:
    """Return the final and the reasoning score of SFT and RARL on the own test set by annotated share, main mode.

    Each with the paired difference to the training without annotations, over questions and seeds. The reasoning score
    is by the main judge and, where it is asked, by the truth rater. RARL without its reasoning reward reads no
    annotation, so it has one row, the share 0, unless it starts from the SFT adapter.
    """
    none = [found for _, found in settings if not found[0].params["train"]["annotated_share"]]
    first, lines, seen = none[0] if none else settings[0][1], [], set()
    main, confidence = runs.main_judge(first[0]), first[0].params["report"]["confidence"]
    truth = [name for name in first[0].params["judges"] if first[0].params["judge"][name]["kind"] == "truth"]
    scores = dict.fromkeys([("final", main), ("reasoning", main), *(("reasoning", judge) for judge in truth)])
    for _, found in settings:
        params, curated = found[0].params, found[0].json("metrics/curate.json").get("train", {})
        share, reward = params["train"]["annotated_share"], bool(params["rarl"]["rewards"]["reasoning"])
        images = cache(partial(runs.shared_images, first[0], found[0]))
        for model, (score, judge) in product(("sft", "rarl"), scores):
            place = model, params["modes"][0], params["train"]["source"]
            rewarded = None if model == "sft" else "yes" if reward else "no"
            key = {"share": share, "model": model, "reasoning_reward": rewarded, "score": score, "judge": judge}
            if model not in params["models"] or (*key.values(),) in seen:
                continue
            seen.add((*key.values(),))
            cells = [runs.cells(run, model, judge).get(place[1:], {}) for run in found]
            means, sd = mean_of_seeds(cells, score)
            same = runs.status((first, found), model, judge, judge)
            test = {"test": "no training without annotations"}
            if none:
                test = runs.compared((first, found), place, judge, same, images, confidence, score)
            mean = {"mean": means[score], "mean_low": means[f"{score}_low"], "mean_high": means[f"{score}_high"]}
            rows = {"rows": round(share * curated.get("annotated", 0)), "seeds": len(found)}
            lines.append(test | key | rows | mean | {"mean_sd": sd})
    order = ["model", "score", "judge", "share", "reasoning_reward"]
    return tested(lines, ANNOTATION, first[0]).sort_values(order, ignore_index=True)


#: Studies whose tables take `Settings`.
OVER_SETTINGS = {"sweep": sweep, "losses": losses, "annotation": annotation}
STUDIES = {"table2": table2, "grid": grid, "seeds": seeds, "runs": runs.scores}
