"""Asking a model every question of a test set: what is kept, and how the cores of a machine share the work."""

from pathlib import Path
from typing import NamedTuple

from rarl.cache import CACHE, answered, key_of, packages
from rarl.launch import is_main_process
from rarl.params import Params
from rarl.prompts import template
from rarl.records import Sample


class Task(NamedTuple):
    """A test set to be asked under one mode."""

    mode: str
    test_set: str
    samples: list[Sample]
    kept: Path
    """The file of its finished predictions (`kept_in`)."""

    def is_done(self) -> bool:
        done = {id for id, one in answered(self.kept).items() if not one.error}
        return {sample.id for sample in self.samples} <= done


def model_key(folder: Path) -> str:
    """Key of a model's weights and of the code that asks it; hashes the whole folder."""
    return key_of(folder, "rarl/models", "rarl/answers.py", "rarl/pinning.py")


def kept_in(model: str, params: Params, slug: str, test_set: str) -> Path:
    """The file that keeps a model's predictions on one test set under one mode.

    Args:
        model: its `model_key`.
    """
    mode = params.mode[slug]
    key = key_of(
        params.samples_file(test_set), model=model,
        prompt=template(mode.prompt), image=mode.image, decoding=params.decoding.model_dump(), settings=params.model.model_dump(), seed=params.seed,
        packages=packages(),
    )  # fmt: skip
    return CACHE / "predictions" / f"{key}.jsonl"


def ask_sets(folder: Path, params: Params, tasks: list[Task]) -> None:
    """Fill the files of `tasks`."""
    from tqdm import tqdm

    from rarl.forks import cores, in_forks
    from rarl.models.features import FeatureStore, put_away
    from rarl.models.inference import predict
    from rarl.models.loading import load

    loaded = load(folder, params.model)
    FeatureStore.load("data/features/benchmarks").attach(loaded.model)
    put_away(loaded.model)
    processes, forks = params.accelerate.processes, 1
    if loaded.device.type == "cpu" and processes == 1:
        forks = min(cores(params.model.threads), len(tasks))
    # The largest first, so that no process waits long for another.
    tasks = sorted(tasks, key=lambda task: -len(task.samples))

    def work(task, advance):
        mode, root = params.mode[task.mode], Path(params.data.root)
        predict(loaded, task.samples, root, mode, params.decoding, params.seed, task.kept, advance)

    with tqdm(
        total=sum(len(task.samples) for task in tasks), desc=folder.name, unit="q",
        mininterval=1, disable=not is_main_process(),
    ) as bar:  # fmt: skip
        if forks == 1:
            for task in tasks:
                work(task, lambda asked: bar.update(asked * processes))
        else:
            in_forks(work, tasks, forks, lambda asked: bar.update(asked - bar.n))
