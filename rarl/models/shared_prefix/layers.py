"""Fused forward passes of decoder layers, and patched ones that take a layout or a cache in place of the mask.

Values and gradients are the library's up to rounding (`tests/tiny/test_layers.py`). They pass over memory less often,
which saves much of a step outside its matrix products.
"""

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd import Function
from torch.nn.functional import linear, silu
from transformers.modeling_outputs import BaseModelOutputWithPast

from rarl.models.patching import replace_forward
from rarl.models.shared_prefix.attention import cached_attention, packed_attention, without_autocast
from rarl.models.shared_prefix.kv_cache import KVCache
from rarl.models.shared_prefix.layout import PackedLayout

#: `model_type` of models whose language model `_language_model` runs.
MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "smolvlm")
#: Kinds of layers whose attention `PackedLayout` knows.
LAYER_TYPES = {"full_attention", "sliding_attention"}
#: What a layer has where it has no norm.
IDENTITY = nn.Identity()


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
        if type(layer.base_layer) is nn.Linear and x.dtype == dtype == layer.weight.dtype and up.bias is None:
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
    query_norm, key_norm = norms_of_heads(module)
    if own is None:
        query = rotate(query_norm(module.q_proj(hidden).unflatten(-1, heads)), cos, sin)
    else:
        query = rotate(query_norm(module.q_proj(hidden[own]).unflatten(-1, heads)), cos[own], sin[own])
    key = rotate(key_norm(module.k_proj(hidden).unflatten(-1, heads)), cos, sin)
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
    after_attention, before_mlp, after_mlp = norms_of_blocks(layer)
    hidden = hidden_states[:, own] + after_attention(attended)
    return hidden + after_mlp(layer.mlp(before_mlp(hidden)))


def _language_model(text, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, **kwargs):
    """The library's language model, without the mask that some models make themselves.

    position_ids: (1, tokens), or (3, 1, tokens) with M-RoPE.
    """
    layout = attention_mask.get("full_attention") if isinstance(attention_mask, dict) else None
    if not isinstance(layout, (PackedLayout, KVCache)):
        kwargs |= {"attention_mask": attention_mask, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        return type(text).forward(text, input_ids, **kwargs)
    hidden, levels = inputs_embeds, kwargs.get("deepstack_visual_embeds") or []
    for layer, rotary in zip(text.layers, rotary_embeddings(text, hidden, position_ids)):
        hidden = layer(hidden, attention_mask=layout, position_embeddings=rotary)
        number = layer.self_attn.layer_idx
        if number < min(len(levels), len(text.layers) - 1):  # the last layer returns no image tokens
            hidden = text._deepstack_process(hidden, kwargs["visual_pos_masks"], levels[number])
    return BaseModelOutputWithPast(last_hidden_state=text.norm(hidden))


def rotary_embeddings(text, hidden: torch.Tensor, position_ids: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Cosines and sines of each layer, (1, tokens, head size). Those of Gemma 3 depend on the kind of layer."""
    kinds = getattr(text.rotary_emb, "layer_types", None)
    if kinds is None:
        return [text.rotary_emb(hidden, position_ids)] * len(text.layers)
    by_kind = {kind: text.rotary_emb(hidden, position_ids, kind) for kind in kinds}
    return [by_kind[layer.self_attn.layer_type] for layer in text.layers]


def norms_of_heads(attention) -> tuple[nn.Module, nn.Module]:
    """Norms of each head's query and key, which Qwen3-VL and Gemma 3 have."""
    return getattr(attention, "q_norm", IDENTITY), getattr(attention, "k_norm", IDENTITY)


def norms_of_blocks(layer) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Norms after the attention, before the feed-forward block, and, as in Gemma 3 only, after it."""
    if hasattr(layer, "pre_feedforward_layernorm"):
        return layer.post_attention_layernorm, layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm
    return IDENTITY, layer.post_attention_layernorm, IDENTITY


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
    text, config = network.get_decoder(), network.config.get_text_config()
    if not LAYER_TYPES.issuperset(getattr(config, "layer_types", None) or []):
        return "the model has attention of other kinds than full and sliding"
    if config.attention_dropout:
        return "the model has dropout in its attention"
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        return "the model caps its logits"
    replace_forward(text, _language_model)
    replace_forward(text.layers[-1], _last_layer)
    for layer in text.layers:
        replace_forward(layer.self_attn, _attention)
        if getattr(layer.mlp.config, "hidden_act", None) == "silu":
            replace_forward(layer.mlp, swiglu)
    for module in text.modules():
        if hasattr(module, "variance_epsilon"):  # Gemma 3's norms have none
            replace_forward(module, rms_norm)
        elif isinstance(module, LoraLinear):
            replace_forward(module, lora_linear)
    return None
