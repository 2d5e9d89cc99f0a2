"""Tables over several experiments: the paper's Table 2, its missing 2 x 2, and seeds.

Each study is one `dvc exp run --queue` command with choices, then `dvc queue start`, then this command,
which reads the experiments of the present commit out of git:

    table2  how much data, with and without LoRA (paper, section 3.1), on CV-Bench
    grid    reasoning reward and prompting diversity apart, which the paper changes together
    seeds   mean and spread over seeds
    runs    any experiments side by side: parameters that differ, scores with intervals, paired tests; a page, too

It writes `metrics/studies/<study>.csv` and `.md`; for `runs` `data/studies/runs.csv`, `.md` and `.html`. `rarl
compare <study> --help` gives the command.
"""

from pathlib import Path

import click
import pandas as pd

from rarl.errors import UserError
from rarl.records import atomic_file, read_json
from rarl.reporting import side_by_side
from rarl.reporting.stats import wilson
from rarl.spreadsheet import write_frame
from rarl.studies.experiments import Experiment, experiments, unfinished

OUTPUT = Path("metrics/studies")
#: The daily comparison goes where git does not look, so that it leaves the tree clean and re-runs no stage.
RUNS = Path("data/studies")
TASKS = ("Count", "Relation", "Depth", "Distance")
METHODS = {
    ("sft", "lora"): "SFT",
    ("sft", "full"): "SFT (w/o LoRA)",
    ("grpo", "lora"): "RL w/ LoRA",
    ("grpo", "full"): "RL only (w/o LoRA)",
}


def differing_only_in(runs: list[Experiment], *keys: str) -> list[Experiment]:
    """The runs that have the first one's parameters but for these: another study's are not among them."""
    return [run for run in runs if {key for key, _ in side_by_side.differing([runs[0], run])} <= set(keys)]


def by_task(experiment: Experiment, model: str, mode: str) -> dict[str, float]:
    """CV-Bench: percent right by task, over all rows, and the mean of the tasks.

    The paper's Total is the one over all rows for SFT, and the mean of the four tasks for RL with LoRA.
    """
    found = {row["value"]: row for row in experiment.breakdown(model, mode, "cv_bench", "category")}
    if not found:
        return {}
    scores = {task: float(found[task]["final"]) for task in TASKS if task in found}
    rows = [(float(found[task]["final"]), int(found[task]["n"])) for task in scores]
    scores["Total"] = round(sum(s * n for s, n in rows) / sum(n for _, n in rows), 2)
    scores["Mean"] = round(sum(s for s, _ in rows) / len(rows), 2)
    scores["n"] = sum(n for _, n in rows)
    low, high = wilson(round(scores["Total"] * scores["n"] / 100), scores["n"])
    scores |= {"Total_low": round(100 * low, 2), "Total_high": round(100 * high, 2)}
    return scores | official(experiment, model, mode)


def official(experiment: Experiment, model: str, mode: str) -> dict[str, float]:
    """CV-Bench's own combined score: 2D is the mean of ADE20K and COCO, 3D is Omni3D, and both count alike."""
    origin = {
        row["value"].upper(): float(row["final"]) for row in experiment.breakdown(model, mode, "cv_bench", "origin")
    }
    if not {"ADE20K", "COCO", "OMNI3D"} <= origin.keys():
        return {}
    flat = (origin["ADE20K"] + origin["COCO"]) / 2
    return {"Official": round((flat + origin["OMNI3D"]) / 2, 2)}


def table2(runs: list[Experiment]) -> pd.DataFrame:
    """The paper's rows, then ours: a method at a number of samples, by CV-Bench task, with memory and time."""
    paper = read_json(Path(side_by_side.__file__).with_name("paper.json"))["table2"]["rows"]
    lines = [
        {"source": "paper", **row, "Mean": round(sum(row[task] for task in TASKS) / len(TASKS), 2)} for row in paper
    ]
    for run in runs:
        params = run.params
        if params["train"]["source"] != "sat":
            continue
        rows = run.json("metrics/curate.json").get("train", {}).get("total", 0)
        for model in ("base", "sft", "grpo"):
            if model in params["models"] and (scores := by_task(run, model, params["modes"][0])):
                cost = run.cost(model) if model != "base" else {}
                lines.append(
                    {
                        "source": f"ours ({params['profile']})",
                        "method": METHODS.get((model, params["train"]["trainable"]), "Base, untuned"),
                        "samples": None if model == "base" else min(params["train"]["samples"] or rows, rows),
                        **scores,
                        "minutes": round(cost["seconds"] / 60, 1) if cost else None,
                        "memory_mb": cost.get("peak_memory_mb"),
                        "experiment": run.name if model != "base" else "",
                    }
                )
    columns = [
        "source",
        "method",
        "samples",
        *TASKS,
        "Total",
        "Total_low",
        "Total_high",
        "n",
        "Mean",
        "Official",
        "minutes",
        "memory_mb",
        "experiment",
    ]
    frame = pd.DataFrame(lines, columns=columns).drop_duplicates(columns[:-1])
    whole = dict.fromkeys(("samples", "n", "memory_mb"), "Int64")
    return frame.astype(whole).reset_index(drop=True)


