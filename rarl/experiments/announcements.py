"""What a study says before it starts: how many experiments, how long they take, and what they can show."""

import os
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil

from rarl.experiments.designs import PARAMS, Combination, Design, key_of
from rarl.experiments.power import detectable
from rarl.experiments.progress import duration
from rarl.experiments.revisions import HERE, Experiment, git
from rarl.processes.cost import COSTS, EXPERIMENTS, read, slug_of
from rarl.registry import METHODS
from rarl.reporting.tables import SETS

#: Memory of one experiment if no run has measured it, in MiB.
MEMORY = 1500
#: Losses that have the same gradient where the policy is that of the completions, as no ratio differs from 1.
SAME_ON_POLICY = ({"grpo", "sapo", "gspo"}, {"dapo", "cispo", "vespo"})


def announcement(design: Design, finished: dict[str, Experiment], jobs: int, seconds: float | None) -> Iterator[str]:
    """Yield the lines that say what a study runs, how long that takes, and what it can show.

    Args:
        design: The study.
        finished: Its experiments that have finished, by the combination's name.
        jobs: The number of experiments at a time.
        seconds: The expected time of one experiment; None if unknown.
    """
    missing = [one for one in design.combinations if one.name not in finished]
    yield f"study {design.study}: {len(design.combinations)} experiments, {len(missing)} to run"
    for one in design.combinations:
        if run := finished.get(one.name):
            yield f"  {label(one)}: {'this commit' if run.name == HERE else run.name}"
        else:
            yield f"  {label(one)}: to run"
    if design.left_out:
        yield f"  left out, as the phantoms have fewer training rows (phantom.sat_rows): {', '.join(design.left_out)}"
    if missing:
        rounds = -(-len(missing) // jobs)
        time = f"about {duration(seconds)} each, {duration(seconds * rounds)} in all" if seconds else "time unknown"
        yield f"  {jobs} at a time, {time}"
    changed = git("diff", "--name-only", "HEAD", "--", PARAMS, *design.code).split()
    if missing and changed:
        yield f"  uncommitted changes go into each experiment, as DVC does it: {', '.join(changed[:5])}"
    yield from same_on_policy(design)
    yield from power(design)


def same_on_policy(design: Design) -> Iterator[str]:
    """Yield a line for losses of the study that cannot differ."""
    used = {one.params.rl.loss for one in design.combinations if one.params.rl.num_iterations == 1}
    for same in SAME_ON_POLICY:
        if len(same & used) > 1:
            names = ", ".join(sorted(same & used))
            yield f"  {names}: the same gradient with rl.num_iterations=1; they differ with -S rl.num_iterations=2"


def label(combination: Combination) -> str:
    """Return the parameters that differ within the study as text."""
    return ", ".join(f"{key}={value}" for key, value in combination.values)


def power(design: Design) -> Iterator[str]:
    """Yield the lines on the smallest difference that the study can show."""
    seeds = f"{design.seeds} seeds" if design.seeds > 1 else "one training"
    params = design.combinations[0].params
    asked = {params.train.source, *params.benchmarks}
    found = {name: points for name, points in smallest(design).items() if name in asked}
    if found:
        shown = (
            f"{SETS.get(name, name)} {'out of reach' if points is None else f'{points:.1f}'}"
            for name, points in found.items()
        )
        text = f"smallest difference that shows with 80 % power, in points, {seeds} a side: {', '.join(shown)}"
        yield from textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    else:
        yield "  which difference this can show is not known before a first run (`dvc repro`)"
    if design.seeds == 1:
        yield "  one training is one draw: several seeds (-S seed=7,8,9) also measure the spread over trainings"


def smallest(design: Design) -> dict[str, float | None]:
    """Return test set -> the smallest difference, in points, that shows for each trained model it can move.

    In the first mode. None if it does not show for one of them, however large it is; empty before a first run.
    """
    found: dict[str, list[float | None]] = {}
    trained = [model for model in design.workspace.params["models"] if model in METHODS]
    models = [model for model in trained if f"score@{model}" in reached(design)]
    for line in detectable(design.workspace, design.seeds, models or None):
        if line["mode"] == design.workspace.params["modes"][0]:
            found.setdefault(line["set"], []).append(line["points"])
    return {name: None if None in points else max(points) for name, points in found.items()}


def seconds(design: Design) -> float | None:
    """Return the time of one experiment as the last runs on this machine took it; None if unknown.

    The stages are those that the study's parameters reach.
    """
    costs = [cost.get("seconds") for cost in costs_of(design)]
    known = [one for one in costs if one is not None]
    return sum(known) if known else None


def costs_of(design: Design) -> list[dict]:
    """Return the last known cost of each stage that the study's parameters reach; empty ones where unknown."""
    return [last_cost(design.workspace.stages[stage].cmd) for stage in reached(design)]


def reached(design: Design) -> set[str]:
    """Return the stages that run again if the study's parameters change."""
    import networkx
    from dvc.dependency.param import ParamsDependency

    keys = {key_of(setting) for one in design.combinations for setting in one.settings}
    found = set()
    for stage in design.workspace.stages.values():
        used = [key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params]
        if any(f"{key}.".startswith(f"{use}.") or f"{use}.".startswith(f"{key}.") for key in keys for use in used):
            found |= {stage} | networkx.ancestors(design.workspace.files.repo.index.graph, stage)
    return {stage.name for stage in found if getattr(stage, "name", None)}


def last_cost(command: str) -> dict:
    """Return the cost of a stage's last run on this machine, in this folder or as an experiment; empty if unknown.

    `command` is that of the stage in `dvc.yaml`, such as `python -m stages.infer --model sft`.
    """
    name = f"{slug_of([Path(word).name for word in command.partition('stages.')[2].split()])}.json"
    files = [file for file in (COSTS / name, *EXPERIMENTS.glob(f"*/*/{name}")) if file.is_file()]
    return read(max(files, key=lambda file: file.stat().st_mtime)) if files else {}


def room(design: Design, experiments: int) -> int:
    """Return how many experiments this machine can run at a time: by cores and free memory, one on a GPU."""
    model = design.combinations[0].params.model
    if model.device == "cuda" or (model.device == "auto" and shutil.which("nvidia-smi")):
        return 1
    memory = max([cost.get("peak_memory_mb", 0) for cost in costs_of(design)], default=0) or MEMORY
    cores = (os.cpu_count() or 1) // (model.threads or os.cpu_count() or 1)
    return max(1, min(experiments, cores, psutil.virtual_memory().available // 2**20 // memory))
