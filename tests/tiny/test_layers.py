"""The fused layers against the library's: values and gradients."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm, apply_rotary_pos_emb

from rarl.models import patching
from rarl.models.shared_prefix import layers
from rarl.training.log_probs import token_scores


def gradients(out, *inputs):
    torch.manual_seed(1)
    return torch.autograd.grad(out, inputs, torch.randn_like(out))


def equal(got, expected, **close):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm(dtype):
    torch.manual_seed(0)
    module = Qwen2VLRMSNorm(24)
    nn.init.normal_(module.weight)
    module.to(dtype)
    x = torch.randn(1, 7, 24, dtype=dtype, requires_grad=True)
    ours, library = layers.rms_norm(module, x), module(x)
    torch.testing.assert_close(ours, library)
    close = {} if dtype == torch.float32 else {"atol": 0.06, "rtol": 0.03}  # the library rounds on the way
    equal(gradients(ours, x, module.weight), gradients(library, x, module.weight), **close)
    with torch.no_grad():
        torch.testing.assert_close(layers.rms_norm(module, x), library)


def test_rotary():
    torch.manual_seed(0)
    query = torch.randn(9, 3, 16, requires_grad=True)
    cos, sin = torch.randn(2, 9, 16)
    batched = query.transpose(0, 1)[None]
    library = apply_rotary_pos_emb(batched, batched, cos[None], sin[None])[0][0].transpose(0, 1)
    ours = layers.rotate(query, cos[:, None], sin[:, None])
    torch.testing.assert_close(ours, library)
    equal(gradients(ours, query), gradients(library, query))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feed_forward(dtype):
    torch.manual_seed(0)
    module = nn.Module()
    module.gate_proj, module.up_proj = nn.Linear(8, 20, bias=False), nn.Linear(8, 20, bias=False)
    module.down_proj = nn.Linear(20, 8, bias=False)
    module.to(dtype)
    x = torch.randn(1, 5, 8, dtype=dtype, requires_grad=True)
    library = module.down_proj(nn.functional.silu(module.gate_proj(x)) * module.up_proj(x))
    ours = layers.swiglu(module, x)
    torch.testing.assert_close(ours, library)
    inputs = x, *module.parameters()
    equal(gradients(ours, *inputs), gradients(library, *inputs))
    with torch.no_grad():
        torch.testing.assert_close(layers.swiglu(module, x), library)


def adapted(dropout=0.0, **other):
    model = nn.Sequential(nn.Linear(12, 10)).requires_grad_(False)
    config = LoraConfig(r=4, target_modules=["0"], lora_dropout=dropout, init_lora_weights=False, **other)
    return get_peft_model(model, config).base_model.model[0]


class Quantized(nn.Linear):
    """A layer whose result must not be changed in place."""

    def forward(self, x):
        return super().forward(x).exp()


@pytest.mark.parametrize("case", ["plain", "dropout", "disabled", "merged", "two", "dora", "none", "quantized"])
def test_adapter(case):
    torch.manual_seed(0)
    layer = adapted(0.5 if case == "dropout" else 0.0, use_dora=case == "dora")
    if case == "disabled":
        layer.enable_adapters(False)
    if case == "merged":
        layer.merge()
    if case == "two":
        config = LoraConfig(r=2, lora_alpha=3, init_lora_weights=False)
        layer.update_layer("more", r=2, lora_alpha=3, config=config)
        layer.set_adapter(["default", "more"])
    if case == "none":
        layer._active_adapter = "another"
    if case == "quantized":
        layer.base_layer.__class__ = Quantized
    x = torch.randn(2, 5, 12, requires_grad=True)
    again = copy.deepcopy(layer)
    patching.replace_forward(again, layers.lora_linear)
    outs = []
    for one in (again, layer):
        torch.manual_seed(2)  # the dropout's noise
        out = one(x)
        trained = [p for n, p in one.named_parameters() if "lora" in n and p.requires_grad]
        torch.manual_seed(3)
        grads = torch.autograd.grad(out.pow(2).sum(), [x, *trained], allow_unused=True)
        outs.append([out, *(torch.zeros(1) if grad is None else grad for grad in grads)])
    equal(*outs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [True, False])
def test_adapter_in_float32_beside_a_bfloat16_base(autocast):
    torch.manual_seed(0)
    layer = adapted()
    layer.base_layer.bfloat16()
    again = copy.deepcopy(layer)
    patching.replace_forward(again, layers.lora_linear)
    x = torch.randn(2, 5, 12, dtype=torch.bfloat16, requires_grad=True)
    outs = []
    for one in (again, layer):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = one(x)
        assert out.dtype == torch.bfloat16
        inputs = [x, one.lora_A["default"].weight, one.lora_B["default"].weight]
        outs.append([out, *torch.autograd.grad(out.float().sum(), inputs)])
        assert outs[-1][-1].dtype == torch.float32
    equal(*outs, atol=0.05, rtol=0.02)


def test_embedding_of_patches():
    from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed

    torch.manual_seed(0)
    module, pixels = PatchEmbed(patch_size=4, embed_dim=6), torch.randn(5, 3 * 2 * 4 * 4)
    torch.testing.assert_close(patching.embed_patches(module, pixels), module(pixels))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_scores(temperature):
    torch.manual_seed(0)
    hidden, weight = torch.randn(150, 12, requires_grad=True), torch.randn(40, 12)
    targets = torch.randint(40, (150,))
    scores = torch.log_softmax(hidden @ weight.t() / temperature, -1)
    library = scores.gather(-1, targets[:, None])[:, 0]
    ours, entropy, most_probable = token_scores(hidden, weight, targets, temperature)
    torch.testing.assert_close(ours, library)
    torch.testing.assert_close(entropy, -(scores.exp() * scores).sum(-1))
    assert not entropy.requires_grad
    assert torch.equal(most_probable, scores.argmax(-1) == targets) and most_probable.any()
    equal(gradients(ours, hidden), gradients(library, hidden))