def grid(runs: list[Experiment]) -> pd.DataFrame:
    """RARL's two changes to GRPO, apart: four cells, final and reasoning score on the own test set."""
    lines = []
    for run in differing_only_in(runs, "rarl.rewards.reasoning", "rarl.prompts"):
        rarl = run.params["rarl"]
        mode, own = run.params["modes"][0], run.params["train"]["source"]
        if cell := run.cell("rarl", mode, own):
            lines.append(
                {
                    "profile": run.params["profile"],
                    "reasoning_reward": "yes" if rarl["rewards"]["reasoning"] else "no",
                    "prompts": "diverse" if len(set(rarl["prompts"])) > 1 else "one",
                    **{key: cell[key] for key in ("n", "final", "final_low", "final_high", "reasoning")},
                    "experiment": run.name,
                }
            )
    frame = pd.DataFrame(lines)
    if frame.empty:
        return frame
    cell = ["reasoning_reward", "prompts"]
    return frame.drop_duplicates(cell, keep="last").sort_values(cell, ignore_index=True)


def seeds(runs: list[Experiment]) -> pd.DataFrame:
    """Mean, standard deviation, lowest and highest final score over seeds, by model, mode and test set."""
    lines = {}
    for run in differing_only_in(runs, "seed"):
        judge = run.params["report"]["main_judge"]
        for model in run.params["models"]:
            for mode, sets in run.json(f"metrics/scores/{model}.json").items():
                for name, judges in sets.items():
                    key = (model, mode, name, run.params["seed"])
                    lines[key] = judges.get(judge, {}).get("final")
    frame = pd.DataFrame(
        [(*key, value) for key, value in lines.items()], columns=["model", "mode", "set", "seed", "final"]
    )
    grouped = frame.groupby(["model", "mode", "set"], sort=False)["final"]
    spread = grouped.agg(seeds="count", mean="mean", sd="std", low="min", high="max").round(2)
    spread = spread.reset_index()
    spread.insert(0, "profile", runs[0].params["profile"])
    return spread


STUDIES = {"table2": table2, "grid": grid, "seeds": seeds, "runs": side_by_side.scores}
COMMANDS = {
    "table2": "dvc exp run --queue score -S train.source=sat -S 'models=[base,sft,grpo]' -S 'benchmarks=[cv_bench]' "
    "-S 'modes=[reasoning]' -S 'train.trainable=lora,full' -S 'train.samples=500,1000,5000'",
    "grid": "dvc exp run --queue -S 'rarl.rewards.reasoning=0.0,1.0' "
    "-S 'rarl.prompts=[reasoning],[explanation,short,open]'",
    "seeds": "dvc exp run --queue -S 'seed=7,8,9'",
    "runs": "dvc exp run --queue -S 'lora.r=4,16'",
}


@click.command(help=__doc__ + "\n\n" + "\n\n".join(f"{k}: {v}" for k, v in COMMANDS.items()))
@click.argument("study", type=click.Choice(list(STUDIES)))
@click.option("--all", "everywhere", is_flag=True, help="Experiments of every commit.")
def main(study: str, everywhere: bool) -> None:
    found = readable(experiments(everywhere))
    frame = STUDIES[study](found)
    if len(found) < 2 or frame.empty:
        raise nothing(study, found, everywhere)
    folder = RUNS if study == "runs" else OUTPUT
    write_frame(folder / f"{study}.csv", frame)
    text = markdown(frame)
    with atomic_file(folder / f"{study}.md") as file:
        file.write(f"# {study}\n\nMade by a command such as `{COMMANDS[study]}`, `dvc queue start` "
                   f"and `rarl compare {study}`.\n\n{text}\n")  # fmt: skip
    click.echo(text)
    if study == "runs":
        with atomic_file(folder / "runs.html") as file:
            file.write(side_by_side.render(found, frame))
        for key, values in side_by_side.differing(found):
            click.echo(f"{key}: {', '.join(map(str, values))}")
        for line in side_by_side.summary(frame):
            click.echo(line)
        click.echo(folder / "runs.html")
    click.echo(f"{folder / study}.csv and .md")


def readable(runs: list[Experiment]) -> list[Experiment]:
    """The runs whose parameters are this version's; names the others.

    Raises:
        UserError: the present commit's are not.
    """
    kept = []
    for run in runs:
        try:
            if run.params:
                kept.append(run)
        except UserError as error:
            if not kept:
                raise
            click.echo(f"WARNING: {run.name} is left out. {error.format_message()}", err=True)
    return kept


def nothing(study: str, found: list[Experiment], everywhere: bool) -> UserError:
    """What is missing for a study: experiments, results of this commit, or those of another commit."""
    if len(found) > 1 and study == "runs":
        return UserError(
            "metrics/scores", "no scores in this commit nor in its experiments", "the results of a whole run",
            "`dvc repro`, `git add dvc.lock metrics`, `git commit`, then run the experiments again",
        )  # fmt: skip
    here = f"{len(found) - 1} finished experiments" + ("" if everywhere else " on this commit")
    waiting = [f"{count} {state}" for state, count in unfinished().items()]
    fix = f"{COMMANDS[study]}\n            dvc queue start, and wait for `dvc queue status`"
    if not everywhere and (others := len(experiments(everywhere=True)) - len(found)) > 0:
        here += f", {others} on other commits"
        fix += f"; or `rarl compare {study} --all` for those of every commit"
    return UserError(f"study {study}", ", ".join([here, *waiting]), "the experiments of the study", fix)


def markdown(frame: pd.DataFrame) -> str:
    """A GitHub table; empty cells for what is not there."""
    rows = [list(frame.columns), ["---"] * len(frame.columns)]
    rows += [["" if pd.isna(v) else str(v) for v in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
