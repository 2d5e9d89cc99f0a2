"""One new token of each row through the language model, in fewer and larger operations than the library's."""

from functools import partial

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import Linear
from torch.nn.functional import linear, rms_norm

from rarl.models.shared_prefix.attention import cached_attention, without_autocast
from rarl.models.shared_prefix.kv_cache import KVCache
from rarl.models.shared_prefix.layers import norms_of_blocks, norms_of_heads, rotary_embeddings, rotate


class FusedDecoder:
    """The library's decoder layers for few rows. Rebuilt per batch, because the adapters change.

    In float32 on a CPU adapters are merged into copies of the weights. Elsewhere they stay apart: rounded to bfloat16,
    a small adapter would vanish in the weight that it is added to. The model has to pass `patch_layers` and `fits`.
    """

    def __init__(self, model):
        self.text = model.get_decoder()
        self.layers = []
        product = _merged_product if merges_adapters(self.text.norm.weight) else _product
        for layer in self.text.layers:
            attention, mlp = layer.self_attn, layer.mlp
            heads = product(attention.q_proj, attention.k_proj, attention.v_proj)
            gate_up, down = product(mlp.gate_proj, mlp.up_proj), product(mlp.down_proj)
            self.layers.append((layer, heads, product(attention.o_proj), gate_up, down))

    @staticmethod
    def fits(model) -> bool:
        """Whether linear layers have plain LoRA adapters at most, and weights the dtype of the computation."""
        text = model.get_decoder()
        linears = [one for name, one in text.named_modules() if name.endswith("_proj")]
        kind = text.norm.weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        weights = [x for name, x in text.named_parameters() if "lora_" not in name]
        return (
            all(isinstance(one, LoraLinear) or type(one) is Linear for one in linears)
            and all(type(getattr(one, "base_layer", one)) is Linear for one in linears)
            and not any(getattr(one, "lora_variant", None) for one in linears)
            and not any(any(getattr(one, "lora_bias", {}).values()) for one in linears)
            and {x.dtype for x in weights} == {dtype or weights[0].dtype}
        )

    def __call__(self, tokens, positions, cache: KVCache) -> torch.Tensor:
        """tokens, positions: (rows,). Returns the head's input, (rows, hidden size)."""
        with without_autocast(tokens):
            return self._run(tokens, positions, cache)

    def _run(self, tokens, positions, cache):
        hidden = self.text.embed_tokens(tokens)
        rotary = rotary_embeddings(self.text, hidden, positions[None])
        for (layer, heads, output, gate_up, down), (cos, sin) in zip(self.layers, rotary):
            attention, cos, sin = layer.self_attn, cos[0, :, None], sin[0, :, None]
            after_attention, before_mlp, after_mlp = norms_of_blocks(layer)
            projected = heads(_norm(layer.input_layernorm, hidden)).unflatten(-1, (-1, attention.head_dim))
            counts = attention.config.num_attention_heads, attention.config.num_key_value_heads
            query_key, value = projected.split([sum(counts), counts[1]], 1)
            if hasattr(attention, "q_norm"):
                parts = zip(norms_of_heads(attention), query_key.split(counts, 1))
                query_key = torch.cat([_norm(norm, part) for norm, part in parts], 1)
            query, key = rotate(query_key, cos, sin).split(counts, 1)
            attended = output(cached_attention(cache, attention, query, key, value).flatten(1))
            hidden = hidden + _norm(after_attention, attended)
            gate, up = gate_up(_norm(before_mlp, hidden)).chunk(2, -1)
            hidden = hidden + _norm(after_mlp, down(layer.mlp.act_fn(gate).mul_(up)))
        return _norm(self.text.norm, hidden)


def _norm(module, x):
    if not hasattr(module, "variance_epsilon"):
        return module(x)
    return rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def merges_adapters(weight: torch.Tensor) -> bool:
    """Whether adapters are merged into copies of weights like this one."""
    return weight.is_cpu and weight.dtype == torch.float32


def _parts(layer) -> tuple[Linear, list[str]]:
    """A linear layer without adapters, and the names of its active adapters."""
    base = getattr(layer, "base_layer", layer)
    if base is layer or layer.merged or layer.disable_adapters:
        return base, []
    return base, [name for name in layer.active_adapters if name in layer.lora_A]


def _product(*layers):
    """Linear layers side by side: a function of (rows, inputs) that returns (rows, all outputs)."""
    bases, downs, ups = [], [], []
    for layer in layers:
        base, names = _parts(layer)
        weight = base.weight
        bases.append(base)
        downs += [layer.lora_A[name].weight.to(weight.dtype) for name in names]
        own = [layer.lora_B[name].weight * layer.scaling[name] for name in names]
        ups.append(torch.cat([weight.new_zeros(len(weight), 0), *own], 1).to(weight.dtype))
    sizes = [len(base.weight) for base in bases]
    if downs:
        down, up = torch.cat(downs).t(), torch.block_diag(*ups).t()

    def run(x):
        out = x.new_empty(len(x), sum(sizes))
        for base, part in zip(bases, out.split(sizes, 1)):
            if base.bias is None:
                torch.mm(x, base.weight.t(), out=part)
            else:
                torch.addmm(base.bias, x, base.weight.t(), out=part)
        return out.addmm_(x @ down, up) if downs else out

    return run


def _merged_product(*layers):
    """`_product` on copies of the weights, adapters merged, in the column-major order that suits few rows."""
    weights = []
    for layer in layers:
        base, names = _parts(layer)
        weights.append(base.weight + sum(map(layer.get_delta_weight, names)) if names else base.weight)
    biases = [getattr(layer, "base_layer", layer).bias for layer in layers]
    bias = None if biases[0] is None else torch.cat(biases)
    return partial(linear, weight=torch.cat(weights).t().contiguous().t(), bias=bias)
