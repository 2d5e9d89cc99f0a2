"""Predictions of a model: where they are kept, what they depend on, and how the cores share the test sets."""

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import click

from rarl.cache import CACHE, announce_format, answered, code_key, key_of, packages
from rarl.errors import warn
from rarl.launch import is_main_process
from rarl.params import Params
from rarl.prompts import template
from rarl.records import PREDICTIONS, Sample, predictions_file, read_records, write_records

#: Decides where and when predictions are made, and not what they are.
SHARING = "rarl/predictions.py"


class Task(NamedTuple):
    """A test set to be asked under one mode."""

    mode: str
    test_set: str
    samples: list[Sample]
    kept: Path
    """The file of its finished predictions (`kept_in`)."""

    def is_done(self) -> bool:
        """Whether every sample has a prediction without an error."""
        done = {id for id, one in answered(self.kept).items() if not one.error}
        return {sample.id for sample in self.samples} <= done


def infer(model: str, params: Params) -> None:
    """Write the predictions of a model, a folder below `data/models`, for every test set under each mode."""
    started = time.perf_counter()
    tasks = finish(model, params)
    if not is_main_process():
        return
    total, faults = write(model, tasks)
    click.echo(f"infer {model}: {total} predictions in {time.perf_counter() - started:.1f} s")
    if faults:
        [(fault, _)] = faults.most_common(1)
        warn(f"{faults.total()} of {total} questions could not be asked, mostly: {fault}")


def write(model: str, tasks: list[Task], folder: Path = PREDICTIONS) -> tuple[int, Counter]:
    """Write the predictions of finished tasks below `folder`; returns their number, and that of each error."""
    total, faults = 0, Counter()
    for task in tasks:
        done = answered(task.kept)
        predictions = [done[sample.id] for sample in task.samples]
        total += write_records(predictions_file(model, task.mode, task.test_set, folder), predictions)
        faults.update(prediction.error for prediction in predictions if prediction.error)
    return total, faults


def finish(model: str, params: Params, forks: int | None = None) -> list[Task]:
    """Ask what is left to ask, in at most `forks` processes, and return all tasks."""
    folder = Path("data/models") / model
    announce_format()
    code = {file: hash for file, hash in code_key("infer", params.model.device).items() if file != SHARING}
    key = key_of(folder, code=code, packages=packages())
    tasks = [
        Task(mode, name, read_records(params.samples_file(name), Sample), kept_in(key, params, mode, name))
        for mode in params.modes
        for name in params.sets_of(mode)
    ]
    if left := [task for task in tasks if not task.is_done()]:
        ask_sets(folder, params, left, forks)
    return tasks


def kept_in(model: str, params: Params, slug: str, test_set: str) -> Path:
    """The file of predictions under the mode `slug`; `model` is the key of its weights, code and libraries."""
    mode = params.mode[slug]
    key = key_of(
        params.samples_file(test_set),
        model=model,
        prompt=template(mode.prompt),
        image=mode.image,
        decoding=params.decoding.model_dump(),
        settings=params.model.model_dump(),
        seed=params.seed,
    )
    return CACHE / "predictions" / f"{key}.jsonl"


def ask_sets(folder: Path, params: Params, tasks: list[Task], forks: int | None = None) -> None:
    """Fill the files of `tasks`; without a GPU the cores share them, at most `forks` if given."""
    from tqdm import tqdm

    from rarl.forks import cores, in_forks
    from rarl.inference import predict
    from rarl.models.features import FeatureStore, offload
    from rarl.models.loading import load

    loaded = load(folder, params.model)
    FeatureStore.load("data/features/benchmarks", loaded).attach(loaded.model)
    offload(loaded.model)
    processes = params.accelerate.processes
    shared = loaded.device.type == "cpu" and processes == 1
    forks = min(forks or cores(params.model.threads), len(tasks)) if shared else 1
    # The largest first, so that no process waits long for another.
    tasks = sorted(tasks, key=lambda task: -len(task.samples))
    total = sum(len(task.samples) for task in tasks)

    def work(task, advance):
        mode, root = params.mode[task.mode], Path(params.data.root)
        predict(loaded, task.samples, root, mode, params.decoding, params.seed, task.kept, advance)

    with tqdm(total=total, desc=folder.name, unit="q", mininterval=1, disable=not is_main_process()) as bar:
        in_forks(work, tasks, forks, lambda asked: bar.update(asked * processes - bar.n))
