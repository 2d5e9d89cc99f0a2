"""Features of the images of record files: what the stages `encode` and `encode_benchmarks` write.

Features that are there already are kept if the same tower, code and libraries computed them (`.cache/features`), so
that one more benchmark encodes its own images only. DVC leaves them there if the output has `persist: true`.
"""

import time
from contextlib import suppress
from pathlib import Path

import click

from rarl.cache import CACHE, code_key, key_of, packages
from rarl.errors import UserError
from rarl.images import open_rgb
from rarl.params import Params
from rarl.records import Sample, batches, image_file, read_json, read_records, write_json

#: What the families' image processors give to the vision tower.
IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask")


def encode(files: list[Path], output: Path, params: Params) -> None:
    """Run the frozen vision tower once per distinct image, and write its output to the folder `output`."""
    from safetensors.torch import load as from_bytes
    from safetensors.torch import save as to_bytes
    from tqdm import tqdm

    from rarl.models.features import FeatureStore, content, describe
    from rarl.models.loading import load
    from rarl.processes.forks import cores, in_forks

    started = time.perf_counter()
    samples = [sample for file in files for sample in read_records(file, Sample)]
    images = {sample.image_sha256: image_file(params.data.root, sample.image) for sample in samples}
    loaded = load("data/models/base", params.model)
    tower = describe(loaded)
    key = key_of(tower=tower, code=code_key("encode", params.model.device), packages=packages())
    note = CACHE / "features" / f"{output.name}.json"
    store, keys = FeatureStore(), {}
    with suppress(OSError, ValueError, KeyError, UserError):
        noted, kept = read_json(note), FeatureStore.load(output)
        if noted["key"] == key and noted["content"] == content(kept.features):
            store, keys = kept, noted["images"]
    store.attach(loaded.model)
    missing = [image for image in images if image not in keys]

    def work(batch, advance):
        opened = [[open_rgb(images[image])] for image in batch]
        inputs = loaded.processor.image_processor(opened, return_tensors="pt").to(loaded.device)
        given = {name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
        loaded.model.model.get_image_features(**given)
        advance(len(batch))
        return dict(zip(batch, store.last)), to_bytes({key: store.features[key] for key in store.last})

    forks = cores(params.model.threads) if loaded.device.type == "cpu" else 1
    with tqdm(total=len(missing), desc="encode", unit="image", mininterval=1) as bar:
        encoded = in_forks(work, list(batches(missing, 16)), forks, lambda done: bar.update(done - bar.n))
    for found, features in encoded:
        keys.update(found)
        store.features.update(from_bytes(features))
    keys = {image: keys[image] for image in images}
    store = FeatureStore({key: store.features[key] for key in keys.values()}, tower)
    store.save(output)
    write_json(note, {"key": key, "content": content(store.features), "images": keys})
    click.echo(
        f"encode: {len(images)} distinct images of {len(files)} record files, {len(images) - len(missing)} of them "
        f"encoded before, in {time.perf_counter() - started:.1f} s"
    )
