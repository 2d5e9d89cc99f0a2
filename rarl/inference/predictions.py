"""Predictions of a model: where they are kept, what they depend on, and how the cores share the test sets."""

import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import click

from rarl.cache import CACHE, announce_format, answered, code_key, key_of, packages
from rarl.errors import warn
from rarl.params import Decoding, Params, Rival
from rarl.processes.launch import is_main_process
from rarl.prompts import template
from rarl.records import (
    PREDICTIONS,
    Sample,
    predictions_file,
    read_records,
    write_json,
    write_records,
)
from rarl.rivals import ASKED, FILE, check_written, named

#: Decides where and when predictions are made, and not what they are.
SHARING = "rarl/inference/predictions.py"
#: What asks models at endpoints only.
ENDPOINTS = ("rarl/chat/", "rarl/inference/endpoint.py")


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
    if rival := params.rival.get(model):
        # For the stages that follow: they depend on the predictions, and not on the definitions of all rivals.
        write_json(PREDICTIONS / model / FILE, rival.model_dump(include=ASKED))
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
    announce_format()
    key, rival = _model_key(model, params), params.rival.get(model)
    tasks = [
        Task(mode, name, read_records(params.samples_file(name), Sample), kept_in(key, params, mode, name, rival))
        for mode in params.modes_of(model)
        for name in params.sets_of(mode)
    ]
    if left := [task for task in tasks if not task.is_done()]:
        if rival and rival.base_url:
            from rarl.inference.endpoint import ask_endpoint

            ask_endpoint(model, params, left)
        else:
            ask_sets(model, params, left, forks)
    return tasks


def _model_key(model: str, params: Params) -> str:
    """The key of a model's weights or endpoint, and of the code and libraries that ask it."""
    folder, rival = Path("data/models") / model, params.rival.get(model)
    unused = (SHARING,) if rival and rival.base_url else (SHARING, *ENDPOINTS)
    code = {file: hash for file, hash in code_key("infer", params.model.device).items() if not file.startswith(unused)}
    depends = {"code": code, "packages": packages(params)}
    if rival is None:
        return key_of(folder, **depends)
    # How it is asked is in the key of each file of predictions.
    weights = sorted(path for path in folder.iterdir() if path.name != FILE)
    return key_of(*weights, **depends, rival=rival.model_dump(include={"base_url", "model", "temperature", "reads"}))


def kept_in(model: str, params: Params, slug: str, test_set: str, rival: Rival | None = None) -> Path:
    """The file of predictions under the mode `slug`; `model` is the key of its weights, code and libraries."""
    mode = params.mode[slug]
    key = key_of(
        params.samples_file(test_set),
        model=model,
        prompt=(rival and rival.prompt) or template(mode.prompt),
        image=mode.image,
        decoding=decoding_of(params, rival).model_dump(),
        settings=params.model.model_dump(),
        seed=params.seed,
    )
    return CACHE / "predictions" / f"{key}.jsonl"


def decoding_of(params: Params, rival: Rival | None) -> Decoding:
    """The settings of generation, with a rival's own limit if it has one."""
    longer = {"max_new_tokens": rival.max_tokens} if rival and rival.max_tokens else {}
    return params.decoding.model_copy(update=longer)


def ask_sets(model: str, params: Params, tasks: list[Task], forks: int | None = None) -> None:
    """Fill the files of `tasks`; without a GPU the cores share them, at most `forks` if given."""
    from tqdm import tqdm

    from rarl.inference.local import predict
    from rarl.models.features import FeatureStore, offload
    from rarl.models.loading import load
    from rarl.processes.forks import cores, in_forks

    folder, rival = Path("data/models") / model, params.rival.get(model)
    if rival:
        check_written(model, rival, folder)
    with named(model) if rival else nullcontext():
        loaded = load(folder, params.model)
    # A rival with another vision tower, or with an adapter on it, encodes each image once, when it is asked about it.
    store = FeatureStore.load("data/features/benchmarks", loaded, optional=rival is not None)
    store.attach(loaded.model)
    offload(loaded.model)
    processes = params.accelerate.processes
    shared = loaded.device.type == "cpu" and processes == 1
    forks = min(forks or cores(params.model.threads), len(tasks)) if shared else 1
    # The largest first, so that no process waits long for another.
    tasks = sorted(tasks, key=lambda task: -len(task.samples))
    total = sum(len(task.samples) for task in tasks)

    decoding = decoding_of(params, rival)

    def work(task, advance):
        mode, root = params.mode[task.mode], Path(params.data.root)
        predict(loaded, task.samples, root, mode, decoding, params.seed, task.kept, advance, rival)

    with tqdm(total=total, desc=model, unit="q", mininterval=1, disable=not is_main_process()) as bar:
        in_forks(work, tasks, forks, lambda asked: bar.update(asked * processes - bar.n))
