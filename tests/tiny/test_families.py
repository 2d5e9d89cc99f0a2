"""Each supported family, as a tiny random model, through the real stages' functions."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from one_step import first_batch, move_adapter
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from test_differential import Fast, Plain, train
from tiny_bases import CONFIGS, make_base
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from rarl import encoding
from rarl.errors import UserError
from rarl.inference.asking import ask_once
from rarl.inference.predictions import infer
from rarl.models import features
from rarl.models.base_files import base_pointer
from rarl.models.families import FAMILIES, image_tokens
from rarl.models.features import FeatureStore, offload, tower
from rarl.models.generation import Request, ask, vision_tokens
from rarl.models.loading import load
from rarl.models.patching import vision_modules, without_peft
from rarl.models.processor import chat
from rarl.params import Base, Rewards
from rarl.processes import forks
from rarl.records import Prediction, Sample, predictions_file, read_json, read_records, write_json, write_records
from rarl.sharing.model_folder import merge
from rarl.training import rl, run
from rarl.training.sft import train_sft

IMAGES = 26
SIZES = ((112, 112), (112, 56), (84, 112))
QUESTIONS = ("Is there a bright spot?", "Where in this image is the bright spot, if there is one at all?")


@pytest.fixture(scope="module", params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def base(family, random_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp(family)
    make_base(family, folder, random_base[2].tokenizer)
    return folder


@pytest.fixture(scope="module")
def settings(params):
    """Two steps of SFT and GRPO, one of RARL."""
    params = copy.deepcopy(params)
    params.sft.epochs, params.rl.max_steps, params.rl.learning_rate = 0.5, 2, 1e-2
    params.rl.max_completion_length = params.decoding.max_new_tokens = 6
    params.rl.warmup_ratio, params.train.dev_samples, params.modes = 0.0, 2, ["direct", "reasoning"]
    params.grpo.rewards = Rewards(format=1, length=50)  # rewards that differ, from a random model
    params.rarl.rewards = Rewards(format=1, length=50, accuracy=1, reasoning=1)
    params.models = ["base", "sft", "grpo", "rarl"]
    return params


@pytest.fixture(scope="module")
def place(base, first_project, params, tmp_path_factory):
    """A project on this base, with questions of two lengths and images of three shapes."""
    folder = shutil.copytree(first_project, tmp_path_factory.mktemp("project"), dirs_exist_ok=True)
    number = 0
    for file in sorted(folder.glob("data/curated/*.jsonl")):
        rows = read_records(file, Sample)
        for index, row in enumerate(rows):
            path, number = folder / params.data.root / row.image, number + 1
            Image.open(path).resize(SIZES[number % len(SIZES)]).save(path)
            rows[index] = row.model_copy(update={"question": QUESTIONS[index % len(QUESTIONS)]})
        write_records(file, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_json("data/models/base/base.json", base_pointer(Base(source=str(base))))
        yield folder


def count_runs(patch, kind) -> list[int]:
    """Let the class of a tower count its forward passes."""
    runs, forward = [0], kind.forward

    def counted(self, *args, **kwargs):
        runs[0] += 1
        return forward(self, *args, **kwargs)

    patch.setattr(kind, "forward", counted)
    return runs


def encode(name, splits, params):
    files = [Path(f"data/curated/{split}.jsonl") for split in splits]
    encoding.encode(files, Path("data/features") / name, params)


@pytest.fixture(scope="module")
def ran(place, settings):
    """The whole pipeline: how often the tower ran until each stage's end, and metrics of each training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forks, "cores", lambda threads: 1)  # all in this process, which counts
        runs, counts, metrics = count_runs(patch, type(tower(load("data/models/base", settings.model).model))), {}, {}
        encode("training", ("train", "dev"), settings)
        encode("benchmarks", ("test",), settings)
        counts["encode"] = runs[0]
        metrics["sft"] = train_sft(settings)
        for name, steps in (("grpo", 2), ("rarl", 1)):
            params = copy.deepcopy(settings)
            params.rl.max_steps = steps
            metrics[name] = rl.train_rl(name, params)
        counts["train"] = runs[0]
        for model in settings.models:
            infer(model, settings)
        counts["infer"] = runs[0]
    return counts, metrics


def test_the_tower_runs_once_per_distinct_image(ran):
    assert ran[0] == dict.fromkeys(("encode", "train", "infer"), IMAGES)
    assert len(FeatureStore.load("data/features/training").features) == 20


