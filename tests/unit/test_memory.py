"""The memory plan: counts of the real models, what the paper profile needs, and the formula against autograd."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForImageTextToText, Qwen2VLConfig

from rarl.cli.memory import main
from rarl.errors import UserError
from rarl.models.patching import vision_modules, without_peft
from rarl.models.shared_prefix.layers import patch_layers
from rarl.models.shared_prefix.layout import Prefix
from rarl.params import Judge, Params, load_params
from rarl.planning.memory import (
    Layout,
    configuration,
    count_parameters,
    estimate,
    kept_activations,
    log_plan,
    recomputes,
    relief,
)
from rarl.profiles import apply
from rarl.records import write_json
from rarl.rehearsal.bases import config_json, parse, published, slugs
from rarl.training.log_probs import packed_log_probs

LORA = (8, ["q_proj", "k_proj", "v_proj", "o_proj"])


def qwen2_vl_2b() -> Qwen2VLConfig:
    return configuration("Qwen/Qwen2-VL-2B-Instruct", None)


#: A small model of the same kind; counted below.
SMALL = dict(
    hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=704,
    vocab_size=64, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
)  # fmt: skip


def small(**other) -> Qwen2VLConfig:
    vision = dict(depth=1, embed_dim=32, num_heads=2, hidden_size=128)
    return Qwen2VLConfig(text_config=SMALL | other, vision_config=vision, tie_word_embeddings=True)


@pytest.fixture
def paper(tmp_path, repository) -> Params:
    """The shipped parameters, switched to the paper profile."""
    path = tmp_path / "params.yaml"
    path.write_bytes((repository / "params.yaml").read_bytes())
    apply(path, "paper")
    return load_params(path)


def test_parameters_of_the_2b_model():
    count = count_parameters(qwen2_vl_2b(), *LORA)
    # By hand: embedding, and per layer q and o, k and v with biases, three MLP matrices, two norms; a last norm.
    h, kv, inner = 1536, 256, 8960
    layer = 2 * h * h + h + 2 * (h * kv + kv) + 3 * h * inner + 2 * h
    assert count.language == 151_936 * h + 28 * layer + h
    assert count.linear == 28 * (2 * h * h + 2 * h * kv + 3 * h * inner) and count.largest == h * inner
    assert count.tower == pytest.approx(0.67e9, rel=0.01)
    assert count.language + count.tower == pytest.approx(2.2e9, rel=0.01)
    assert count.adapter == 28 * 8 * (2 * (h + h) + 2 * (h + kv))


@pytest.mark.parametrize("slug", slugs())
def test_kept_configurations_have_the_published_number_of_parameters(slug):
    count = count_parameters(parse(config_json(slug)), *LORA)
    assert count.language + count.tower == published(slug)["parameters"]
    assert count.shares and 0 < count.linear < count.language


def test_the_papers_base_has_its_published_configuration():
    file = Path(os.environ.get("RARL_DATA_ROOT", ""), "qwen2-vl-2b/config.json")
    if not file.is_file():
        pytest.skip("no qwen2-vl-2b below RARL_DATA_ROOT")
    assert json.loads(file.read_text()) == published("qwen2_vl_2b")["config"]


def test_a_base_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"one of gemma3_4b, .* or a folder with a config\.json"):
        config_json("qwen9")
    write_json(tmp_path / "config.json", {"model_type": "llava"})
    with pytest.raises(UserError, match="a model of type llava"):
        config_json(str(tmp_path))


@pytest.mark.parametrize(("slug", "gb"), [("qwen2_5_vl_7b", 16), ("qwen3_vl_8b", 16), ("qwen2_vl_2b", 8)])
def test_nf4_fits_bases_to_small_gpus_with_the_same_mathematics(paper, slug, gb):
    """What docs/gpu.md says of 16 and 8 GB."""
    config = parse(config_json(slug))
    whole = {method: estimate(config, paper, method).total for method in ("sft", "grpo", "rarl")}
    paper.model.quantization = "nf4"
    for method, before in whole.items():
        steps = relief(config, paper, method, "cuda", gb)
        assert steps[-1][1] < gb < before
        assert {change.split()[0] for change, _ in steps} <= {
            "sft.micro_batch_size",
            "train.gradient_checkpointing",
            "decoding.batch_size",
        }


def test_nf4_keeps_embeddings_and_tower_and_8_bit_states_save_6_bytes_a_weight(paper):
    config = qwen2_vl_2b()
    before, count = estimate(config, paper).resident, count_parameters(config, *LORA)
    paper.model.quantization = "nf4"
    after = estimate(config, paper).resident
    assert after["language model, nf4"] == pytest.approx(count.linear * 0.516 / 1e9, rel=1e-3)
    assert after["its embeddings, head and norms, bfloat16"] == pytest.approx(
        before["language model, bfloat16"] - count.linear * 2 / 1e9
    )
    on_cpu = estimate(config, paper, "grpo", "cpu")  # the file's pages stay, and the quantized weights are copies
    assert on_cpu.resident["its file, mapped"] == pytest.approx(count.language * 2 / 1e9)
    encode = estimate(config, paper, "encode", "cpu")  # embeddings are not read
    assert encode.resident["its file, mapped"] == pytest.approx(count.linear * 2 / 1e9)
    paper.model.quantization, paper.train.trainable = None, "full"
    states = {}
    for paper.train.optimizer in ("adamw", "adamw_8bit"):
        states[paper.train.optimizer] = estimate(config, paper).resident["gradients, optimizer"]
    saved = states["adamw"] - states["adamw_8bit"]
    assert saved == pytest.approx(count.language * 6 / 1e9, rel=0.01)


def test_encoding_and_inference_have_plans_too(paper):
    config = qwen2_vl_2b()
    encode, infer, grpo = (estimate(config, paper, stage, "cpu") for stage in ("encode", "infer", "grpo"))
    assert encode.total < 2.5 < 4 < infer.total < grpo.total  # GB: the tower; the model; its gradients
    assert estimate(config, paper, "encode").total > encode.total + 3  # a GPU gets the whole model


def test_the_paper_profile_fits_16_gb(paper):
    for method in ("sft", "grpo", "rarl"):
        plan = estimate(qwen2_vl_2b(), paper, method)
        assert 12 < plan.total < 16, f"{method}\n{plan.table()}"
    assert "512 image" in plan.rows and f"{paper.rl.max_completion_length} completion" in plan.rows


@pytest.mark.parametrize(("have", "changed"), [(24, []), (16, []), (12, ["auto -> true"])])
def test_one_change_fits_the_paper_profile_to_smaller_devices(paper, have, changed):
    """What docs/gpu.md says of 24, 16 and 12 GB."""
    steps = relief(qwen2_vl_2b(), paper, "rarl", "cuda", have)
    assert [change for change, _ in steps] == [f"train.gradient_checkpointing {t}" for t in changed]
    assert all(after < have for _, after in steps)


def test_a_prompt_is_counted_once_a_group(paper):
    """Each further completion adds its own tokens only; stock TRL's rows, which dropout falls back to, all."""
    paper.decoding.batch_size = 1

    def total(config, size):
        paper.rl.group_size = size
        return estimate(config, paper).passes["reference pass"]

    ours, stock = qwen2_vl_2b(), qwen2_vl_2b()
    stock.text_config.attention_dropout = 0.1
    tokens = 512 + 159  # of the prompt; compared without the head, which sees the same tokens
    more = (total(stock, 16) - total(stock, 8)) - (total(ours, 16) - total(ours, 8))
    assert more == pytest.approx(8 * tokens * 2 * (3 * 8960 + 4 * 1536) / 1e9, rel=1e-6)


