"""Tables over several experiments: the paper's Table 2, its missing 2 x 2, and seeds.

Each study is one `dvc exp run --queue` command with choices, then `dvc queue start`, then this command,
which reads the experiments of the present commit out of git:

    table2  how much data, with and without LoRA (paper, section 3.1), on CV-Bench
    grid    reasoning reward and prompting diversity apart, which the paper changes together
    seeds   mean and spread over seeds
    runs    any experiments side by side: parameters that differ, scores with intervals, paired tests; a page besides

It writes `metrics/studies/<study>.csv` and `.md`. `python -m stages.compare <study> --help` gives the command.
"""

import csv
import io
import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import pandas as pd
from ruamel.yaml import YAML

from stages.cost import read_cost
from stages.errors import UserError
from stages.records import atomic_file, read_json, verdicts_file
from stages.reporting import side_by_side
from stages.reporting.statistics import wilson
from stages.spreadsheet import restore, write_frame

HERE = "(this commit)"
OUTPUT = Path("metrics/studies")
PAGE = Path("data/studies/runs.html")
TASKS = ("Count", "Relation", "Depth", "Distance")
METHODS = {
    ("sft", "lora"): "SFT",
    ("sft", "full"): "SFT (w/o LoRA)",
    ("grpo", "lora"): "RL w/ LoRA",
    ("grpo", "full"): "RL only (w/o LoRA)",
}


@dataclass
class Experiment:
    """One finished experiment, as DVC keeps it in git."""

    name: str
    revision: str

    def text(self, path: str) -> str | None:
        found = subprocess.run(
            ["git", "show", f"{self.revision}:{path}"], capture_output=True, text=True
        )
        return found.stdout if found.returncode == 0 else None

    @cached_property
    def params(self) -> dict:
        return YAML(typ="safe", pure=True).load(self.text("params.yaml"))

    def json(self, path: str) -> dict:
        return json.loads(self.text(path) or "{}")

    def cost(self, stage: str) -> dict:
        """Time and memory of a stage as this machine measured them (`read_cost`); empty where they are unknown.

        Those of the present commit are of the stage's last run in this folder, unless that was an experiment's.
        """
        if self.name == HERE:
            cost = read_cost(stage)
            return {} if "experiment" in cost else cost
        *_, start, end, name = self.revision.split("/")  # refs/exps/<2 digits>/<38 digits>/<name>
        return read_cost(stage, (start + end, name))

    def breakdown(self, model: str, mode: str, test_set: str, by: str) -> list[dict]:
        """The main judge's scores by one field of the samples, as the `score` stage wrote them."""
        place = (mode, test_set, self.params["report"]["main_judge"], by)
        rows = csv.DictReader(io.StringIO(self.text(f"metrics/breakdown/{model}.csv") or ""))
        return [
            r | {"value": restore(r["value"])}
            for r in rows
            if (r["mode"], r["set"], r["judge"], r["by"]) == place
        ]

    @cached_property
    def files(self):
        """What DVC tracks at this revision; None where this is no DVC repository."""
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException

        try:
            return DVCFileSystem(rev=_git("rev-parse", self.revision).strip())
        except DvcException:
            return None

    def finals(self, model: str, mode: str, test_set: str) -> dict[str, int]:
        """Final score by question's id, by the main judge; empty where the verdicts are not at hand (`dvc pull`)."""
        from dvc.exceptions import DvcException

        path = verdicts_file(model, self.params["report"]["main_judge"], mode, test_set).as_posix()
        try:
            text = self.files.read_text(path) if self.files else ""
        except (OSError, DvcException):
            return {}
        lines = [json.loads(line) for line in text.splitlines()]
        return {v["id"]: v["prediction_score"] for v in lines if v["prediction_score"] is not None}

    def cell(self, model: str, mode: str, test_set: str) -> dict:
        """The scores of one model on one test set by the main judge; empty where there are none."""
        sets = self.json(f"metrics/scores/{model}.json").get(mode, {})
        return sets.get(test_set, {}).get(self.params["report"]["main_judge"], {})


