"""The log of a training while it runs, for DVC, for `rarl watch` and for experiment trackers.

`metrics/train/<method>.csv` and `.json` grow with each step, so that `dvc plots show` and VS Code follow them; at the
end the run writes the same rows again, with its metrics. No weight depends on this module, and none of its errors ends
a training.
"""

import copy
import csv
import importlib.util
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK

from rarl.errors import UserError
from rarl.processes.cost import note, peak_memory_mb
from rarl.processes.status import LIVE, publish, write_status
from rarl.training import groups
from rarl.training.rows import named, write_csv

#: Names of trackers, separated by commas.
VARIABLE = "RARL_REPORT_TO"
TRACKERS = ("dvclive", "tensorboard", "wandb", "mlflow", "trackio")
#: Settings of trackers for which the user has set no other: files stay on this machine, and no server is waited for.
LOCAL = {
    "WANDB_MODE": "offline",
    "WANDB_DIR": f"{LIVE}",
    "WANDB_PROJECT": "rarl",
    "WANDB_INIT_TIMEOUT": "20",
    "MLFLOW_TRACKING_URI": f"sqlite:///{LIVE}/mlflow.db",
    "MLFLOW_EXPERIMENT_NAME": "rarl",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "TRACKIO_DIR": f"{LIVE}/trackio",
}
#: Characters of a completion that are shown.
SHOWN = 2000


