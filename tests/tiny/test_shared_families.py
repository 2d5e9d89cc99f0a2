"""Shared prefixes for every family against the library's own forward passes of separate rows, in float32."""

import copy
import functools
import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_cuda_graph import Recorded
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from rarl.models.shared_prefix import cuda_graph, decode, fused_decoder, layers
from rarl.models.shared_prefix.layers import patch_layers
from rarl.models.shared_prefix.layout import group_by_prefix
from rarl.records import write_json
from rarl.training.grpo_trainer import IMAGE_INPUTS, whole_groups
from rarl.training.log_probs import packed_log_probs
from rarl.training.sft import CompletionsOnlyMixin

IMAGE = 290
ENDS = list(range(1, 280, 9))
TEXT = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
QWEN = {"image_token_id": IMAGE, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGLIP |= {"image_size": 56, "patch_size": 14}
WINDOW = 13
CONFIGS = {
    "qwen2_vl": ("Qwen2VL", {
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        "text_config": TEXT | MROPE,
    } | QWEN),
    "qwen2_5_vl": ("Qwen2_5_VL", {
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "fullatt_block_indexes": [1], "window_size": 56,
        },
        "text_config": TEXT | MROPE,
    } | QWEN),
    "qwen3_vl": ("Qwen3VL", {
        "vision_config": {
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "patch_size": 14, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2],
        },
        "text_config": TEXT | MROPE,
    } | QWEN),
    "gemma3": ("Gemma3", {
        "vision_config": SIGLIP | {"model_type": "siglip_vision_model", "vision_use_head": False},
        "text_config": TEXT | {
            "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 24,
        },
        "mm_tokens_per_image": 4, "image_token_index": IMAGE, "boi_token_index": 292, "eoi_token_index": 293,
    }),
    "idefics3": ("Idefics3", {
        "vision_config": SIGLIP, "image_token_id": IMAGE, "scale_factor": 2,
        "text_config": TEXT | {"model_type": "llama"},
    }),
    "smolvlm": ("SmolVLM", {
        "vision_config": SIGLIP, "image_token_id": IMAGE, "scale_factor": 2,
        "text_config": TEXT | {"model_type": "llama"},
    }),
}  # fmt: skip
#: The prompt of each row, and the length of its completion.
ROWS, LENGTHS = [0, 2, 1, 0, 1, 2, 0], [3, 1, 6, 9, 0, 4, 20]
families = pytest.mark.parametrize("family", CONFIGS)
#: Family -> what is compared -> the largest deviation from the library.
DEVIATIONS = defaultdict(dict)


@pytest.fixture(scope="module", autouse=True)
def deviations():
    """Write them to the file that RARL_DEVIATIONS names (`make deviations`)."""
    yield
    if file := os.environ.get("RARL_DEVIATIONS"):
        write_json(file, DEVIATIONS)


def note(family, what, deviation):
    DEVIATIONS[family][what] = max(float(f"{deviation:.1e}"), DEVIATIONS[family].get(what, 0))


@functools.cache
def base(family):
    name, config = CONFIGS[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**copy.deepcopy(config))
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval().requires_grad_(False)
    for weight in model.model.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)
    model.get_output_embeddings().weight.copy_(torch.randn(300, 64) * 0.2)  # no two tokens as likely as each other
    return model


def with_adapter(model):
    """One that is not zero."""
    torch.manual_seed(2)
    targets = r".*(language_model|text_model).*\.(q_proj|v_proj|o_proj|down_proj)"
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


def tuned(family):
    return with_adapter(copy.deepcopy(base(family)))


@functools.cache
def prompts(family):
    """Token ids of three prompts, and the inputs with each one's images: one, two, and one."""
    torch.manual_seed(1)
    qwen, ids, shown = family.startswith("qwen"), [], []
    for grids, words in zip([[(4, 6)], [(4, 4), (8, 4)], [(6, 6)]], (5, 9, 12)):
        tokens = [torch.randint(24, 280, (2,))]
        for height, width in grids:
            count = height * width // 4 if qwen else 4
            tokens += [torch.tensor([292]), torch.full((count,), IMAGE), torch.tensor([293])]
        ids.append(torch.cat([*tokens, torch.randint(24, 280, (words,))]))
        if qwen:
            pixels = torch.randn(sum(h * w for h, w in grids), 3 * 2 * 14 * 14)
            shown.append({"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, *grid] for grid in grids])})
        elif family == "gemma3":
            shown.append({"pixel_values": torch.randn(len(grids), 3, 56, 56)})
        else:
            real = (torch.arange(2) < len(grids))[None, :, None, None]
            mask = (real & (torch.arange(56) < 42)).expand(1, 2, 56, 56)
            pixels = torch.randn(1, 2, 3, 56, 56) * real[:, :, None]
            shown.append({"pixel_values": pixels, "pixel_attention_mask": mask})
    return ids, shown


def inputs(family, groups, completions):
    """The library's inputs for rows, padded on the left."""
    ids, shown = prompts(family)
    rows = [torch.cat([ids[group], completion]) for group, completion in zip(groups, completions)]
    longest = max(map(len, rows))
    real = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows])
    padded = torch.full(real.shape, 2).masked_scatter(real, torch.cat(rows))
    kinds = {"gemma3": "token_type_ids"}.get(family, "mm_token_type_ids")
    kinds = {kinds: (padded == IMAGE).int()} if family in layers.MODELS[:4] else {}
    images = {name: torch.cat([shown[group][name] for group in groups]) for name in shown[0]}
    return {"input_ids": padded, "attention_mask": real.long(), **kinds, **images}


