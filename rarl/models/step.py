"""One new token of each row through the language model."""

from functools import partial

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import Linear
from torch.nn.functional import linear, rms_norm, silu

from rarl.models.layers import rotate, without_autocast
from rarl.models.shared_prompt import Rollout

#: Values of a weight from which it does not stay in the cache, and columns of a block of it.
LARGE, BLOCK = 2**18, 256


class Step:
    """The library's layers in fewer, larger operations, for few rows.

    In float32 on a CPU adapters are folded into copies of the weights, in a layout for few rows. Elsewhere weights are
    read where they lie, adapters beside them: rounded to bfloat16, a small adapter would vanish in the weight that it
    is added to. To be made anew for each batch, since in between the adapters are trained.

    Args:
        model: one that `prepare_layers` accepts, and that fits.
    """

    def __init__(self, model):
        self.text = model.model.language_model
        self.layers = []
        product = _folded_product if folds(self.text.norm.weight) else _product
        for layer in self.text.layers:
            attention, mlp = layer.self_attn, layer.mlp
            heads = product(attention.q_proj, attention.k_proj, attention.v_proj)
            rest = _feed_forward(product, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            self.layers.append((layer, heads, product(attention.o_proj), rest))

    @staticmethod
    def fits(model) -> bool:
        """Whether linear layers have plain LoRA adapters at most, and weights the dtype that is computed in."""
        text = model.model.language_model
        linears = [one for name, one in text.named_modules() if name.endswith("_proj")]
        kind = text.norm.weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        weights = [x for name, x in text.named_parameters() if "lora_" not in name]
        return (
            text.config.hidden_act == "silu"
            and all(isinstance(one, LoraLinear) or type(one) is Linear for one in linears)
            and not any(getattr(one, "lora_variant", None) for one in linears)
            and not any(any(getattr(one, "lora_bias", {}).values()) for one in linears)
            and {x.dtype for x in weights} == {dtype or weights[0].dtype}
        )

    def __call__(self, tokens, positions, state: Rollout) -> torch.Tensor:
        """tokens, positions: (rows,). Returns what the head takes, (rows, hidden size)."""
        with without_autocast(tokens):
            return self._run(tokens, positions, state)

    def _run(self, tokens, positions, state):
        hidden = self.text.embed_tokens(tokens)
        cos, sin = self.text.rotary_emb(hidden, positions.expand(3, 1, -1))
        cos, sin = cos[0, :, None], sin[0, :, None]
        for layer, heads, output, rest in self.layers:
            attention = layer.self_attn
            both = heads(_norm(layer.input_layernorm, hidden))
            both = both.unflatten(-1, (-1, attention.head_dim))
            count = attention.config.num_attention_heads, attention.config.num_key_value_heads
            turned, value = both.split([sum(count), count[1]], 1)
            query, key = rotate(turned, cos, sin).split(count, 1)
            hidden = hidden + output(state.attend(attention, query, key, value).flatten(1))
            hidden = hidden + rest(_norm(layer.post_attention_layernorm, hidden))
        return _norm(self.text.norm, hidden)


def _norm(module, x):
    return rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def folds(weight: torch.Tensor) -> bool:
    """Whether a model with such weights has its adapters folded in."""
    return weight.is_cpu and weight.dtype == torch.float32


def _parts(layer) -> tuple[Linear, list[str]]:
    """A linear layer without adapters, and the names of those that are active."""
    base = getattr(layer, "base_layer", layer)
    if base is layer or layer.merged or layer.disable_adapters:
        return base, []
    return base, [name for name in layer.active_adapters if name in layer.lora_A]


def _product(*layers):
    """Linear layers side by side: (rows, inputs) to (rows, all outputs)."""
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


def _folded(layer) -> torch.Tensor:
    """A linear layer's weight with its active adapters."""
    base, names = _parts(layer)
    return base.weight + sum(map(layer.get_delta_weight, names)) if names else base.weight


def _folded_product(*layers):
    """`_product` with copies of the weights.

    A small weight lies column by column, which takes half to two thirds of the time; a large one is read as it lies,
    from the left.
    """
    weights = [_folded(layer) for layer in layers]
    biases = [getattr(layer, "base_layer", layer).bias for layer in layers]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    bias = None if biases[0] is None else torch.cat(biases)
    if weight.numel() < LARGE:
        return partial(linear, weight=weight.t().contiguous().t(), bias=bias)
    if bias is None:
        return lambda x: (weight @ x.t()).t()
    return lambda x: torch.addmm(bias[:, None], weight, x.t()).t()


def _feed_forward(product, gate, up, down):
    """SwiGLU. A large gate that is copied lies in blocks of columns, which are read one after the other."""
    last, inner = product(down), gate.out_features
    if product is _product or inner * gate.in_features < LARGE or inner % BLOCK:
        both = product(gate, up)

        def run(x):
            opened, values = both(x).chunk(2, -1)
            return last(silu(opened).mul_(values))

        return run
    weights = [_folded(layer).view(-1, BLOCK, gate.in_features) for layer in (gate, up)]
    blocks = torch.cat([weight.transpose(1, 2) for weight in weights])

    def run(x):
        opened, values = torch.bmm(x.expand(len(blocks), -1, -1), blocks).chunk(2)
        return last(silu(opened).mul_(values).transpose(1, 2).reshape(inner, -1).t())

    return run
