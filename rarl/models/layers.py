"""A decoder layer's parts in fewer and larger operations than the library's.

Same values, up to rounding, and same gradients (`tests/tiny/test_layers.py`); what is saved is passes over memory, and
with them a good part of a step outside of the matrix products.
"""

from types import MethodType

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.autograd import Function
from torch.nn.functional import linear, scaled_dot_product_attention, silu


def without_peft(model):
    """The model below PEFT's wrapper, if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def replace_forward(module, forward) -> None:
    """Let this one module run `forward(module, ...)`; what is copied from it later does, too."""
    if getattr(module.forward, "__func__", None) is not forward:
        module.forward = MethodType(forward, module)


def without_autocast(x: torch.Tensor):
    """A context in which operations on x's device keep the dtypes that they are given."""
    return torch.autocast(x.device.type, enabled=False)


def _norm(x, weight, eps):
    wide = x.float()
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    out = (wide * scale).to(x.dtype)
    return out.mul_(weight) if weight.dtype == x.dtype else out * weight, scale


class _Norm(Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        out, scale = _norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

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
    """RMSNorm over the last axis, in float32 inside. module: with `weight` and `variance_epsilon`."""
    if not torch.is_grad_enabled():
        return _norm(x, module.weight, module.variance_epsilon)[0]
    return _Norm.apply(x, module.weight, module.variance_epsilon)


def _turn(x, cos, sin, back: bool):
    out = x * cos
    (out1, out2), (x1, x2), (sin1, sin2) = (one.chunk(2, -1) for one in (out, x, sin))
    if back:
        sin1, sin2 = sin2, sin1
    out1.addcmul_(x2, sin1, value=1 if back else -1)
    out2.addcmul_(x1, sin2, value=-1 if back else 1)
    return out


class _Rotary(Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx, grad):
        return _turn(grad, *ctx.saved_tensors, back=True), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding. x: (tokens, heads, head size); cos, sin: (tokens, 1, head size)."""
    if not torch.is_grad_enabled():
        return _turn(x, cos, sin, back=False)
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


def gated(module, x: torch.Tensor) -> torch.Tensor:
    """The SwiGLU feed-forward block. module: with `gate_proj`, `up_proj`, `down_proj`."""
    gate, up = module.gate_proj(x), module.up_proj(x)
    return module.down_proj(_Gate.apply(gate, up) if torch.is_grad_enabled() else silu(gate).mul_(up))


def adapted(layer, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """PEFT's linear layer with one plain LoRA adapter: its product is added where the base's lies."""
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


def embed_patches(module, pixels: torch.Tensor) -> torch.Tensor:
    """The tower's first layer as one product, which it is: a convolution that steps by its kernel's size.

    As a convolution in bfloat16 it takes seconds with some versions of cuDNN.

    Args:
        module: with `proj`, the convolution.
        pixels: (patches, patch size).
    """
    weight = module.proj.weight
    return linear(pixels.to(weight.dtype), weight.flatten(1), module.proj.bias)


class _Attention(Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, scale):
        ctx.heads = query.shape[:2]
        query, key, value = (x.flatten(0, 1) for x in (query, key, value))
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(scale)
        scores.unflatten(0, ctx.heads).masked_fill_(~mask, -torch.inf)
        probs = scores.softmax(-1)
        ctx.save_for_backward(query, key, value, probs)
        ctx.scale = scale
        return torch.bmm(probs, value).unflatten(0, ctx.heads)

    @staticmethod
    def backward(ctx, grad):
        query, key, value, probs = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        slope = torch.bmm(grad, value.transpose(1, 2))
        slope = torch.ops.aten._softmax_backward_data(slope, probs, -1, slope.dtype)
        slope.mul_(ctx.scale)
        grads = (
            torch.bmm(slope, key),
            torch.bmm(slope.transpose(1, 2), query),
            torch.bmm(probs.transpose(1, 2), grad),
        )
        return *(x.unflatten(0, ctx.heads) for x in grads), None, None


def attention(query, key, value, scale: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Scaled dot-product attention: PyTorch's fused kernel or, where that is off, matrix products.

    Args:
        query: (batch, heads, queries, head size).
        key, value: (batch, key-value heads, keys, head size).
        mask: (queries, keys) or (batch, 1, queries, keys), True where a query attends to a key; None for causal attention.

    Returns:
        As query.
    """
    composed = query.is_cpu and not torch.backends.cuda.flash_sdp_enabled()
    fused = not composed or query.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if mask is None:
        if fused:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    # The queries that share keys follow each other in one head, so that no key is copied.
    several = query.shape[1] // key.shape[1]
    query = query.unflatten(1, (-1, several)).flatten(2, 3)
    mask = mask.repeat(*[1] * (mask.ndim - 2), several, 1)
    if fused:
        out = scaled_dot_product_attention(query, key, value, mask, scale=scale)
    else:
        out = _Attention.apply(query, key, value, mask, scale)
    return out.unflatten(2, (several, -1)).flatten(1, 2)


class _TokenScores(Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature):
        log_probs, entropies, hits, slopes = [], [], [], []
        rows = max(64, 2**19 // len(weight))
        for some, target in zip(hidden.split(rows), targets.split(rows)):
            scores = (some @ weight.t()).div_(temperature)
            scores = scores.log_softmax(-1)
            hits.append(scores.argmax(-1) == target)
            log_probs.append(scores.gather(-1, target[:, None])[:, 0])
            probs = scores.exp()
            entropies.append(-torch.linalg.vecdot(probs, scores))
            if ctx.needs_input_grad[0]:
                slopes.append(weight[target].sub_(probs @ weight).div_(temperature))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        entropies, hits = torch.cat(entropies), torch.cat(hits)
        ctx.mark_non_differentiable(entropies, hits)
        return torch.cat(log_probs), entropies, hits

    @staticmethod
    def backward(ctx, grad, *_):
        return ctx.saved_tensors[0] * grad[:, None], None, None, None


def token_scores(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability of each token under a frozen head, the entropy, and whether no token is more probable.

    The entropy has no gradient.

    What a log-probability's gradient does to the hidden state is known in the forward pass already, where the logits
    are at hand: the target's weights less the mean of all by probability. So the backward pass multiplies by a number.

    Args:
        hidden: (tokens, hidden size).
        weight: (vocabulary, hidden size).
        targets: (tokens,).

    Returns:
        Three of (tokens,).
    """
    return _TokenScores.apply(hidden, weight, targets, temperature)