def test_adapters_are_on_the_language_model_only_and_have_moved(ran, family):
    names = FAMILIES[family].vision
    for model in ("sft", "grpo", "rarl"):
        weights = load_file(f"data/models/{model}/adapter_model.safetensors")
        assert ran[1][model]["trainable_parameters"] == sum(value.numel() for value in weights.values())
        assert all(f".{FAMILIES[family].language}.layers." in name for name in weights)
        assert not any(f".{part}." in name for part in names for name in weights)
        assert all(value.any() for name, value in weights.items() if "lora_B" in name)


def test_a_trained_model_is_asked_one_question(ran, settings):
    Image.new("RGB", (100, 60), (40, 90, 200)).save("asked.png")
    about, answer = ask_once("rarl", Path("asked.png"), QUESTIONS[0], "direct", (), settings)
    assert answer.error is None and answer.tokens and "Base: " in about


def test_a_question_with_a_placeholder_token_is_not_asked(ran, settings, family):
    loaded = load("data/models/base", settings.model)
    (image, *_) = (Path(settings.data.root) / row.image for row in read_records("data/curated/test.jsonl", Sample))
    tokens = vision_tokens(loaded.processor)
    assert loaded.model.config.image_token_id in tokens
    for text in loaded.processor.tokenizer.convert_ids_to_tokens(tokens):
        (response,) = ask(loaded, [Request("one", f"Is it {text}?", image)], 2)
        assert "stands for an image" in response.error


@pytest.fixture
def full(settings):
    params = copy.deepcopy(settings)
    params.train.trainable, params.sft.warmup_ratio = "full", 0.0
    params.sft.epochs, params.sft.learning_rate_full = 0.25, 1e-2
    params.train.dev_samples = 0
    return params


def test_full_training_moves_neither_tower_nor_projector(ran, full, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(Path.cwd(), tmp_path, dirs_exist_ok=True))
    train_sft(full)
    before, after = (load(f"data/models/{name}", full.model).model for name in ("base", "sft"))
    frozen = {id(p) for module in vision_modules(before) for p in module.parameters()}
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and moved == {name for name in old if id(old[name]) not in frozen}
    assert not any(p.requires_grad for module in vision_modules(before) for p in module.parameters())


def test_training_in_bfloat16_finds_what_was_encoded(ran, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(Path.cwd(), tmp_path, dirs_exist_ok=True))
    params = copy.deepcopy(settings)
    params.model.dtype, params.rl.max_steps = "bfloat16", 1
    encode("training", ("train", "dev"), params)
    monkeypatch.setattr(features, "_bring_back", lambda *args: pytest.fail("the tower ran"))
    assert rl.train_rl("grpo", params)["steps"] == 1


@pytest.fixture
def step(ran, settings):
    params = copy.deepcopy(settings)
    params.rl.prompts_per_step, params.rl.micro_prompts, params.rl.group_size = 2, 2, 3
    params.train.dev_samples, params.rl.learning_rate, params.rl.warmup_ratio = 0, 1.0, 0.0
    return params


FIELDS = (
    "pixel_values", "image_grid_thw", "pixel_attention_mask", "num_images", "mm_token_type_ids", "token_type_ids"
)  # fmt: skip


def test_log_probabilities_and_gradients_are_those_of_the_stock_model(step):
    """Ours: features that were looked up, and shared prompts where the family has them."""
    trainer = rl.prepare("grpo", step)[1]
    batch = first_batch(trainer)
    model = trainer.model
    for name in {"token_type_ids", "mm_token_type_ids"} & batch.keys():
        shown = batch["prompt_ids"] == model.config.image_token_id
        assert torch.equal(batch[name][:, : shown.shape[1]], shown.long()), "no second token that begins the sequence"
    move_adapter(model)
    stock = get_peft_model(load("data/models/base", step.model).model, copy.deepcopy(model.peft_config["default"]))
    mine = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theirs = {name: p for name, p in stock.named_parameters() if p.requires_grad}
    assert mine.keys() == theirs.keys()
    with torch.no_grad():
        for name, parameter in mine.items():
            theirs[name].copy_(parameter)
    add_fused_lm_head(without_peft(stock), trainer.temperature)
    results = []
    for kind, network in ((type(trainer), model), (GRPOTrainer, stock)):
        network.train()
        log_probs = kind._get_per_token_logps_and_entropies(
            trainer,
            network,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            batch["completion_ids"].shape[1],
            **{name: batch[name] for name in FIELDS if name in batch},
        )[0]
        log_probs = log_probs * batch["completion_mask"]
        torch.manual_seed(4)
        (log_probs * torch.randn(log_probs.shape)).sum().backward()
        results.append(log_probs.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)
    largest = max(float(p.grad.abs().max()) for p in theirs.values())
    assert largest > 1e-3
    for name in mine:
        torch.testing.assert_close(mine[name].grad, theirs[name].grad, rtol=0, atol=1e-5 * max(1, largest))