def test_sampling_keeps_a_prompts_keys_once_unless_weights_are_resharded(paper, repository, tmp_path):
    key_values = 2 * 2 * 2 * 128 * 28  # bytes a token: keys and values, 2 heads of 128, bfloat16
    before = estimate(qwen2_vl_2b(), paper).passes["sampling 32 completions"]
    paper.rl.max_completion_length += 100
    after = estimate(qwen2_vl_2b(), paper).passes["sampling 32 completions"]
    assert after - before == pytest.approx(32 * 100 * key_values / 1e9)
    paper.accelerate.config = str(repository / "rarl/accelerate/fsdp.yaml")
    assert estimate(qwen2_vl_2b(), paper).passes["sampling 32 completions"] == after
    file = Path(paper.accelerate.config).read_text(encoding="utf-8")
    paper.accelerate.config = str(tmp_path / "fsdp.yaml")
    resharded = file.replace("reshard_after_forward: false", "reshard_after_forward: true")
    Path(paper.accelerate.config).write_text(resharded, encoding="utf-8")
    stock = estimate(qwen2_vl_2b(), paper).passes["sampling 32 completions"]
    assert stock - after > 28 * 671 * key_values / 1e9


def test_each_knob_saves_and_those_that_keep_the_mathematics_come_first(paper):
    paper.rl.micro_prompts = paper.rl.prompts_per_step
    before = paper.model_dump()
    steps = relief(qwen2_vl_2b(), paper, "rarl", "cuda", 0)
    assert [change.split()[0] for change, _ in steps] == [
        "rl.micro_prompts",
        "train.gradient_checkpointing",
        "decoding.batch_size",
        "model.max_pixels",
        "rl.max_completion_length",
        "rl.group_size",
    ]
    totals = [estimate(qwen2_vl_2b(), paper).total, *(total for _, total in steps)]
    assert totals == sorted(totals, reverse=True)
    assert paper.model_dump() == before, "planning must not change the parameters"


