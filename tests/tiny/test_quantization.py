"""NF4 and 8-bit AdamW on a CPU: what is quantized, that all of an adapter learns, and that nothing else moves."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_bases import make_base

from rarl.models.base_files import base_pointer
from rarl.models.families import FAMILIES
from rarl.models.features import FeatureStore, describe
from rarl.models.loading import load
from rarl.models.quantization import BYTES_PER_WEIGHT
from rarl.params import Base
from rarl.records import read_json, write_json

bitsandbytes = pytest.importorskip("bitsandbytes")
Linear4bit = bitsandbytes.nn.Linear4bit


@pytest.fixture(autouse=True)
def repacking(monkeypatch):
    """As on a processor with AVX512-BF16, where bitsandbytes repacks weights in evaluation."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


@pytest.fixture
def nf4(params):
    params = copy.deepcopy(params)
    params.model.quantization = "nf4"
    params.grpo.rewards.length = 50.0  # rewards that differ, from a random model
    return params


def quantized(network) -> dict[str, Linear4bit]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Linear4bit)}


def unpacked(layer: Linear4bit) -> torch.Tensor:
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_language_models_linear_layers_are_quantized_and_nothing_else(project, params, nf4, dtype):
    nf4.model.dtype = dtype
    plain = load("data/models/base", params.model.model_copy(update={"dtype": dtype}))
    small = load("data/models/base", nf4.model)
    layers = quantized(small.model)
    language = dict(plain.model.model.language_model.named_modules())
    linear = {f"model.language_model.{name}" for name, one in language.items() if type(one) is torch.nn.Linear}
    assert layers.keys() == linear and len(linear) == 14
    exact, kept = plain.model.state_dict(), small.model.state_dict()
    assert all(torch.equal(exact[name], kept[name]) for name in exact if name.removesuffix(".weight") not in layers)
    assert describe(small) == describe(plain), "features of images do not depend on it"
    assert {layer.compute_dtype for layer in layers.values()} == {getattr(torch, dtype)}
    for name, layer in layers.items():
        weight = exact[f"{name}.weight"]
        assert 0 < (unpacked(layer) - weight).abs().max() < 0.2 * weight.abs().max()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_base_of_any_family_is_quantized_and_its_adapter_learns(tmp_path, random_base, nf4, model_type):
    make_base(model_type, tmp_path, random_base[2].tokenizer)
    write_json(tmp_path / "base.json", base_pointer(Base(source=str(tmp_path))))
    small, family = load(tmp_path, nf4.model), FAMILIES[model_type]
    names = {name for name, layer in small.model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert quantized(small.model).keys() == {name for name in names if name.startswith(f"model.{family.language}.")}
    lora = LoraConfig(target_modules=nf4.lora.target_modules, exclude_modules=family.lora_exclude)
    model = get_peft_model(small.model, lora)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        model(input_ids=ids)
    model.train()(input_ids=ids).logits.square().sum().backward()
    ups = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(ups) >= 8 and all(weight.grad.any() for weight in ups)


def test_bytes_of_a_quantized_weight(project, nf4):
    layer = quantized(load("data/models/base", nf4.model).model)["model.language_model.layers.0.mlp.gate_proj"]
    state = layer.weight.quant_state
    tables = (state.code, state.state2.code, state.offset)
    assert sum(table.nbytes for table in tables) == 1092
    held = layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    count = layer.in_features * layer.out_features
    assert held == pytest.approx(count * BYTES_PER_WEIGHT, abs=4)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_training_moves_all_of_the_adapter_and_nothing_else(encoded, nf4, method):
    """Development rows are scored after two of four steps, in evaluation mode."""
    from rarl.training import rl, sft

    run, trainer, loaded = sft.prepare(nf4) if method == "sft" else rl.prepare(method, nf4)
    before = {name: unpacked(layer) for name, layer in quantized(trainer.model).items()}
    metrics = run.train_to_end(trainer, loaded)
    assert metrics["steps"] == 4 and len(before) == 14
    after = quantized(trainer.model)
    assert all(torch.equal(before[name], unpacked(after[name])) for name in before)
    weights = load_file(f"data/models/{method}/adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert len(weights) == 16 and all(weight.any() for weight in weights.values())


def gradients(params, dequantized: bool) -> dict[str, torch.Tensor]:
    """SFT's gradients after an evaluation, on quantized weights or on a float32 base of the same values."""
    from rarl.training.sft import prepare

    small = {name: unpacked(layer) for name, layer in quantized(load("data/models/base", params.model).model).items()}
    params = copy.deepcopy(params)
    params.model.quantization = None if dequantized else "nf4"
    _, trainer, _ = prepare(params)
    model = trainer.model
    if dequantized:
        for name, weight in small.items():
            layer = model.get_base_model().get_submodule(name)
            getattr(layer, "base_layer", layer).weight.data = weight
    generator = torch.Generator().manual_seed(0)
    for weight in (weight for weight in model.parameters() if weight.requires_grad):
        weight.data = torch.randn(weight.shape, generator=generator) / 10
    batch = next(iter(trainer.get_train_dataloader()))
    model.eval()
    with torch.no_grad():
        model(**{name: value for name, value in batch.items() if name != "labels"})
    model.train()
    trainer.compute_loss(model, batch).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def test_gradients_are_those_of_a_float32_base_of_the_same_values(encoded, nf4):
    exact, ours = gradients(nf4, True), gradients(nf4, False)
    assert exact.keys() == ours.keys() and len(ours) == 16
    for name, gradient in exact.items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_rl_starts_from_the_sft_adapter_as_it_is(encoded, nf4):
    """TRL would round it to bfloat16, and leave the reference as it is."""
    from rarl.training import rl, sft

    sft.train_sft(nf4)
    nf4.train.start = "sft"
    _, trainer, _ = rl.prepare("grpo", nf4)
    weights = dict(trainer.model.named_parameters())
    for name, weight in load_file("data/models/sft/adapter_model.safetensors").items():
        assert torch.equal(weights[name.replace(".weight", ".default.weight")], weight)


def test_merging_goes_into_the_base_as_it_was_before(encoded, params, nf4):
    from rarl.sharing.model_folder import merge
    from rarl.training.sft import train_sft

    train_sft(nf4)
    merge("sft", Path("merged"), nf4)
    assert "quantization_config" not in read_json("merged/config.json")
    write_json("data/models/base/base.json", base_pointer(Base(source="merged")))
    merged = load("data/models/base", params.model).model.state_dict()
    expected = load("data/models/sft", params.model).model.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(expected[name], weight) for name, weight in merged.items())


def test_two_runs_of_inference_are_equal_and_none_is_taken_for_one_without(encoded, nf4, monkeypatch):
    """On two processes, which share the test sets."""
    from rarl.inference import predictions
    from rarl.processes import forks

    monkeypatch.setattr(forks, "cores", lambda threads: 2)
    FeatureStore().save("data/features/benchmarks")
    nf4.modes, nf4.decoding.temperature = ["reasoning", "direct"], 1.0

    def predicted():
        predictions.infer("base", nf4)
        return [path.read_bytes() for path in sorted(Path("data/predictions").rglob("*.jsonl"))]

    first = predicted()
    shutil.rmtree(".cache/predictions")
    assert predicted() == first and len(first) == 2
    nf4.model.quantization = None
    assert predicted() != first


def test_adamw_of_8_bits_computes_on_a_cpu_and_resumes_to_the_same_weights(encoded, params):
    from rarl.training import sft

    params = copy.deepcopy(params)
    params.train.optimizer, params.lora.r = "adamw_8bit", 32  # 4,096 values, from which its states have 8 bits
    run, trainer, loaded = sft.prepare(params)
    run.train_to_end(trainer, loaded)
    states = [state["state1"].dtype for state in trainer.optimizer.optimizer.state.values()]
    assert len(states) == 16 and torch.uint8 in states
    whole = load_file("data/models/sft/adapter_model.safetensors")
    shutil.rmtree(next(Path(".cache/training").glob("*/checkpoint-4")))
    sft.train_sft(params)
    resumed = load_file("data/models/sft/adapter_model.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