def test_tokens_and_updates_are_those_of_stock_trl_without_a_store(step, monkeypatch):
    ours, update, _ = train(Fast, step, monkeypatch, {})
    monkeypatch.setattr(FeatureStore, "attach", lambda self, model: None)
    monkeypatch.setattr(run, "offload", lambda model: None)
    theirs, expected, _ = train(Plain, step, monkeypatch, {})
    assert ours == theirs
    size = float(expected.abs().max())
    assert size > 1e-4
    torch.testing.assert_close(update, expected, rtol=0, atol=1e-5 * size + 1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_encoded_is_found_in_a_batch(ran, settings, dtype):
    """Also in a batch that pads an image with tiles of zeros, in another order, and with a tower that is offloaded."""
    loaded = load("data/models/base", settings.model.model_copy(update={"dtype": dtype}))
    plain = load("data/models/base", settings.model.model_copy(update={"dtype": dtype}))
    rows = read_records("data/curated/test.jsonl", Sample)[:3]
    images = [Path(settings.data.root) / row.image for row in rows]
    store, keys = FeatureStore(), []
    store.attach(loaded.model)
    offload(loaded.model)
    for path in images:
        given = loaded.processor.image_processor([[Image.open(path).convert("RGB")]], return_tensors="pt")
        given = {name: given[name] for name in encoding.IMAGE_INPUTS if name in given}
        loaded.model.model.get_image_features(**given)
        keys += store.last
    assert list(store.features) == keys and store.computed == 3
    requests = [Request(row.id, row.question, path) for row, path in zip(rows, images)][::-1]
    assert ask(loaded, requests, 4) == ask(plain, requests, 4) and store.computed == 3


def test_features_of_another_projector_are_refused(ran, settings):
    loaded = load("data/models/base", settings.model)
    assert FeatureStore.load("data/features/training", loaded).features
    with torch.no_grad():
        [*vision_modules(loaded.model)[-1].parameters()][-1].add_(1)
    with pytest.raises(UserError, match="another vision tower: weights"):
        FeatureStore.load("data/features/training", loaded)


def test_a_missing_weight_is_an_error(base, settings, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    write_json(tmp_path / "base.json", {"source": str(folder), "revision": None, "sha256": None})
    weights = load_file(base / "model.safetensors")
    vision = FAMILIES[read_json(base / "config.json")["model_type"]].vision
    language = next(name for name in weights if not any(f"{part}." in name for part in vision))
    for name in (language, *(next(name for name in weights if f"{part}." in name) for part in vision)):
        left = {other: value for other, value in weights.items() if other != name}
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"[12] weights missing or of another shape"):
            load(tmp_path, settings.model)


def test_a_tokenizer_without_the_image_token_is_refused(base, random_base, settings, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    write_json(tmp_path / "base.json", {"source": str(folder), "revision": None, "sha256": None})
    path = folder / "config.json"
    config = read_json(path)
    key = next(key for key in ("image_token_id", "image_token_index") if key in config)
    write_json(path, config | {key: 5})
    with pytest.raises(UserError, match="a tokenizer without the image token 5"):
        base_pointer(Base(source=str(folder)))
    with pytest.raises(UserError, match="a tokenizer without the image token 5"):
        load(tmp_path, settings.model)


def test_the_largest_image_has_as_many_tokens_as_the_check_counts(ran, base, settings):
    loaded = load("data/models/base", settings.model)
    image = Image.new("RGB", (112, 112), (9, 9, 9))
    inputs = loaded.processor(text=[chat(loaded.processor, "")], images=[[image]], return_tensors="pt")
    count = int((inputs["input_ids"] == loaded.model.config.image_token_id).sum())
    most = image_tokens(read_json(base / "config.json"), settings.model.max_pixels)
    assert most - 4 <= count <= most  # Qwen3-VL: 3 x 3 squares of 32 pixels


def test_every_question_has_a_prediction(ran, settings):
    for model in settings.models:
        for mode in settings.modes:
            predictions = read_records(predictions_file(model, mode, "silvar_med"), Prediction)
            assert len(predictions) == 6 and all(one.error is None and one.tokens for one in predictions)


def test_merged_weights_answer_as_the_adapter_does(ran, settings, tmp_path):
    merge(Path("data/models/rarl"), tmp_path / "merged", settings, [])
    Image.new("RGB", (100, 60), (40, 90, 200)).save("asked.png")
    answers = [
        ask_once(name, Path("asked.png"), QUESTIONS[0], "direct", (), settings)[1]
        for name in ("rarl", str(tmp_path / "merged"))
    ]
    assert answers[0] == answers[1]