def grouped(family):
    """Prefixes and suffixes of `ROWS`."""
    ids, shown = prompts(family)
    images = {name: torch.cat([shown[group][name] for group in ROWS]) for name in shown[0]}
    pixels, grid, mask = map(images.get, ("pixel_values", "image_grid_thw", "pixel_attention_mask"))
    prefixes, suffixes = group_by_prefix(
        [ids[row] for row in ROWS], pixels, grid, [1 + row % 2 for row in ROWS], pixel_mask=mask
    )
    assert [prefix.rows for prefix in prefixes] == [[0, 3, 6], [1, 5], [2, 4]]
    return prefixes, suffixes


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_near(got, expected, family, what):
    """Within 1e-5, relative to the largest gradient."""
    assert got.keys() == expected.keys() and got
    largest = max(float(one.abs().max()) for one in expected.values())
    apart = max(float((got[name] - one).abs().max()) for name, one in expected.items())
    note(family, f"{what}, of the largest", apart / largest)
    assert apart < 1e-5 * largest


def compare_log_probs(model, family, ways):
    torch.manual_seed(4)
    completions = [torch.randint(24, 280, (length,)) for length in LENGTHS]
    weights = [torch.randn(length) for length in LENGTHS]
    expected = []
    for group, completion in zip(ROWS, completions):
        logits = model(**inputs(family, [group], [completion])).logits[0]
        logits = logits[len(logits) - len(completion) - 1 : -1].log_softmax(-1)
        expected.append(logits.gather(1, completion[:, None])[:, 0])
    stock = gradients(model, sum((one * weight).sum() for one, weight in zip(expected, weights)))

    network = model.get_base_model()
    name = f"{family}, NF4" if getattr(network, "is_loaded_in_4bit", False) else family
    add_fused_lm_head(network, outputs=("log_probs", "entropy"))
    assert patch_layers(network) is None
    prefixes, suffixes = grouped(family)
    order = [row for prefix in prefixes for row in prefix.rows]
    expected, weights = (torch.cat([values[row] for row in order]).detach() for values in (expected, weights))
    for way in ways:
        if way == "checkpointing":
            network.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        got, _ = packed_log_probs(model, network, prefixes, suffixes, completions, 1.0, way == "fused head")
        note(name, "log-probabilities", (got - expected).detach().abs().max())
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        assert_near(gradients(model, (got * weights).sum()), stock, name, "LoRA gradients")


@families
def test_log_probabilities_and_gradients(family):
    compare_log_probs(tuned(family), family, ["frozen head", "fused head", "checkpointing"])


@families
def test_passes_hold_whole_groups(family):
    """Two rows a pass, put together from passes with rows of different prompts."""
    empty, passes = torch.zeros(0, dtype=torch.long), []
    for groups in ([0, 2], [1, 0], [2, 1]):
        padded = inputs(family, [*groups, 1], [empty] * 3)  # prompt 1 is the longest
        rows = {"prompt_ids": padded["input_ids"][:2], "prompt_mask": padded["attention_mask"][:2]}
        images = inputs(family, groups, [empty] * 2)
        images = {name: images[name] for name in IMAGE_INPUTS if name in images}
        passes.append({**rows, **images, "num_images": [1 + group % 2 for group in groups]})
    for group, rows in zip([0, 2, 1], whole_groups(passes), strict=True):
        expected = inputs(family, [group] * 2, [empty] * 2)
        got = [ids[real.bool()] for ids, real in zip(rows["prompt_ids"], rows["prompt_mask"])]
        assert torch.equal(torch.stack(got), expected["input_ids"])
        assert rows["num_images"] == [1 + group % 2] * 2
        assert all(torch.equal(rows[name], expected[name]) for name in IMAGE_INPUTS if name in expected)