def test_full_weights_need_gradients_optimizer_and_a_reference_policy(paper):
    lora = estimate(qwen2_vl_2b(), paper)
    paper.train.trainable = "full"
    full = estimate(qwen2_vl_2b(), paper)
    # float32 (`Run.load`): weights, a gradient and two states of 4 bytes each.
    assert full.resident["language model, float32"] == pytest.approx(1.5437 * 4, rel=1e-3)
    assert full.resident["gradients, optimizer"] == pytest.approx(1.5437 * 12, rel=1e-3)
    assert full.resident["reference policy"] == pytest.approx(2.209 * 4, rel=1e-3)
    assert lora.resident["adapter, gradients, optimizer"] < 0.05
    assert full.total > lora.total + 30
    paper.rl.beta = 0.0
    assert "reference policy" not in estimate(qwen2_vl_2b(), paper).resident


def test_a_local_judge_of_the_reward_stays_in_memory(paper, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    before = {name: estimate(small(), paper, name).total for name in ("grpo", "rarl")}
    paper.judge["own"] = Judge(kind="local", model=str(tmp_path))
    paper.reward.reasoning, paper.reward.judge = "judge", "own"
    assert estimate(small(), paper, "rarl").total - before["rarl"] == pytest.approx(0.003)
    assert estimate(small(), paper, "grpo").total == before["grpo"]


def test_more_processes_share_a_steps_rows(paper):
    one = estimate(qwen2_vl_2b(), paper)
    paper.accelerate.processes = 2
    two = estimate(qwen2_vl_2b(), paper)
    assert one.passes["sampling 32 completions"] == 2 * two.passes["sampling 16 completions"]


def small_of(family: str, layers: int):
    """A small model of a family, whose widths all differ, without a vision tower to speak of."""
    text = {"hidden_size": 128, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"num_hidden_layers": layers, "vocab_size": 64, "tie_word_embeddings": True}
    siglip = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    siglip |= {"image_size": 28, "patch_size": 14}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 8, 8], "mrope_interleaved": True}
    rest = {
        "qwen3_vl": {"text_config": text | {"head_dim": 48, "rope_parameters": rope},
                     "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
                                       "out_hidden_size": 128, "deepstack_visual_indexes": [0]}},
        "gemma3": {"text_config": text | {"head_dim": 48, "layer_types": ["full_attention"] * layers},
                   "vision_config": siglip | {"vision_use_head": False}, "mm_tokens_per_image": 1},
        "smolvlm": {"text_config": text | {"model_type": "llama"}, "vision_config": siglip, "scale_factor": 2,
                    "pad_token_id": 0},
    }  # fmt: skip
    return parse({"model_type": family, **rest[family]})


