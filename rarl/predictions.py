"""Asking a model every question of a test set: what is kept, and how the cores of a machine share the work."""

from pathlib import Path

from rarl.cache import CACHE, key_of, packages
from rarl.launch import is_main_process
from rarl.params import Params
from rarl.prompts import template
from rarl.records import Sample


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


def ask_sets(folder: Path, params: Params, tasks: list[tuple[str, list[Sample], Path]]) -> None:
    """Fill the files of `tasks`: mode, samples and file of each."""
    from tqdm import tqdm

    from rarl.forks import cores, in_forks
    from rarl.models.features import FeatureStore, put_away
    from rarl.models.inference import predict
    from rarl.models.loading import load

    loaded = load(folder, params.model)
    FeatureStore.load("data/features/benchmarks").attach(loaded.model)
    put_away(loaded.model)
    count = cores(params.model.threads) if loaded.device.type == "cpu" else 1
    alone = params.accelerate.processes > 1 or min(count, len(tasks)) == 1
    tasks = sorted(
        tasks, key=lambda task: -len(task[1])
    )  # so that no process waits long for another

    def work(task, advance):
        slug, samples, scratch = task
        mode, root = params.mode[slug], Path(params.data.root)
        predict(loaded, samples, root, mode, params.decoding, params.seed, scratch, advance)

    with tqdm(
        total=sum(len(samples) for _, samples, _ in tasks), desc=folder.name, unit="q",
        mininterval=1, disable=not is_main_process(),
    ) as bar:  # fmt: skip
        if alone:
            for task in tasks:
                work(task, lambda asked: bar.update(asked * params.accelerate.processes))
        else:
            in_forks(work, tasks, min(count, len(tasks)), lambda asked: bar.update(asked - bar.n))
