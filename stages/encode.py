"""Stages `encode` and `encode_benchmarks`: the vision tower's output, once per distinct image."""

import time
from pathlib import Path

import click

from rarl.entry import stage_main
from rarl.params import load_params
from rarl.records import Sample, batches, image_file, read_records


@click.command()
@click.option(
    "--records", multiple=True, type=click.Path(path_type=Path), help="File of sample records; may be given often."
)
@click.option(
    "--benchmarks",
    type=click.Path(path_type=Path),
    help="Folder of benchmark records; those listed in params are read.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path))
@stage_main
def main(records, benchmarks, output):
    params = load_params()
    files = list(records) + ([benchmarks / f"{name}.jsonl" for name in params.benchmarks] if benchmarks else [])
    images = {}
    for file in files:
        for sample in read_records(file, Sample):
            images.setdefault(sample.image_sha256, image_file(params.data.root, sample.image))

    from tqdm import tqdm

    from rarl.images import open_rgb
    from rarl.models.features import FeatureStore
    from rarl.models.loading import load

    started = time.perf_counter()
    loaded = load("data/models/base", params.model)
    store = FeatureStore()
    store.attach(loaded.model)
    for batch in tqdm(list(batches(list(images.values()), 16)), desc="encode", unit="batch", mininterval=1):
        inputs = loaded.processor.image_processor([open_rgb(path) for path in batch], return_tensors="pt").to(
            loaded.device
        )
        loaded.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    store.save(output)
    click.echo(
        f"encode: {len(images)} distinct images of {len(files)} record files in {time.perf_counter() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
