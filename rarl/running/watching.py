"""The view of `rarl watch`: what runs, and how the training goes."""

import csv
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil
from rich.console import Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rarl.experiments.progress import duration
from rarl.processes.status import LIVE, STAGE, read_status
from rarl.registry import METHODS, REWARDS

#: Columns of the log, in the order of the view, with what they are called there. Shares are shown in percent.
SHOWN = {
    "loss": "loss",
    "reward": "reward",
    **{f"reward_{name}": f"  {name}" for name in REWARDS},
    "kl": "KL to the reference",
    "zero_signal_share": "groups without signal",
    "truncated_share": "truncated completions",
    "completion_length": "tokens per completion",
    "entropy": "entropy",
    "grad_norm": "gradient norm",
    "token_accuracy": "token accuracy",
    "dev_score": "development score",
}
PERCENT = {"zero_signal_share", "truncated_share", "token_accuracy"}
BARS = "▁▂▃▄▅▆▇█"
#: Characters of a curve: the table then fits into 80 columns.
WIDTH = 32


@dataclass
class Snapshot:
    """What is known at one moment: the stage that runs or ran last, and the training that was logged last."""

    stage: dict = field(default_factory=dict)
    method: str | None = None
    training: dict = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)


def take_snapshot() -> Snapshot:
    """Read the files of the project in the working folder, or of an experiment that DVC runs in a copy of it."""
    copies = [path.parents[2] for path in Path(".dvc/tmp/exps").glob(f"*/{LIVE}/{STAGE}.json")]
    root = max([Path(), *copies], key=lambda path: read_status(STAGE, path).get("started", 0))
    trainings = {method: read_status(method, root) for method in METHODS}
    method = max(METHODS, key=lambda name: trainings[name].get("updated", 0))
    if not (training := trainings[method]):
        return Snapshot(read_status(STAGE, root))
    try:
        with (root / f"metrics/train/{method}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        rows = []
    return Snapshot(read_status(STAGE, root), method, training, rows)


def is_alive(status: dict) -> bool:
    """Whether the process that wrote a status still runs (and not another one that got its number later)."""
    try:
        return psutil.Process(status["pid"]).create_time() <= status["started"]
    except (KeyError, psutil.Error):
        return False


def render(snapshot: Snapshot, now: float) -> Group:
    """The view of a snapshot."""
    parts = [Text.assemble(("rarl watch  ", "bold"), stage_line(snapshot.stage, now))]
    if snapshot.training:
        parts += [training_line(snapshot, now), bar(snapshot.training), values(snapshot), *completions(snapshot)]
    else:
        parts.append(Text("No training has been logged in this folder yet: `dvc repro` starts one."))
    return Group(*parts)


def stage_line(stage: dict, now: float) -> str:
    """What the pipeline does.

    >>> stage_line({"stage": "infer", "items": ["base"], "started": 0, "ended": 60, "outcome": "finished"}, 70)
    'stage infer (base) finished 10 s ago, after 60 s'
    """
    if not stage:
        return "no stage has run in this folder yet"
    name = f"stage {stage['stage']}" + f" ({', '.join(stage['items'])})" * bool(stage["items"])
    if "ended" in stage:
        ago, took = duration(now - stage["ended"]), duration(stage["ended"] - stage["started"])
        return f"{name} {stage['outcome']} {ago} ago, after {took}"
    took = duration(now - stage["started"])
    return f"{name} has run for {took}" if is_alive(stage) else f"{name} was killed"


def training_line(snapshot: Snapshot, now: float) -> Text:
    """Step, time left, memory and development score of the training."""
    training = snapshot.training
    step, steps, each = training["step"], training["max_steps"], training["seconds_per_step"]
    alive = training["outcome"] == "running" and is_alive(training)
    outcome = training["outcome"] if training["outcome"] != "running" else "killed"
    parts = [f"{snapshot.method}: step {step} of {steps}"]
    if alive:
        left = f"about {duration(each * (steps - step))} left" if each else "time left unknown"
        parts += [left, f"last step {duration(now - training['updated'])} ago"]
    else:
        parts.append(f"{outcome} {duration(now - training['updated'])} ago")
    if each:
        parts.append(f"{each:.2g} s a step")
    if training.get("dev_score") is not None:
        parts.append(f"best development score {training['dev_score']} at step {training['best_step']}")
    parts.append(f"peak memory {training['memory_mb'] / 1024:.1f} GB")
    if "gpu_memory_mb" in training:
        parts.append(f"GPU {training['gpu_memory_mb'] / 1024:.1f} GB")
    return Text(" · ".join(parts))


def bar(training: dict) -> Table:
    """How far the training is."""
    line = Table.grid(expand=True)  # a bar by itself does not end its line
    line.add_row(ProgressBar(total=training["max_steps"], completed=training["step"]))
    return line


def values(snapshot: Snapshot) -> Table:
    """The last value of each column of the log, the mean of the last tenth of the steps, and the curve."""
    table = Table(box=None, pad_edge=False)
    for head in ("", "last", "recent mean", "from first to last step"):
        table.add_column(head, justify="right" if head in ("last", "recent mean") else "left", no_wrap=True)
    for column, label in SHOWN.items():
        if numbers := [float(row[column]) for row in snapshot.rows if row.get(column)]:
            recent = numbers[-max(1, len(numbers) // 10) :]
            cells = (number(column, value) for value in (numbers[-1], sum(recent) / len(recent)))
            table.add_row(label, *cells, Text(curve(numbers)))
    return table


def number(column: str, value: float) -> str:
    """A value of a column.

    >>> number("truncated_share", 0.25), number("loss", 0.123456)
    ('25 %', '0.1235')
    """
    return f"{value:.0%}".replace("%", " %") if column in PERCENT else f"{value:.4g}"


def curve(numbers: list[float], width: int = WIDTH) -> str:
    """A curve in at most `width` characters, each the mean of as many steps.

    >>> curve([0, 1, 2, 3]), curve([1, 1]), curve([0, 0, 7, 7], 2)
    ('▁▃▆█', '▁▁', '▁█')
    """
    count = min(width, len(numbers))
    edges = [len(numbers) * i // count for i in range(count + 1)]
    means = [sum(numbers[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / (high - low or 1) * (len(BARS) - 1))] for mean in means)


def completions(snapshot: Snapshot) -> Iterable[Panel]:
    """Completions of the last step with their rewards."""
    for shown in snapshot.training["completions"]:
        rewards = ", ".join(f"{name} {value:.3g}" for name, value in shown["rewards"].items() if value == value)
        title = f"{rewards}; advantage {shown['advantage']:+.2f}"
        yield Panel(Text(printable(shown["text"])), title=Text(title), title_align="left")


def printable(text: str) -> str:
    r"""A text whose control and formatting characters, which a terminal might obey, are shown as `\x1b`.

    >>> print(printable("a\x1b[2Jb\nc\u202e"))
    a\x1b[2Jb
    c\u202e
    """
    kept = (char == "\n" or unicodedata.category(char)[0] != "C" for char in text)
    return "".join(char if keep else repr(char)[1:-1] for char, keep in zip(text, kept))