class PlainSft:
    """The part of TRL's `SFTTrainer.compute_loss` that matters here."""

    accelerator = SimpleNamespace(unwrap_model=lambda model: model)

    def compute_loss(self, model, inputs):
        return model(**inputs, fused_lm_head=True, use_cache=False).log_probs.sum()


class Sft(CompletionsOnlyMixin, PlainSft):
    pass


@families
def test_sft(family):
    torch.manual_seed(4)
    completions = [torch.randint(24, 280, (1 + length,)) for length in LENGTHS]
    model = tuned(family)
    network = model.get_base_model()
    add_fused_lm_head(network, outputs=("log_probs", "entropy", "is_top1"))
    groups = [0, 2, 2, 0]
    batch = inputs(family, groups, completions)
    labels = batch["input_ids"].clone()
    for row, completion in enumerate(completions[: len(groups)]):
        labels[row, : -len(completion)] = -100
    expected = PlainSft().compute_loss(model, batch | {"labels": labels})
    stock = gradients(model, expected)
    called = []
    network.register_forward_pre_hook(lambda *args: called.append(1))
    loss = Sft().compute_loss(model, batch | {"labels": labels})
    assert not called, "packed"
    note(family, "SFT's loss, relative", abs(float(loss.detach() / expected.detach()) - 1))
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-5)
    assert_near(gradients(model, loss), stock, family, "SFT's gradients")


def compare_tokens(network, family, ways, monkeypatch):
    batch = inputs(family, ROWS, [torch.zeros(0, dtype=torch.long)] * len(ROWS))
    settings = {"max_new_tokens": 24, "eos_token_id": ENDS, "pad_token_id": 2, "suppress_tokens": [IMAGE]}
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 2.0, "top_p": 0.95, "top_k": 0}):
        config = GenerationConfig(**settings, **sampling)
        network.model.rope_deltas = None
        torch.manual_seed(5)
        expected = network.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :].tolist()
        expected = [row[: next((n + 1 for n, token in enumerate(row) if token in ENDS), None)] for row in expected]
        assert patch_layers(network) is None
        for way in ways:
            with monkeypatch.context() as patch:
                patch.setattr(fused_decoder, "merges_adapters", lambda weight, way=way: way == "merged")
                patch.setattr(decode, "uses_cuda_graph", lambda *args, way=way: way == "graph")
                patch.setattr(cuda_graph, "GraphedDecoder", Recorded)
                if way == "library":
                    patch.setattr(fused_decoder.FusedDecoder, "fits", lambda model: False)
                torch.manual_seed(5)
                assert decode.decode(network, *grouped(family), config) == expected, way
    assert len(set(map(len, expected))) > 2, "some ended before others"


@families
def test_decoding(family, monkeypatch):
    """The same tokens as the library's, greedy and sampled, with each way to run a step."""
    network = tuned(family).get_base_model()
    ways = ["merged", "library", "apart", "graph"]
    compare_tokens(network, family, ways if family in ("qwen3_vl", "gemma3") else ways[:2], monkeypatch)


def test_quantized_layers(monkeypatch):
    """Layers in NF4 run as they are: the passes are packed, and the library's layers decode."""
    linear4bit = pytest.importorskip("bitsandbytes").nn.Linear4bit
    model = copy.deepcopy(base("qwen3_vl"))
    for name, old in list(model.get_decoder().named_modules()):
        if type(old) is torch.nn.Linear:
            new = linear4bit(old.in_features, old.out_features, False, torch.float32, quant_type="nf4")
            new.load_state_dict(old.state_dict())
            model.get_decoder().set_submodule(name, new.to("cpu"))
            new.support_avx512bf16_for_cpu = False  # as a model that is to be trained after an evaluation
    model.is_loaded_in_4bit = True
    model = with_adapter(model.requires_grad_(False))
    network = model.get_base_model()
    assert not fused_decoder.FusedDecoder.fits(network)
    compare_log_probs(model, "qwen3_vl", ["frozen head"])
    compare_tokens(network, "qwen3_vl", ["merged"], monkeypatch)


@pytest.mark.parametrize(
    "setting, value, reason",
    [
        ("final_logit_softcapping", 30.0, "the model caps its logits"),
        ("attn_logit_softcapping", 50.0, "the model caps its logits"),
        ("attention_dropout", 0.1, "the model has dropout in its attention"),
        ("layer_types", ["full_attention", "chunked_attention"], "attention of other kinds than full and sliding"),
    ],
)
def test_an_unsupported_model_is_not_patched(setting, value, reason):
    model = copy.deepcopy(base("gemma3"))
    setattr(model.config.get_text_config(), setting, value)
    assert reason in patch_layers(model)
    assert not any("forward" in vars(module) for module in model.modules())
