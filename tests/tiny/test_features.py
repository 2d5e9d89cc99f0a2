"""Looked-up vision features are the tower's own, for every image and in any order."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rarl import encoding
from rarl.errors import UserError
from rarl.models.features import FILE, FeatureStore, describe, offload, patch_keys
from rarl.models.loading import load

ROOT = Path(__file__).parents[2]


def pictures():
    rng = np.random.default_rng(0)
    sizes = [(112, 112), (84, 112), (112, 84), (112, 112)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_lookup_equals_the_tower(project, params):
    loaded = load("data/models/base", params.model)
    inputs = loaded.processor.image_processor(pictures(), return_tensors="pt")
    with torch.no_grad():
        plain = loaded.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    store = FeatureStore()
    store.attach(loaded.model)
    for _ in range(2):  # first computed, then looked up
        found = loaded.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    assert store.computed == 4


def test_store_survives_the_disk_and_needs_no_tower(project, params, tmp_path):
    loaded = load("data/models/base", params.model)
    images = loaded.processor.image_processor
    store = FeatureStore()
    store.attach(loaded.model)
    forward = images(pictures(), return_tensors="pt")
    first = loaded.model.model.visual(forward["pixel_values"], grid_thw=forward["image_grid_thw"]).pooler_output
    store.save(tmp_path / "features")

    again = load("data/models/base", params.model)
    kept = FeatureStore.load(tmp_path / "features")
    kept.attach(again.model)
    backward = images(pictures()[::-1], return_tensors="pt")
    second = again.model.model.visual(backward["pixel_values"], grid_thw=backward["image_grid_thw"]).pooler_output
    counts = [(h * w // 4) for _, h, w in forward["image_grid_thw"].tolist()]
    torch.testing.assert_close(torch.cat(list(first.split(counts))[::-1]), second, rtol=0, atol=0)
    assert kept.computed == 0


def features():
    """Two images, in the type of the `paper` profile and in that of the default."""
    return {"a-4x4": torch.ones(4, 8, dtype=torch.bfloat16), "b-2x4": torch.arange(16.0).view(2, 8)}


def test_features_are_the_same_bytes_in_each_run(tmp_path):
    for name in "xy":
        FeatureStore(features()).save(tmp_path / name)
    x, y = (path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors")))
    assert x == y and len(list(tmp_path.rglob("*"))) == 4
    loaded = FeatureStore.load(tmp_path / "x").features
    assert all(torch.equal(loaded[key], value) for key, value in features().items())


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda path: path.write_bytes(b""), "header too small"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "deserializing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"), "2 images, .*, where 2 images, "),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: save_file({"a-4x4": features()["a-4x4"]}, path), "1 images, .*, where nothing is noted"),
    ],
    ids=["empty", "cut", "changed", "missing", "short of an image"],
)
def test_broken_features_are_not_used(tmp_path, monkeypatch, damage, found):
    monkeypatch.chdir(tmp_path)
    folder = Path("data/features/training")
    FeatureStore(features()).save(folder)
    damage(folder / FILE)
    with pytest.raises(UserError, match=f"{folder / FILE}\n  found: .*{found}") as raised:
        FeatureStore.load(folder)
    assert "`dvc repro -s -f encode`" in raised.value.format_message()


def test_features_of_another_tower_are_refused(project, params, monkeypatch):
    loaded, folder = load("data/models/base", params.model), Path("data/features/training")
    FeatureStore(features(), describe(loaded)).save(folder)
    assert FeatureStore.load(folder, loaded).tower == describe(loaded)
    for key, now, then in [("dtype", "bfloat16", "float32"), ("max_pixels", 25088, 12544)]:
        other = load("data/models/base", params.model.model_copy(update={key: now}))
        with pytest.raises(UserError, match="of another vision tower") as raised:
            FeatureStore.load(folder, other)
        where, found, expected, fix = raised.value.parts
        assert where == str(folder / FILE) and f"{key} {then}" in found and f"{key} {now}" in expected
        assert "`dvc repro -s -f encode`" in fix
    with torch.no_grad():
        loaded.model.model.visual.blocks[0].mlp.fc1.weight[0, 0] += 1
    with pytest.raises(UserError, match="another vision tower: weights"):
        FeatureStore.load(folder, loaded)


def test_one_more_benchmark_encodes_its_own_images_only(project, params, monkeypatch, capsys):
    """The bytes are those of a run that encodes everything, whatever was there before, and in whatever order."""
    files = [Path(f"data/curated/{split}.jsonl") for split in ("test", "dev", "train")]

    def encoded(*files: Path, fresh: bool = False) -> tuple[bytes, str]:
        if fresh:
            shutil.rmtree(".cache")
        encoding.encode([*files], Path("data/features/benchmarks"), params)
        return Path("data/features/benchmarks", FILE).read_bytes(), capsys.readouterr().out

    few, said = encoded(*files[:1])
    assert "6 distinct images of 1 record files, 0 of them encoded before" in said
    kept = Path("kept-by-dvc")
    kept.hardlink_to(Path("data/features/benchmarks", FILE))
    more, said = encoded(*files)
    assert "26 distinct images of 3 record files, 6 of them encoded before" in said
    assert kept.read_bytes() == few, "what DVC may have linked is not written to"
    assert encoded(*files[::-1])[0] == more
    again, said = encoded(files[0])
    assert again == few and "6 of them encoded before" in said
    fresh, said = encoded(*files[::-1], fresh=True)
    assert fresh == more and ", 0 of them encoded before" in said
    Path("data/features/benchmarks", FILE).write_bytes(more[:-1])
    assert ", 0 of them encoded before" in encoded(*files)[1], "a damaged store"
    with monkeypatch.context() as other:
        other.setattr(encoding, "code_key", lambda stage, device: {"rarl/models/loading.py": "changed"})
        assert ", 0 of them encoded before" in encoded(*files)[1]
    params = params.model_copy(deep=True)
    params.model.max_pixels *= 2
    assert ", 0 of them encoded before" in encoded(*files)[1]


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit")
def test_features_that_cannot_be_written_in_full_leave_the_old_ones(tmp_path):
    FeatureStore(features()).save(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    script = """if True:
        import torch
        from rarl.models.features import FeatureStore
        try:
            FeatureStore({"a": torch.ones(100_000)}).save(".")
        except OSError as error:
            print(error.errno, error.filename)
    """
    done = subprocess.run(
        ["prlimit", "--fsize=100000", sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{errno.EFBIG} {FILE}\n", done.stderr
    assert (tmp_path / FILE).read_bytes() == before and os.listdir(tmp_path) == [FILE]


def test_an_offloaded_tower_comes_back_for_an_image_that_is_not_there(project, params):
    loaded = load("data/models/base", params.model)
    model, store = loaded.model, FeatureStore()
    inputs = loaded.processor.image_processor(pictures(), return_tensors="pt")
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    store.attach(model)
    count, first = sum(p.numel() for p in model.parameters()), int(grid[0].prod())
    known = model.model.visual(pixels[:first], grid_thw=grid[:1]).pooler_output
    offload(model)
    assert sum(p.numel() for p in model.parameters()) < count
    assert (model.device, model.model.visual.dtype) == (loaded.device, torch.float32)
    again = model.model.visual(pixels[:first], grid_thw=grid[:1]).pooler_output
    assert torch.equal(known, again) and not hasattr(model.model.visual, "blocks")
    found = model.model.visual(pixels, grid_thw=grid).pooler_output
    assert sum(p.numel() for p in model.parameters()) == count
    plain = load("data/models/base", params.model).model.model.visual(pixels, grid_thw=grid)
    torch.testing.assert_close(found, plain.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_encoded_is_found_by_the_model(project, params, monkeypatch, dtype):
    """The library casts pixels to the tower's dtype; the stage `encode` does not."""
    monkeypatch.setattr(params.model, "dtype", dtype)
    loaded = load("data/models/base", params.model)
    store = FeatureStore()
    store.attach(loaded.model)
    inputs = loaded.processor.image_processor(pictures(), return_tensors="pt")
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    encoded = loaded.model.model.visual(pixels, grid_thw=grid).pooler_output
    found = loaded.model.model.get_image_features(pixels, grid).pooler_output
    assert torch.equal(torch.cat(found), encoded) and store.computed == len(grid)


def test_keys_tell_pictures_apart(project, params):
    images = load("data/models/base", params.model).processor.image_processor
    inputs = images(pictures(), return_tensors="pt")
    keys = patch_keys(inputs["pixel_values"], inputs["image_grid_thw"])
    assert len(set(keys)) == 4
    assert keys == patch_keys(inputs["pixel_values"], inputs["image_grid_thw"])
