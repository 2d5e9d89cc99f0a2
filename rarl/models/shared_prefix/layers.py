"""Fused forward passes of decoder layers, and patched ones that take a layout or a cache in place of the mask.

Values and gradients are the library's up to rounding (`tests/tiny/test_layers.py`). They pass over memory less often,
which saves much of a step outside its matrix products.
"""

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.autograd import Function
from torch.nn.functional import linear, silu

from rarl.models.patching import replace_forward
from rarl.models.shared_prefix.attention import cached_attention, packed_attention, without_autocast
from rarl.models.shared_prefix.kv_cache import KVCache
from rarl.models.shared_prefix.layout import PackedLayout

#: `model_type` of models whose language model passes an attention mask on unchanged. (Qwen3-VL's builds its own.)
MODELS = ("qwen2_vl", "qwen2_5_vl")


class _Norm(Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        out = (wide * scale).to(x.dtype)
        return out.mul_(weight) if weight.dtype == x.dtype else out * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        wide, grad = x.float(), grad.float()
        to_x = grad * weight.float()
        along = torch.linalg.vecdot(to_x, wide)[..., None].mul_(scale**3).div_(x.shape[-1])
        to_x.mul_(scale).addcmul_(wide, along, value=-1)
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (wide * scale).mul_(grad).flatten(0, -2).sum(0).to(weight.dtype)
        return to_x.to(x.dtype), to_weight, None


def rms_norm(module, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm over the last axis, computed in float32. module: with `weight` and `variance_epsilon`."""
    return _Norm.apply(x, module.weight, module.variance_epsilon)


class _Rotary(Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin.roll(sin.shape[-1] // 2, -1)), None, None


def _rotated(x, cos, sin):
    out = x * cos
    (first, second), (sin1, sin2) = out.chunk(2, -1), sin.chunk(2, -1)
    x1, x2 = x.chunk(2, -1)
    first.addcmul_(x2, sin1, value=-1)
    second.addcmul_(x1, sin2)
    return out


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding. x: (tokens, heads, head size); cos, sin: (tokens, 1, head size)."""
    return _Rotary.apply(x, cos, sin)


class _Gate(Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        to_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return to_gate, silu(gate).mul_(grad)


def swiglu(module, x: torch.Tensor) -> torch.Tensor:
    """The SwiGLU feed-forward block. module: with `gate_proj`, `up_proj`, `down_proj`."""
    return module.down_proj(_Gate.apply(module.gate_proj(x), module.up_proj(x)))


def lora_linear(layer, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """PEFT's linear layer; one plain LoRA adapter is added to the base's output in place."""
    names = layer.active_adapters
    plain = not (args or kwargs or layer.disable_adapters or layer.merged or layer.lora_variant)
    if plain and len(names) == 1 and names[0] in layer.lora_A:
        down, up = layer.lora_A[names[0]], layer.lora_B[names[0]]
        kind, dtype = x.device.type, down.weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        if x.dtype == dtype == layer.weight.dtype and up.bias is None:
            rows = x.flatten(0, -2)
            low = linear(layer.lora_dropout[names[0]](rows), down.weight.to(dtype))
            out = layer.base_layer(rows)
            out.addmm_(low, up.weight.to(dtype).t(), alpha=layer.scaling[names[0]])
            return out.view(*x.shape[:-1], -1)
    return LoraLinear.forward(layer, x, *args, **kwargs)


def _attention(module, hidden_states, attention_mask=None, position_embeddings=None, own=None, **kwargs):
    """The library's attention layer, with a layout or cache in place of the mask. own: positions of the queries."""
    if not isinstance(attention_mask, (PackedLayout, KVCache)):
        kwargs |= {"attention_mask": attention_mask, "position_embeddings": position_embeddings}
        return type(module).forward(module, hidden_states, **kwargs)
    hidden, (cos, sin) = hidden_states[0], (one[0, :, None] for one in position_embeddings)
    heads = (-1, module.head_dim)
    if own is None:
        query = rotate(module.q_proj(hidden).unflatten(-1, heads), cos, sin)
    else:
        query = rotate(module.q_proj(hidden[own]).unflatten(-1, heads), cos[own], sin[own])
    key = rotate(module.k_proj(hidden).unflatten(-1, heads), cos, sin)
    value = module.v_proj(hidden).unflatten(-1, heads)
    if isinstance(attention_mask, PackedLayout):
        out = packed_attention(attention_mask, module, query, key, value)
    else:
        with without_autocast(query):
            out = cached_attention(attention_mask, module, query, key, value)
    return module.o_proj(out.flatten(1)[None]), None


def _last_layer(layer, hidden_states, attention_mask=None, **kwargs):
    """For prefix tokens the last layer computes keys and values only."""
    if not isinstance(attention_mask, PackedLayout):
        return type(layer).forward(layer, hidden_states, attention_mask=attention_mask, **kwargs)
    own, normed = attention_mask.own, layer.input_layernorm(hidden_states)
    attended, _ = layer.self_attn(normed, attention_mask=attention_mask, own=own, **kwargs)
    hidden = hidden_states[:, own] + attended
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def patch_layers(network) -> str | None:
    """Patch a model's decoder layers to take a layout in place of the attention mask.

    The patch stays, because activation checkpointing runs layers again in the backward pass.

    Args:
        network: a model with a head, without PEFT's wrapper.

    Returns:
        Why the model does not support shared prefixes, and is not patched, or None.
    """
    if network.config.model_type not in MODELS:
        return f"a model of type {network.config.model_type}"
    text, config = network.model.language_model, network.config.get_text_config()
    if set(config.layer_types) != {"full_attention"}:
        return "the model has attention of other kinds than full"
    if config.attention_dropout:
        return "the model has dropout in its attention"
    replace_forward(text.norm, rms_norm)
    replace_forward(text.layers[-1], _last_layer)
    for layer in text.layers:
        replace_forward(layer.self_attn, _attention)
        if layer.mlp.config.hidden_act == "silu":
            replace_forward(layer.mlp, swiglu)
        replace_forward(layer.input_layernorm, rms_norm)
        replace_forward(layer.post_attention_layernorm, rms_norm)
        for module in layer.modules():
            if isinstance(module, LoraLinear):
                replace_forward(module, lora_linear)
    return None
