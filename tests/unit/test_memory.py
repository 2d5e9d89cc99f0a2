"""The memory plan: counts of the real model, what the paper profile needs, and the formula against autograd."""

import copy

import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from stages.params import Params, load_params
from stages.profile import apply
from stages.records import write_json
from stages.training.memory import (
    estimate,
    kept_activations,
    parameter_counts,
    preflight,
    relief,
)

PIXELS = 401_408


def shape(**sizes) -> Qwen2VLConfig:
    """Qwen2-VL-2B-Instruct, or a smaller one."""
    text = dict(
        hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        intermediate_size=8960, vocab_size=151_936, tie_word_embeddings=True,
    )  # fmt: skip
    vision = dict(
        depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4, patch_size=14,
        spatial_merge_size=2,
    )  # fmt: skip
    if sizes:
        vision |= dict(depth=1, embed_dim=32, num_heads=2, hidden_size=sizes["hidden_size"])
    return Qwen2VLConfig(text_config=text | sizes, vision_config=vision, tie_word_embeddings=True)


@pytest.fixture
def paper(tmp_path, repository) -> Params:
    """The shipped parameters, switched to the paper profile."""
    path = tmp_path / "params.yaml"
    path.write_bytes((repository / "params.yaml").read_bytes())
    apply(path, "paper")
    return load_params(path)


def test_parameters_of_the_2b_model():
    count = parameter_counts(shape(), 8, ["q_proj", "k_proj", "v_proj", "o_proj"])
    # By hand: embedding, and per layer q and o, k and v with biases, three MLP matrices, two norms; a last norm.
    h, kv, inner = 1536, 256, 8960
    layer = 2 * h * h + h + 2 * (h * kv + kv) + 3 * h * inner + 2 * h
    assert count["language model"] == 151_936 * h + 28 * layer + h
    assert count["tower"] == pytest.approx(0.67e9, rel=0.01)
    assert count["language model"] + count["tower"] == pytest.approx(2.2e9, rel=0.01)
    assert count["adapter"] == 28 * 8 * (2 * (h + h) + 2 * (h + kv))


def test_the_paper_profile_fits_40_gb(paper):
    for method in ("sft", "grpo", "rarl"):
        plan = estimate(shape(), paper, PIXELS, method)
        assert 15 < plan.total < 40, f"{method}\n{plan.table()}"
    assert "512 image" in plan.rows and f"{paper.rl.max_completion_length} completion" in plan.rows


@pytest.mark.parametrize("have", [24, 16, 12])
def test_one_switch_brings_the_paper_profile_to_smaller_devices(paper, have):
    """What the README says of 24, 16 and 12 GB."""
    steps = relief(shape(), paper, PIXELS, "rarl", "cuda", have)
    assert [change for change, _ in steps] == ["train.gradient_checkpointing false -> true"]
    assert steps[-1][1] < have


def test_each_knob_saves_and_those_that_keep_the_mathematics_come_first(paper):
    paper.rl.micro_prompts = paper.rl.prompts_per_step
    before = paper.model_dump()
    steps = relief(shape(), paper, PIXELS, "rarl", "cuda", 0)
    assert [change.split()[0] for change, _ in steps] == [
        "rl.micro_prompts", "train.gradient_checkpointing", "model.max_pixels",
        "rl.max_completion_length", "rl.group_size",
    ]  # fmt: skip
    totals = [estimate(shape(), paper, PIXELS).total, *(total for _, total in steps)]
    assert totals == sorted(totals, reverse=True)
    assert paper.model_dump() == before, "planning must not change the parameters"


def test_full_weights_need_gradients_optimizer_and_a_reference_policy(paper):
    lora = estimate(shape(), paper, PIXELS)
    paper.train.trainable = "full"
    full = estimate(shape(), paper, PIXELS)
    # bfloat16: a gradient and two states of 2 bytes each.
    assert full.resident["gradients, optimizer"] == pytest.approx(1.5437 * 6, rel=1e-3)
    assert full.resident["reference policy"] == pytest.approx(2.209 * 2, rel=1e-3)
    assert lora.resident["adapter, gradients, optimizer"] < 0.05
    assert full.total > lora.total + 13
    paper.rl.beta = 0.0
    assert "reference policy" not in estimate(shape(), paper, PIXELS).resident


def test_more_processes_share_a_steps_rows(paper):
    one = estimate(shape(), paper, PIXELS)
    paper.accelerate.processes = 2
    two = estimate(shape(), paper, PIXELS)
    assert one.passes["sampling 32 completions"] == 2 * two.passes["sampling 16 completions"]


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_formula_keeps_what_autograd_keeps(paper, trainable):
    """Bytes that a forward pass saves for the backward pass, counted storage by storage on a small model."""
    from peft import LoraConfig, get_peft_model

    layers, rows, length = 3, 2, 96
    config = shape(
        hidden_size=128, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=704, vocab_size=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.model.visual.requires_grad_(False)
    if trainable == "lora":
        model = get_peft_model(
            model,
            LoraConfig(
                r=2,
                task_type="CAUSAL_LM",
                target_modules=paper.lora.target_modules,
                exclude_modules=r".*visual.*",
            ),
        )
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # held, or its place is used again
        return tensor

    ids = torch.ones(rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    backbone = getattr(model, "get_base_model", lambda: model)().model
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.sum()
    found = sum(size for size, _ in kept.values())
    paper.train.trainable = trainable
    expected = rows * length * layers * kept_activations(config, paper, length)
    assert expected == pytest.approx(found, rel=0.1)


def test_preflight_prints_the_plan_and_warns(paper, tmp_path, monkeypatch):
    import stages.training.memory as memory

    shape().save_pretrained(tmp_path / "base")
    write_json(
        tmp_path / "base.json",
        {"source": str(tmp_path / "base"), "revision": None, "sha256": "0"},
    )
    paper.model.device = "cpu"
    monkeypatch.setattr(memory, "available", lambda device: 1000.0)
    text = preflight(tmp_path, paper, "rarl")
    assert "estimate" in text and "policy pass" in text and "WARNING" not in text
    monkeypatch.setattr(memory, "available", lambda device: 14.0)
    text = preflight(tmp_path, paper, "rarl")
    assert "will not fit: turn train.gradient_checkpointing false -> true (" in text
    monkeypatch.setattr(memory, "available", lambda device: 1.0)
    assert "even then it will not" in preflight(tmp_path, paper, "rarl")


def test_preflight_leaves_a_base_that_is_not_there_to_loading(paper, tmp_path):
    write_json(
        tmp_path / "base.json",
        {"source": str(tmp_path / "nowhere"), "revision": None, "sha256": None},
    )
    assert preflight(tmp_path, copy.deepcopy(paper), "rarl") == ""
