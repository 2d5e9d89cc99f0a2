"""Attention over packed sequences: `packed_attention` in training and prefill, `cached_attention` in decoding."""

import torch
from torch.autograd import Function
from torch.nn.functional import scaled_dot_product_attention

from rarl.models.shared_prefix.kv_cache import KVCache
from rarl.models.shared_prefix.layout import PackedLayout


def without_autocast(x: torch.Tensor):
    """A context in which operations on x's device keep their inputs' dtypes."""
    return torch.autocast(x.device.type, enabled=False)


def packed_attention(layout: PackedLayout, module, query, key, value) -> torch.Tensor:
    """Causal attention within each prefix, and of each row to its prefix and itself.

    module: the attention layer, with `layer_idx`, `scaling` and perhaps `sliding_window`. query, and the result:
    (tokens, heads, head size), of all tokens or of `layout.own` only. key, value: (all tokens, key-value heads, head
    size).
    """
    of_all = len(query) == len(key)
    row_mask, prefix_mask = layout.masks(getattr(module, "sliding_window", None))
    prefix_key, row_key = _padded(key, layout.prefix_tokens), _padded(key, layout.row_tokens)
    prefix_value, row_value = _padded(value, layout.prefix_tokens), _padded(value, layout.row_tokens)
    if layout.kept is not None:
        layout.kept[module.layer_idx] = prefix_key, prefix_value, row_key, row_value
    seen_key = torch.cat([prefix_key[layout.prefix_of_row], row_key], 2)
    seen_value = torch.cat([prefix_value[layout.prefix_of_row], row_value], 2)
    row_query = _padded(query, layout.row_tokens if of_all else layout.row_in_own)
    rows = attention(row_query, seen_key, seen_value, module.scaling, row_mask).transpose(1, 2).flatten(0, 1)
    if not of_all:
        return rows.index_select(0, layout.own_order)
    prefix_query = _padded(query, layout.prefix_tokens)
    prefixes = attention(prefix_query, prefix_key, prefix_value, module.scaling, prefix_mask)
    return torch.cat([prefixes.transpose(1, 2).flatten(0, 1), rows]).index_select(0, layout.order)


def _padded(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x: (tokens, heads, head size); index: (rows, longest row). Returns (rows, heads, longest row, head size)."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


class _Attention(Function):
    """Saves no mask for the backward pass: where a probability is 0, so is the gradient of its score."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scale):
        scores = (query @ key.transpose(2, 3)).mul_(scale).masked_fill_(~mask, -torch.inf)
        probs = scores.softmax(-1)
        ctx.save_for_backward(query, key, value, probs)
        ctx.scale = scale
        return probs @ value

    @staticmethod
    def backward(ctx, grad):
        query, key, value, probs = ctx.saved_tensors
        slope = torch.ops.aten._softmax_backward_data(grad @ value.transpose(2, 3), probs, -1, grad.dtype)
        slope.mul_(ctx.scale)
        return slope @ key, slope.transpose(2, 3) @ query, probs.transpose(2, 3) @ grad, None, None


def attention(query, key, value, scale: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Scaled dot-product attention: PyTorch's fused kernel or, where that is disabled, matrix products.

    query, and the result: (batch, heads, queries, head size). key, value: (batch, key-value heads, keys, head size).
    mask: (queries, keys) or (batch, 1, queries, keys), True where a query attends to a key; None for causal attention.
    """
    composed = query.is_cpu and not torch.backends.cuda.flash_sdp_enabled()
    fused = not composed or query.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if mask is None:
        if fused:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    # The queries that share a key head follow each other in one head, so that no key is copied.
    several = query.shape[1] // key.shape[1]
    query = query.unflatten(1, (-1, several)).flatten(2, 3)
    mask = mask.repeat(*[1] * (mask.ndim - 2), several, 1)
    if fused:
        out = scaled_dot_product_attention(query, key, value, mask, scale=scale)
    else:
        out = _Attention.apply(query, key, value, mask, scale)
    return out.unflatten(2, (several, -1)).flatten(1, 2)


def cached_attention(cache: KVCache, module, query, key, value) -> torch.Tensor:
    """Attention of one new token per row to its prefix and its own past.

    module: as for `packed_attention`. query, and the result: (rows, heads, head size). key, value: (rows, key-value
    heads, head size), which are added to the cache.
    """
    exact, heads = query.dtype == torch.float32, key.shape[1]
    full = len(query) == cache.shape.numel()
    if exact:
        query = query * module.scaling
    prefix_key, prefix_value = cache.prefixes[module.layer_idx].flatten(1, 2)
    new = cache.to_slots(torch.stack([key, value], 1))
    own_key, own_value = cache.append(module.layer_idx, new.movedim(2, 0)).flatten(1, 3)
    # A slot has its own keys; all slots of a prefix share the prefix's keys, for which heads come before slots.
    query = cache.to_slots(query).unflatten(2, (heads, -1))
    prefixes, slots, _, queries, size = query.shape
    by_prefix = query.transpose(1, 2).reshape(prefixes * heads, slots * queries, size)
    far = _scores(by_prefix, prefix_key).view(prefixes, heads, slots, queries, -1).transpose(1, 2)
    near = _scores(query.flatten(0, 2), own_key).view(prefixes, slots, heads, queries, -1)
    scores = cache.hide(torch.cat([far, near], -1), getattr(module, "sliding_window", None))
    weights = (scores if exact else scores.mul_(module.scaling)).softmax(-1).to(query.dtype)
    far, near = weights.split([prefix_key.shape[1], own_key.shape[1]], -1)
    by_prefix = far.transpose(1, 2).reshape(prefixes * heads, slots * queries, -1)
    out = torch.bmm(by_prefix, prefix_value).view(prefixes, heads, slots, queries, size).transpose(1, 2)
    out = out.reshape(-1, queries, size).baddbmm_(near.flatten(0, 2), own_value).view(prefixes * slots, -1, size)
    return out if full else out[cache.slot]


def _scores(query, key):
    """(batch, queries, keys) in float32: Qwen2's biases make scores of hundreds, where a step of bfloat16 is 1."""
    if query.dtype == torch.float32:
        return torch.bmm(query, key.transpose(1, 2))
    if query.is_cuda:
        return torch.bmm(query, key.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(query.float(), key.float().transpose(1, 2))