def trackers() -> list[str]:
    """The trackers that `RARL_REPORT_TO` names.

    Raises:
        UserError: one is unknown, or its package is not installed.
    """
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    names = [name for name in dict.fromkeys(names) if name not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            expected = f"names among {', '.join(TRACKERS)}, separated by commas"
            raise UserError(VARIABLE, name, expected, "correct the name, or unset the variable")
        if importlib.util.find_spec(name) is None:
            fix = f"`pip install {name}`, or leave it out of the variable"
            raise UserError(VARIABLE, f"{name}, whose package is not installed", "an installed tracker", fix)
    return names


class Live(TrainerCallback):
    """Writes each step as soon as it is logged; at the start those of an earlier leg, or trained ahead of the stage.

    Args:
        method: `sft`, `grpo` or `rarl`.
        log: the run's `Log`, which has the development scores.
        trainer: its last completions are shown, if it samples any.
    """

    def __init__(self, method: str, log, trainer):
        self.method, self.log, self.trainer = method, log, trainer
        self.csv, self.json = (Path(f"metrics/train/{method}.{kind}") for kind in ("csv", "json"))

    def on_train_begin(self, args, state, control, **kwargs):
        """Write the steps so far."""
        self.began, self.first, self.spent = time.time(), state.global_step, 0.0
        self.rows = [row for row in self.log.table(state.log_history) if row["step"] <= state.global_step]
        self.columns = write_csv(self.csv, self.rows) if self.rows else []
        self.publish(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write a step."""
        if "train_runtime" in logs:  # the summary after the last step
            return
        start = time.perf_counter()
        row = {"step": state.global_step} | named(self.log.with_score(logs, state.global_step))
        self.rows.append(row)
        with suppress(OSError):
            if row.keys() <= set(self.columns):
                with self.csv.open("a", encoding="utf-8", newline="") as file:
                    csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)
            else:
                self.columns = write_csv(self.csv, self.rows)
        self.publish(state)
        self.spent += time.perf_counter() - start

    def on_train_end(self, args, state, control, **kwargs):
        """Tell `rarl watch` that no further step comes, and note the cost of a step's log in `metrics/cost`."""
        if steps := state.global_step - self.first:
            each = {"step_ms": (time.time() - self.began) / steps, "log_ms": self.spent / steps}
            note(**{name: round(1000 * seconds, 2) for name, seconds in each.items()})
        self.publish(state, "finished" if state.global_step >= state.max_steps else "stopped")

    def publish(self, state, outcome: str = "running") -> None:
        """Write the metrics so far, and the file for `rarl watch`."""
        step, now = state.global_step, time.time()
        best = self.log.best() if self.log.scores else {}
        best = {"best_step": best["step"], "dev_score": best["dev_score"]} if best else {}
        publish(self.json, json.dumps({"steps": step, **best}, indent=2) + "\n")
        each = (now - self.began) / (step - self.first) if step > self.first else None
        status = {"pid": os.getpid(), "started": self.began, "updated": now, "outcome": outcome}
        status |= {"step": step, "max_steps": state.max_steps, "seconds_per_step": each}
        status |= {**best, "memory_mb": peak_memory_mb()}
        if torch.cuda.is_initialized():
            status["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        write_status(self.method, status | {"completions": completions(self.trainer)})


class Groups(TrainerCallback):
    """Records how far each group of completions differs in accuracy (`rarl/training/groups.py`)."""

    def __init__(self, trainer):
        self.trainer, self.file = trainer, Path(trainer.args.output_dir) / groups.NAME

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the steps that a resumed run takes again."""
        if state.is_world_process_zero:
            with suppress(OSError, ValueError):
                groups.forget_after(state.global_step, self.file)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Record the groups of a step."""
        if state.is_world_process_zero and "train_runtime" not in logs:
            with suppress(Exception):  # it reads TRL's private log, and no weight depends on it
                groups.add(state.global_step, groups_of(self.trainer, state.global_step), self.file)


def completions(trainer) -> list[dict]:
    """The completions of TRL's last step with the highest, the median and the lowest advantage, and their rewards."""
    logs = getattr(trainer, "_logs", None) or {"advantages": ()}
    order = sorted(range(len(logs["advantages"])), key=lambda row: -logs["advantages"][row])
    rows = dict.fromkeys([order[0], order[len(order) // 2], order[-1]]) if order else ()
    return [
        {
            "text": text_of(logs["completion"][row])[:SHOWN],
            "advantage": logs["advantages"][row],
            "rewards": {name: values[row] for name, values in logs["rewards"].items()},
        }
        for row in rows
    ]


def groups_of(trainer, step: int) -> list[groups.Group]:
    """The groups of completions that a step has sampled; empty if it has sampled none, or without accuracy reward.

    TRL's log does not name the rows. They come in the order of the data set, which is checked by their prompts.
    """
    logs = getattr(trainer, "_logs", None) or {}
    if "accuracy" not in logs.get("rewards", ()) or (step - 1) % trainer.num_iterations:
        return []
    accuracy, size = [*logs["rewards"]["accuracy"]], trainer.num_generations
    count = len(accuracy) // size
    first = (step - 1) // trainer.num_iterations * count
    rows = trainer.train_dataset.with_format(None)[first : first + count]
    if [*map(text_of, rows["prompt"])] != [text_of(prompt) for prompt in [*logs["prompt"]][::size]]:
        return []
    keys = map(groups.row_key, rows["path"], rows["question"], rows["choices"], rows["answers"])
    return [
        (key, round(statistics.pstdev(accuracy[number * size : (number + 1) * size]), 4))
        for number, key in enumerate(keys)
    ]


def text_of(completion: str | list[dict]) -> str:
    """The text of a completion in TRL's conversational or plain format.

    >>> text_of([{"role": "assistant", "content": [{"type": "text", "text": "No."}]}])
    'No.'
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class Trackers(TrainerCallback):
    """Hands the log to experiment trackers; one that fails is left out, with a message.

    A resumed run is a run of its own there, which begins with the steps of its earlier legs: one curve without a gap.
    """

    def __init__(self, names: list[str], method: str, log):
        self.callbacks, self.method, self.log = dict.fromkeys(names), method, log

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the trackers, and hand them the steps so far."""
        for name in list(self.callbacks):
            with self.without_failed(name):
                self.callbacks[name] = make_callback(name, self.method, args.run_name)
        self.call("on_train_begin", args, state, control, **kwargs)
        then = copy.copy(state)
        for entry in state.log_history:
            then.global_step = entry["step"]
            self.on_log(args, then, control, logs=entry, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Hand over a step, with the development score if it has one."""
        if "train_runtime" not in logs:  # the summary after the last step
            self.call("on_log", args, state, control, logs=self.log.with_score(logs, state.global_step), **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the trackers' runs."""
        self.call("on_train_end", args, state, control, **kwargs)

    def call(self, event: str, *args, **kwargs) -> None:
        """Call an event of each tracker's callback."""
        for name in list(self.callbacks):
            with self.without_failed(name):
                getattr(self.callbacks[name], event)(*args, **kwargs)

    @contextmanager
    def without_failed(self, name: str) -> Iterator[None]:
        """A block whose error ends what is handed to one tracker, and not the training."""
        try:
            yield
        except Exception as error:
            del self.callbacks[name]
            tqdm.write(f"{self.method}: {name} fails, and gets nothing more of this run: {error}")


def make_callback(name: str, method: str, run_name: str) -> TrainerCallback:
    """The callback of a tracker: transformers' own, except for DVCLive."""
    for variable, value in LOCAL.items():
        os.environ.setdefault(variable, value)
    if name == "dvclive":
        return DvcLive(method)
    callback = INTEGRATION_TO_CALLBACK[name]()
    if name == "tensorboard":
        callback.logging_dir = os.path.join(callback.logging_dir or f"{LIVE}/tensorboard", run_name)
        shutil.rmtree(callback.logging_dir, ignore_errors=True)
    return callback


class DvcLive(TrainerCallback):
    """DVCLive in `dvclive/<method>/`, without what transformers' callback would do to a pipeline.

    That one rewrites dvc.yaml, counts its own steps, and reads all of its files again at each of them.
    """

    def __init__(self, method: str):
        from dvclive import Live

        self.live = Live(f"dvclive/{method}", dvcyaml=None, save_dvc_exp=False)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append a step to the files of its metrics."""
        self.live.step = state.global_step
        for name, value in named(logs).items():
            self.live.log_metric(name, value)
        self.live.make_summary()
