"""Time and memory of the stages: what a run says about the machine, kept out of git and of `dvc.lock`.

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
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

COSTS = Path("metrics/cost")
EXPERIMENTS = Path(".cache/cost")


def slug_of(name: list[str]) -> str:
    """The name of a stage's cost file: `["judge", "lexical", "base"]` gives `judge_lexical_base`.

    Parts that are no slugs, such as file names, and repeated parts are left out.
    """
    return "_".join(dict.fromkeys(part for part in name if part.replace("_", "").isalnum()))


def write_cost(name: list[str], seconds: float) -> None:
    """Write the cost of a stage that has just finished in this process.

    Args:
        name: the stage and its items, see `slug_of`.
        seconds: wall-clock time.
    """
    # DVC sets these for the commands of an experiment; the root is that of the repository it was started from.
    root, baseline, experiment = (
        os.environ.get(f"DVC_{key}") for key in ("ROOT", "EXP_BASELINE_REV", "EXP_NAME")
    )
    slug = slug_of(name)
    cost = {"seconds": round(seconds, 1), "peak_memory_mb": peak_memory_mb()} | builds()
    text = json.dumps(cost | ({"experiment": experiment} if experiment else {})) + "\n"
    _write(COSTS / f"{slug}.json", text)
    known = {file.stem: read(file) for file in sorted(COSTS.glob("*.json"))}
    _write(COSTS / "cost.js", f"window.RARL_COST = {json.dumps(known, indent=1)};\n")
    if root and baseline and experiment:
        _write(Path(root) / EXPERIMENTS / baseline / experiment / f"{slug}.json", text)


def read_cost(stage: str, experiment: tuple[str, str] | None = None) -> dict:
    """The cost of a stage; empty where none is known on this machine.

    An experiment's cost is unknown if another machine ran it, or if DVC took the stage's outputs from its run cache.

    Args:
        stage: the file's name without its suffix, such as `sft` or `infer_base`.
        experiment: full hash of the commit that it was started from, and its name; None for the last run in this folder.

    Returns:
        `seconds` (wall clock), `peak_memory_mb` (see `peak_memory_mb`), `python` and `torch` (versions), and the name of
        the `experiment` if it was one.
    """
    folder = COSTS if experiment is None else EXPERIMENTS.joinpath(*experiment)
    return read(folder / f"{stage}.json")


def read(file: Path) -> dict:
    """The content of a cost file; empty where it is missing or damaged, as no result depends on it."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def peak_memory_mb() -> int:
    """Peak resident memory in units of 2^20 bytes: of this process, or of the largest one that it waited for.

    The second is the larger one where `stages.launch` trains on several processes. GPU memory is not in it.
    """
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]  # fmt: skip
    return round(max(usage) / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def builds() -> dict[str, str]:
    """What may differ between two machines that installed the same `constraints.txt`."""
    try:
        return {"python": python_version(), "torch": version("torch")}
    except PackageNotFoundError:
        return {"python": python_version()}


def _write(file: Path, text: str) -> None:
    """Replace a file as a whole; the processes of one stage may do so at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
