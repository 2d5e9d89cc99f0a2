"""Time, memory and origin of the stages: what a run says about the machine, kept out of git and of `dvc.lock`.

| file | what it holds |
|---|---|
| `metrics/cost/<stage>[_<item>].json` | the stage's last run in this folder |
| `metrics/cost/cost.js` | all of them, for the table in `data/report/report.html` |
| `.cache/cost/<baseline>/<experiment>/<stage>[_<item>].json` | the same for one `dvc exp run` |

`dvc exp run --queue` and `--temp` run in a temporary folder that DVC deletes, so the third is in the repository that
the experiment was started from.
"""

import json
import os
import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import machine, python_version

from rarl.records import atomic_file, read_json, write_json

COSTS = Path("metrics/cost")
EXPERIMENTS = Path(".cache/cost")
#: Keys of a record that are the largest of all processes of a stage.
PEAKS = ("peak_memory_mb", "peak_gpu_memory_mb")
#: Facts for the cost file of this process's stage, see `note`.
_noted: dict[str, str | float] = {}


def note(**facts: str | float) -> None:
    """Add facts to the cost file of this process's stage.

    A resumed one adds `earlier_seconds` to its `seconds`, and `earlier_processor_seconds` likewise.
    """
    _noted.update(facts)


def slug_of(name: list[str]) -> str:
    """The name of a stage's cost file. Parts that are no slugs, such as file names, and repeated parts are left out.

    >>> slug_of(["encode", "test.jsonl", "benchmarks", "benchmarks"])
    'encode_benchmarks'
    """
    return "_".join(dict.fromkeys(part for part in name if part.replace("_", "").isalnum()))


def write_cost(name: list[str], seconds: float) -> None:
    """Write the cost of a stage that has just finished in this process, named by its items too (`slug_of`).

    A process that `rarl.processes.launch` has started leaves its own record to the process that started it, which
    keeps the largest memory of all.
    """
    slug, now = slug_of(name), datetime.now(UTC)
    cost = {"seconds": seconds, "processor_seconds": processor_seconds(), "peak_memory_mb": peak_memory_mb()}
    cost["finished"] = now.isoformat(timespec="seconds")
    # The builds may differ between two machines that installed the same `constraints.txt`.
    cost |= {"python": python_version(), "torch": version("torch")} | code() | hardware() | _noted
    _noted.clear()
    if rank := os.environ.get("RANK"):
        from rarl.processes.launch import STARTED

        if os.environ.get(STARTED):
            write_json(COSTS / f"{slug}.{rank}.process", cost)
            return
        if rank != "0":  # started by a launcher of the user's own
            return
    for file in COSTS.glob(f"{slug}.*.process"):
        process = read(file)
        file.unlink()
        if process.get("finished", "") >= (now - timedelta(seconds=seconds)).isoformat(timespec="seconds"):
            largest = {key: max(process[key], cost.get(key, 0)) for key in PEAKS if key in process}
            cost = process | cost | largest
    for key in ("seconds", "processor_seconds"):
        cost[key] = round(cost[key] + cost.pop(f"earlier_{key}", 0), 1)
    # DVC sets these for the commands of an experiment; the root is that of the repository it was started from.
    root, baseline, experiment = (os.environ.get(f"DVC_{key}") for key in ("ROOT", "EXP_BASELINE_REV", "EXP_NAME"))
    cost |= {"experiment": experiment} if experiment else {}
    write_json(COSTS / f"{slug}.json", cost)
    known = {file.stem: read(file) for file in sorted(COSTS.glob("*.json"))}
    with atomic_file(COSTS / "cost.js") as script:
        script.write(f"window.RARL_COST = {json.dumps(known, indent=1)};\n")
    if root and baseline and experiment:
        write_json(Path(root) / EXPERIMENTS / baseline / experiment / f"{slug}.json", cost)


def read_cost(stage: str, experiment: tuple[str, str] | None = None) -> dict:
    """The cost of a stage; empty where none is known on this machine.

    An experiment's cost is unknown if another machine ran it, or if DVC took the stage's outputs from its run cache.

    Args:
        stage: the file's name without its suffix, such as `sft` or `infer_base`.
        experiment: full hash of its baseline commit, and its name; None for the last run in this folder.

    Returns:
        `seconds` (wall clock) and `processor_seconds` (see `processor_seconds`), of training over all legs of a
        resumed run, `peak_memory_mb` (see `peak_memory_mb`),
        `finished` (UTC), versions of `python` and `torch`, what `code` and `hardware` return, and the name of the
        `experiment` if it was one.
    """
    folder = COSTS if experiment is None else EXPERIMENTS.joinpath(*experiment)
    return read(folder / f"{stage}.json")


def read(file: Path) -> dict:
    """The content of a cost file; empty where it is missing or damaged, as no result depends on it."""
    try:
        return read_json(file)
    except (FileNotFoundError, ValueError):
        return {}


def peak_memory_mb() -> int:
    """Peak resident memory of the host in MiB: of this process, or of the largest one that it waited for."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def processor_seconds() -> float:
    """Processor time of this process and of those that it waited for, which other load hardly changes."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def code() -> dict[str, str | bool]:
    """The `commit` that the stage ran at, and whether code or parameters were `changed` since; empty outside git."""
    output = partial(subprocess.check_output, text=True, stderr=subprocess.DEVNULL)
    try:
        changes = output(["git", "status", "--porcelain", "--", "rarl", "stages", "dvc.yaml", "params.yaml"])
        return {"commit": output(["git", "rev-parse", "--short=12", "HEAD"]).strip(), "changed": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def hardware() -> dict[str, str | int]:
    """The `processor`; if this process computed on a GPU, `card` and `peak_gpu_memory_mb` (PyTorch's, MiB)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found = {"processor": next(names, machine())}
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        found["card"] = torch.cuda.get_device_name()
        found["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return found
