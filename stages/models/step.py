"""One new token of each row through the language model, in float32 on a CPU."""

from functools import partial

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import Linear
from torch.nn.functional import linear, rms_norm, silu

from stages.models.layers import rotate
from stages.models.shared_prompt import Rollout

#: Values of a weight from which it does not stay in the cache, and columns of a block of it.
LARGE, BLOCK = 2**18, 256


class Step:
    """The library's layers with LoRA adapters folded in, and with fewer, larger products in a layout for few rows.

    To be made anew for each batch, since in between the adapters are trained. (Rounded to bfloat16, a small adapter
    would vanish in the weight that it is added to: such a model does not fit.)

    Args:
        model: one that `prepare_layers` accepts, and that fits.
    """

    def __init__(self, model):
        self.text = model.model.language_model
        self.layers = []
        for layer in self.text.layers:
            attention, mlp = layer.self_attn, layer.mlp
            heads = _product(attention.q_proj, attention.k_proj, attention.v_proj)
            rest = _feed_forward(mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            self.layers.append((layer, heads, _product(attention.o_proj), rest))

    @staticmethod
    def fits(model) -> bool:
        """Whether all is float32 on a CPU, and linear layers have plain LoRA adapters at most."""
        text = model.model.language_model
        linears = [one for name, one in text.named_modules() if name.endswith("_proj")]
        return (
            text.config.hidden_act == "silu"
            and all(isinstance(one, LoraLinear) or type(one) is Linear for one in linears)
            and not any(getattr(one, "lora_variant", None) for one in linears)
            and all(x.dtype == torch.float32 and x.is_cpu for x in model.parameters())
        )

    def __call__(self, tokens, positions, state: Rollout) -> torch.Tensor:
        """tokens, positions: (rows,). Returns what the head takes, (rows, hidden size)."""
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


def _folded(layer) -> torch.Tensor:
    """A linear layer's weight with its active adapters."""
    base = getattr(layer, "base_layer", layer)
    if base is layer or layer.merged or layer.disable_adapters:
        return base.weight
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return base.weight + sum(map(layer.get_delta_weight, names))


def _product(*layers):
    """Linear layers side by side: (rows, inputs) to (rows, all outputs).

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


def _feed_forward(gate, up, down):
    """SwiGLU. A large gate lies in blocks of columns, which are read one after the other."""
    last, weights = _product(down), [_folded(gate), _folded(up)]
    inner, size = weights[0].shape
    if inner * size < LARGE or inner % BLOCK:
        both = _product(gate, up)

        def run(x):
            opened, values = both(x).chunk(2, -1)
            return last(silu(opened).mul_(values))

        return run
    blocks = torch.cat([weight.view(-1, BLOCK, size).transpose(1, 2) for weight in weights])

    def run(x):
        opened, values = torch.bmm(x.expand(len(blocks), -1, -1), blocks).chunk(2)
        return last(silu(opened).mul_(values).transpose(1, 2).reshape(inner, -1).t())

    return run
