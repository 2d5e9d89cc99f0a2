"""What a GPU decodes with: a static cache, and a step that can be recorded once and replayed.

A graph proper needs CUDA (`tests/gpu`). Here a step is recorded as PyTorch's operations and replayed without its
Python, which shows the same faults: a number that changes from token to token but lies in Python, a new tensor in the
place of an old one, a wait for the device.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from rarl.models.shared_prefix import attention, cuda_graph, decode, fused_decoder
from rarl.models.shared_prefix.kv_cache import KVCache
from rarl.models.shared_prefix.layers import patch_layers
from rarl.models.shared_prefix.layout import PackedLayout, Prefix


class Recorded(cuda_graph.GraphedDecoder):
    """Records on a CPU, after as many steps as on a GPU."""

    replayed = 0

    def __call__(self, *args):
        if self.steps == cuda_graph.WARMUP:
            copies = [one.clone() for one in self.buffers()]  # recording here runs the step, too
            self.operations = make_fx(self.with_buffers)(*copies)
            self.graph = self
        return super().__call__(*args)

    def buffers(self):
        state = self.state
        return [self.tokens, self.positions, state.unseen, state.now, *state.rows.values()]

    def with_buffers(self, tokens, positions, unseen, now, *own):
        state = self.state
        before = self.tokens, self.positions, state.unseen, state.now, state.rows
        self.tokens, self.positions, state.unseen, state.now = tokens, positions, unseen, now
        state.rows = dict(zip(state.rows, own))
        try:
            return self._run()
        finally:
            self.tokens, self.positions, state.unseen, state.now, state.rows = before

    def replay(self):
        self.output = self.operations(*self.buffers())
        Recorded.replayed += 1


@pytest.fixture
def model():
    config = Qwen2VLConfig(
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        text_config={
            "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        image_token_id=290, video_token_id=291, vision_start_token_id=292, vision_end_token_id=293,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(5)  # no two tokens as likely as each other
    assert patch_layers(model) is None
    return model


def rows(counts):
    """Prompts of different lengths with so many rows each, whose own parts have different lengths."""
    prompts, rests = [], []
    for number, count in enumerate(counts):
        ids = torch.randint(20, 280, (6 + 5 * number,))
        prompts.append(Prefix(ids, None, None, list(range(len(rests), len(rests) + count))))
        rests += [torch.randint(20, 280, (1 + n,)) for n in range(count)]
    return prompts, rests


def sampled(model, prompts, rests, tokens=24):
    config = GenerationConfig(max_new_tokens=tokens, eos_token_id=[1, 5, 7, 11, 13, 17], do_sample=True, top_k=0)
    torch.manual_seed(1)
    return decode.decode(model, prompts, rests, config)


@pytest.mark.parametrize("counts", [(4, 4), (1,), (3, 1, 2)])
@pytest.mark.parametrize("kind", [cuda_graph.GraphedDecoder, Recorded])
def test_a_static_cache_says_what_a_growing_one_says(model, monkeypatch, counts, kind):
    prompts, rests = rows(counts)
    expected = sampled(model, prompts, rests)
    lengths = sorted(map(len, expected))
    assert lengths[-1] > 2 * cuda_graph.WARMUP
    assert len(counts) == 1 or lengths[0] < lengths[-1], "some end before others"
    monkeypatch.setattr(decode, "uses_cuda_graph", lambda *args: True)
    monkeypatch.setattr(cuda_graph, "GraphedDecoder", kind)
    monkeypatch.setattr("rarl.models.shared_prefix.fused_decoder.merges_adapters", lambda weight: False)
    Recorded.replayed = 0
    assert sampled(model, prompts, rests) == expected
    steps = lengths[-1] - 1
    assert Recorded.replayed == (steps - cuda_graph.WARMUP if kind is Recorded else 0)


@pytest.mark.parametrize("kind", [KVCache, cuda_graph.StaticKVCache])
def test_large_scores_keep_their_differences_in_bfloat16(kind):
    """Keys and queries of Qwen2 have biases that make scores of hundreds; what counts are differences of units."""
    torch.manual_seed(0)
    module = SimpleNamespace(layer_idx=0, scaling=32**-0.5)
    prefill = PackedLayout([20], [[1, 1, 1]], torch.device("cpu"), keep=True)
    bias = torch.full((32,), 8.0)

    def some(tokens, heads):
        return torch.randn(tokens, heads, 32).bfloat16()

    query, key, value = some(23, 4) + bias.bfloat16(), some(23, 2) + bias.bfloat16(), some(23, 2)
    attention.packed_attention(prefill, module, query, key, value)
    state = kind(prefill, 4)
    query, new, more = some(3, 4) + bias.bfloat16(), some(3, 2) + bias.bfloat16(), some(3, 2)
    if kind is cuda_graph.StaticKVCache:
        state.unseen.index_fill_(-1, state.now + state.far, False)
    ours = attention.cached_attention(state, module, query, new, more)
    for row in range(3):
        keys = torch.cat([key[:20], key[20 + row : 21 + row], new[row : row + 1]]).float()
        values = torch.cat([value[:20], value[20 + row : 21 + row], more[row : row + 1]]).float()
        scores = torch.einsum("hd,thd->ht", query[row].float(), keys.repeat_interleave(2, 1))
        assert scores.abs().max() * module.scaling > 300
        exact = (scores * module.scaling).softmax(-1)
        exact = torch.einsum("ht,thd->hd", exact, values.repeat_interleave(2, 1))
        assert float((ours[row].float() - exact).norm() / exact.norm()) < 0.01


def test_a_step_waits_for_nothing_and_stays_on_its_device(model, monkeypatch):
    """On the device that has no values, an operation that asks for one fails, as does one with another device."""
    prompts, rests = rows((2, 2))
    kept = []

    class Kept(cuda_graph.GraphedDecoder):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(decode, "uses_cuda_graph", lambda *args: True)
    monkeypatch.setattr(cuda_graph, "GraphedDecoder", Kept)
    sampled(model, prompts, rests, tokens=3)
    (step,) = kept
    state = step.state
    step.tokens, step.positions = step.tokens.to("meta"), step.positions.to("meta")
    state.unseen, state.now = state.unseen.to("meta"), state.now.to("meta")
    state.rows = {layer: one.to("meta") for layer, one in state.rows.items()}
    state.prefixes = {layer: one.to("meta") for layer, one in state.prefixes.items()}
    step.step = fused_decoder.FusedDecoder(model.to("meta"))
    for module in ("fused_decoder", "attention"):  # autocast knows no such device
        monkeypatch.setattr(f"rarl.models.shared_prefix.{module}.without_autocast", contextlib.nullcontext)
    assert step._run().shape == (4, 64)


def test_float32_weights_decode_under_autocast(model):
    """As in training all weights in bfloat16: they stay float32, and the library's layers decode."""
    prompts, rests = rows((3, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused_decoder.FusedDecoder.fits(model)
        assert [len(one) > 1 for one in sampled(model, prompts, rests)] == [True] * 4


def test_a_cpu_records_nothing(model):
    assert not decode.uses_cuda_graph(model, 256)
