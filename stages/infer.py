"""Stage `infer`: ask one model every question of every test set, under each mode.

What was asked before is not asked again: predictions are kept by model, mode, set and decoding.
"""

import time
from pathlib import Path

import click

from stages.cache import CACHE, finished, key_of, packages
from stages.errors import stage_main
from stages.launch import is_main_process, on_several_processes
from stages.params import load_params
from stages.prompts import template
from stages.records import (
    Prediction,
    Sample,
    predictions_file,
    read_records,
    write_records,
)


@click.command()
@click.option("--model", "name", required=True, help="Name of a folder below data/models.")
@stage_main
def main(name):
    params = load_params()
    if on_several_processes(params, "stages.infer", ["--model", name]):
        return
    folder = Path("data/models") / name
    loaded, started, total = None, time.perf_counter(), 0
    for slug in params.modes:
        mode = params.mode[slug]
        for test_set in params.sets_of(slug):
            source = params.samples_file(test_set)
            samples = read_records(source, Sample)
            key = key_of(
                folder, source, "stages/models", "stages/answers.py", "stages/pinning.py",
                prompt=template(mode.prompt), image=mode.image, decoding=params.decoding.model_dump(), model=params.model.model_dump(), seed=params.seed,
                packages=packages(),
            )  # fmt: skip
            scratch = CACHE / "predictions" / f"{key}.jsonl"
            kept = {record.id: record for record in finished(scratch, Prediction)}
            if all(sample.id in kept for sample in samples):
                predictions = [kept[sample.id] for sample in samples]
            else:
                from stages.models.inference import predict

                loaded = loaded or _load(folder, params)
                label = f"{name} {slug} {test_set}"
                predictions = predict(
                    loaded,
                    samples,
                    Path(params.data.root),
                    mode,
                    params.decoding,
                    params.seed,
                    scratch,
                    label,
                )
            if is_main_process():
                total += write_records(predictions_file(name, slug, test_set), predictions)
    if is_main_process():
        click.echo(f"infer {name}: {total} predictions in {time.perf_counter() - started:.1f} s")


def _load(folder: Path, params):
    from stages.models.features import FeatureStore, put_away
    from stages.models.loading import load

    loaded = load(folder, params.model)
    FeatureStore.load("data/features/benchmarks").attach(loaded.model)
    put_away(loaded.model)
    return loaded


if __name__ == "__main__":
    main()