def experiments(everywhere: bool = False) -> list[Experiment]:
    """The experiments that were run on the present commit (or on any), oldest first, and the commit itself."""
    head = _git("rev-parse", "HEAD").strip()
    below = "refs/exps" if everywhere else f"refs/exps/{head[:2]}/{head[2:]}"
    refs = _git("for-each-ref", "--sort=creatordate", "--format=%(refname)", below).split()
    apart = {"exec", "stash", "celery"}
    return [Experiment(HERE, head)] + [
        Experiment(ref.rsplit("/", 1)[1], ref) for ref in refs if not apart & set(ref.split("/"))
    ]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError("git", done.stderr.strip(), "a git repository", "run this in the clone")
    return done.stdout


def differing_only_in(runs: list[Experiment], *keys: str) -> list[Experiment]:
    """The runs that have the first one's parameters but for these: another study's are not among them."""
    return [
        run
        for run in runs
        if {key for key, _ in side_by_side.differing([runs[0], run])} <= set(keys)
    ]


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
        row["value"].upper(): float(row["final"])
        for row in experiment.breakdown(model, mode, "cv_bench", "origin")
    }
    if not {"ADE20K", "COCO", "OMNI3D"} <= origin.keys():
        return {}
    flat = (origin["ADE20K"] + origin["COCO"]) / 2
    return {"Official": round((flat + origin["OMNI3D"]) / 2, 2)}


def table2(runs: list[Experiment]) -> pd.DataFrame:
    """The paper's rows, then ours: a method at a number of samples, by CV-Bench task, with memory and time."""
    paper = read_json(Path(__file__).parent / "reporting/paper.json")["table2"]["rows"]
    lines = [
        {"source": "paper", **row, "Mean": round(sum(row[task] for task in TASKS) / len(TASKS), 2)}
        for row in paper
    ]
    for run in runs:
        params = run.params
        if params["train"]["source"] != "sat":
            continue
        rows = run.json("metrics/curate.json")["train"]["total"]
        for model in ("base", "sft", "grpo"):
            if model in params["models"] and (scores := by_task(run, model, params["modes"][0])):
                cost = run.cost(model) if model != "base" else {}
                lines.append(
                    {
                        "source": f"ours ({params['profile']})",
                        "method": METHODS.get(
                            (model, params["train"]["trainable"]), "Base, untuned"
                        ),
                        "samples": None
                        if model == "base"
                        else min(params["train"]["samples"] or rows, rows),
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
                    **{
                        key: cell[key]
                        for key in ("n", "final", "final_low", "final_high", "reasoning")
                    },
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
                    lines[key] = judges[judge]["final"]
    frame = pd.DataFrame(
        [(*key, value) for key, value in lines.items()],
        columns=["model", "mode", "set", "seed", "final"],
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
    found = experiments(everywhere)
    frame = STUDIES[study](found)
    if len(found) < 2 or frame.empty:
        raise UserError(
            f"study {study}",
            f"{len(found) - 1} experiments on this commit",
            "the experiments of the study",
            f"{COMMANDS[study]}\n            dvc queue start, and wait for `dvc queue status`",
        )
    write_frame(OUTPUT / f"{study}.csv", frame)
    text = markdown(frame)
    with atomic_file(OUTPUT / f"{study}.md") as file:
        file.write(f"# {study}\n\nMade by a command such as `{COMMANDS[study]}`, `dvc queue start` "
                   f"and `python -m stages.compare {study}`.\n\n{text}\n")  # fmt: skip
    click.echo(text)
    click.echo(f"{OUTPUT / study}.csv and .md")
    if study == "runs":
        with atomic_file(PAGE) as file:
            file.write(side_by_side.render(found, frame))
        click.echo(PAGE)


def markdown(frame: pd.DataFrame) -> str:
    """A GitHub table; empty cells for what is not there."""
    rows = [list(frame.columns), ["---"] * len(frame.columns)]
    rows += [["" if pd.isna(v) else str(v) for v in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