def kept_by_autograd(paper, config, full: bool, half: bool, packed: bool, sizes) -> int:
    """Bytes that a forward pass saves for the backward pass, storage by storage."""
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    prompt, completion, size = sizes
    kind = torch.bfloat16 if half and not full else torch.float32  # as `Run.load` has it
    model = AutoModelForImageTextToText.from_config(config, dtype=kind)
    for module in vision_modules(model):
        module.requires_grad_(False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if not full:
        modules = dict(target_modules=paper.lora.target_modules, exclude_modules=r".*vis(ual|ion).*")
        model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **modules))
    network = without_peft(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:  # held, or its place is used again
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        patch_layers(network)
        if packed:
            one = Prefix(torch.ones(prompt, dtype=torch.long), None, None, list(range(size)))
            own = [torch.ones(count, dtype=torch.long) for count in (1, completion)]
            packed_log_probs(model, network, [one], *([part] * size for part in own), 1.0)
        else:
            ids = torch.ones(size, prompt + completion, dtype=torch.long)
            mask = torch.ones_like(ids)
            mask[0, :5] = 0
            hidden = network.model(input_ids=ids, attention_mask=mask, use_cache=False)
            hidden.last_hidden_state.sum()
    return sum(held for held, _ in kept.values())


@pytest.fixture
def fused_attention():
    """The plan is about real sizes, for which nothing is pinned."""
    was = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(True)
    yield
    torch.backends.cuda.enable_flash_sdp(was)


@pytest.mark.usefixtures("fused_attention")
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "rows"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_formula_keeps_what_autograd_keeps(paper, trainable, dtype, packed):
    """One more layer, counted on a small model."""
    prompt, completion, size = sizes = 60, 36, 4
    full, half = trainable == "full", dtype == "bfloat16"
    configs = [small(num_hidden_layers=layers) for layers in (2, 3)]
    less, more = (kept_by_autograd(paper, config, full, half, packed, sizes) for config in configs)
    paper.train.trainable, paper.model.dtype = trainable, dtype
    rows = Layout(*((1, size) if packed else (size, 1)), prompt, completion, packed)
    expected = kept_activations(small(), paper, rows)
    if full and half:  # autocast's copies of the weights, which the plan counts apart
        text = small().text_config
        width = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
        of_a_layer = text.hidden_size * (2 * text.hidden_size + 2 * width + 3 * text.intermediate_size)
        expected += 2 * of_a_layer
    assert expected == pytest.approx(more - less, rel=0.04)


@pytest.mark.usefixtures("fused_attention")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "smolvlm"])
def test_formula_keeps_what_autograd_keeps_of_other_families(paper, family, dtype):
    """One more layer of a group with a shared prompt, with LoRA."""
    prompt, completion, size = sizes = 60, 36, 4
    less, more = (
        kept_by_autograd(paper, small_of(family, layers), False, dtype == "bfloat16", True, sizes) for layers in (2, 3)
    )
    paper.model.dtype = dtype
    expected = kept_activations(small_of(family, 2), paper, Layout(1, size, prompt, completion, True))
    assert expected == pytest.approx(more - less, rel=0.04)


def test_log_plan_returns_the_plan_and_a_warning(paper, tmp_path, monkeypatch):
    import rarl.planning.memory as memory

    qwen2_vl_2b().save_pretrained(tmp_path / "base")
    write_json(tmp_path / "base.json", {"source": str(tmp_path / "base"), "revision": None, "sha256": "0"})
    paper.model.device = "cpu"
    monkeypatch.setattr(memory, "available", lambda device: 1000.0)
    text = log_plan(tmp_path, paper, "rarl")
    assert "estimate" in text and "policy pass" in text and "WARNING" not in text
    monkeypatch.setattr(memory, "available", lambda device: 14.0)
    paper.train.gradient_checkpointing = False
    text = log_plan(tmp_path, paper, "rarl")
    assert "will not fit: set train.gradient_checkpointing false -> true (" in text
    paper.train.gradient_checkpointing = "auto"
    text = log_plan(tmp_path, paper, "rarl")
    assert "WARNING" not in text and recomputes(tmp_path, paper, "rarl") is True
    monkeypatch.setattr(memory, "available", lambda device: 1000.0)
    assert recomputes(tmp_path, paper, "rarl") is False
    monkeypatch.setattr(memory, "available", lambda device: 1.0)
    assert "it still does not fit" in log_plan(tmp_path, paper, "rarl")


def test_log_plan_leaves_a_base_that_is_not_there_to_loading(paper, tmp_path):
    write_json(tmp_path / "base.json", {"source": str(tmp_path / "nowhere"), "revision": None, "sha256": None})
    assert log_plan(tmp_path, copy.deepcopy(paper), "rarl") == ""


def test_the_command_says_what_to_change(paper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where `paper` has put its params.yaml
    result = CliRunner().invoke(main, ["--gb", "40", "--gb", "12", "--gb", "2"])
    assert result.exit_code == 0, result.output
    forty, twelve, two = (line.split("|")[2:-1] for line in result.output.splitlines() if " GB |" in line)
    assert [float(cell) < 40 for cell in forty] == [True] * 3  # nothing but the figure
    assert all(float(cell.split(",")[0]) < 12 and "->" in cell for cell in twelve)
    assert all("(too much)" in cell for cell in two)
    assert result.output.count("total") == 3
