"""Stage `infer`: ask one model every question of every test set, under each mode.

What was asked before is not asked again: predictions are kept by model, mode, set and decoding. Without a GPU the sets
are shared out among the cores.
"""

import time
from collections import Counter
from pathlib import Path

import click

from stages.cache import CACHE, answered, key_of, packages
from stages.errors import stage_main
from stages.launch import is_main_process, on_several_processes
from stages.params import Params, load_params
from stages.prompts import template
from stages.records import Sample, predictions_file, read_records, write_records


@click.command()
@click.option("--model", "name", required=True, help="Name of a folder below data/models.")
@stage_main
def main(name):
    params = load_params()
    if on_several_processes(params, "stages.infer", ["--model", name]):
        return
    folder = Path("data/models") / name
    started, total, faults = time.perf_counter(), 0, Counter()
    tasks = [
        (slug, read_records(params.samples_file(test_set), Sample), kept_in(folder, params, slug, test_set))
        for slug in params.modes
        for test_set in params.sets_of(slug)
    ]  # fmt: skip
    left = [
        task for task in tasks if not {sample.id for sample in task[1]} <= answered(task[2]).keys()
    ]
    if left:
        _ask(folder, params, left)
    if is_main_process():
        names = [(slug, test_set) for slug in params.modes for test_set in params.sets_of(slug)]
        for (slug, test_set), (_, samples, scratch) in zip(names, tasks):
            done = answered(scratch)
            predictions = [done[sample.id] for sample in samples]
            total += write_records(predictions_file(name, slug, test_set), predictions)
            faults.update(prediction.error for prediction in predictions if prediction.error)
        click.echo(f"infer {name}: {total} predictions in {time.perf_counter() - started:.1f} s")
        if faults:
            (fault, _), *_ = faults.most_common(1)
            click.secho(
                f"  WARNING: {faults.total()} of {total} questions could not be asked, mostly: {fault}",
                fg="yellow",
                bold=True,
            )


def kept_in(folder: Path, params: Params, slug: str, test_set: str) -> Path:
    """The file that keeps a model's predictions on one test set under one mode."""
    mode = params.mode[slug]
    key = key_of(
        folder, params.samples_file(test_set), "stages/models", "stages/answers.py", "stages/pinning.py",
        prompt=template(mode.prompt), image=mode.image, decoding=params.decoding.model_dump(), model=params.model.model_dump(), seed=params.seed,
        packages=packages(),
    )  # fmt: skip
    return CACHE / "predictions" / f"{key}.jsonl"


def _ask(folder: Path, params: Params, tasks: list[tuple[str, list[Sample], Path]]) -> None:
    """Fill the files of `tasks`: mode, samples and file of each."""
    from tqdm import tqdm

    from stages.forks import cores, in_forks
    from stages.models.features import FeatureStore, put_away
    from stages.models.inference import predict
    from stages.models.loading import load

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


if __name__ == "__main__":
    main()
