"""Sampling of completions: each distinct prompt is run once, and a completion that has ended costs nothing more."""

from contextlib import contextmanager
from functools import partial

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import Linear
from torch.nn.functional import linear
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stages.training.shared_prompt import Packed, Prompt, Rollout, joined_images

#: Settings of a generation that `sample` knows; with others the library's `generate` must be asked.
KNOWN = {
    "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "suppress_tokens",
    "pad_token_id", "bos_token_id", "eos_token_id", "repetition_penalty",
}  # fmt: skip


def unknown_settings(kwargs: dict) -> list[str]:
    """The settings among a generation's that `sample` does not know."""
    unknown = [name for name, value in kwargs.items() if value is not None and name not in KNOWN]
    if kwargs.get("repetition_penalty") not in (None, 1.0):
        unknown.append("repetition_penalty")
    return unknown + ([] if kwargs.get("do_sample") else ["do_sample"])


def _processors(config: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """In the library's order."""
    processors = LogitsProcessorList()
    if config.suppress_tokens:
        processors.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device))
    if config.temperature not in (None, 1.0):
        processors.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        processors.append(TopKLogitsWarper(config.top_k))
    if config.top_p not in (None, 1.0):
        processors.append(TopPLogitsWarper(config.top_p))
    return processors


@torch.no_grad()
def sample(model, prompts: list[Prompt], config: GenerationConfig) -> list[list[int]]:
    """One sampled completion of each row of `prompts`, its end token included; by row number.

    With the same state of the random generator these are the tokens of the library's `generate`: `torch.multinomial`
    draws exponential noise for all rows, and so does this, also for those that have ended.

    Args:
        model: with `lm_head` and, under `model`, a backbone made ready by `prepare_attention`; no PEFT wrapper.
    """
    head, device = model.get_output_embeddings(), prompts[0].ids.device
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
    sizes = torch.tensor([len(prompt.rows) for prompt in prompts], device=device)
    positions = [prompt.positions(model.model) for prompt in prompts]
    prefill = Packed(lengths.tolist(), [[]] * len(prompts), device, keep=True)
    hidden = model.model(
        input_ids=torch.cat([prompt.ids for prompt in prompts])[None],
        position_ids=torch.cat(positions, 1)[:, None],
        attention_mask={"full_attention": prefill},
        use_cache=False,
        **joined_images(prompts),
    ).last_hidden_state[0]
    logits = head(hidden[lengths.cumsum(0) - 1]).repeat_interleave(sizes, 0)
    next_position = torch.stack([one[0, -1] + 1 for one in positions]).repeat_interleave(sizes)
    state = Rollout(prefill.kept, sizes.tolist(), config.max_new_tokens)
    rows = torch.tensor([row for prompt in prompts for row in prompt.rows], device=device)
    return _decode(model, config, state, rows, logits, next_position)


@torch.inference_mode()
def _decode(model, config, state: Rollout, rows, logits, positions) -> list[list[int]]:
    """From the prefilled prompts, token by token; `rows`, `logits` and `positions` lie group after group."""
    head, embed = model.get_output_embeddings(), model.get_input_embeddings()
    processors = _processors(config, rows.device)
    ends = torch.tensor(config.eos_token_id, device=rows.device)
    completions = [[] for _ in rows]
    while True:
        probabilities = processors(None, logits.float()).softmax(-1)
        noise = torch.empty(len(completions), logits.shape[-1], device=rows.device).exponential_()
        tokens = (probabilities / noise[rows]).argmax(-1)
        for row, token in zip(rows.tolist(), tokens.tolist()):
            completions[row].append(token)
        alive = ~torch.isin(tokens, ends)
        if state.length + 1 == config.max_new_tokens or not alive.any():
            return completions
        if not alive.all():
            rows, tokens, positions = rows[alive], tokens[alive], positions[alive]
            state.keep(alive)
        hidden = model.model.language_model(
            inputs_embeds=embed(tokens)[None],
            position_ids=(positions + state.length).expand(3, 1, -1),
            attention_mask={"full_attention": state},
            use_cache=False,
        ).last_hidden_state[0]
        state.length += 1
        logits = head(hidden)


@contextmanager
def decode_weights(model):
    """Temporary copies of float32 weights for sampling: LoRA adapters folded in; on a CPU, laid out column by column.

    Folding makes one matrix product of three. (Rounded to bfloat16, a small adapter would vanish in the weight that it
    is added to: such weights stay.) By columns, a product with few rows takes a CPU half to two thirds of the time.
    """
    inner, changed = set(), []
    with torch.no_grad():
        for name, layer in model.named_modules():
            adapted = isinstance(layer, LoraLinear)
            if name in inner or "visual" in name or not (adapted or isinstance(layer, Linear)):
                continue
            base = layer.get_base_layer() if adapted else layer
            weight = base.weight
            if weight.dtype != torch.float32 or not (adapted or weight.device.type == "cpu"):
                continue
            if adapted:
                if layer.merged or layer.disable_adapters or layer.fan_in_fan_out or layer.lora_variant:
                    continue
                weight = weight + sum(map(layer.get_delta_weight, layer.active_adapters))
                inner |= {f"{name}.{child}" for child, _ in layer.named_modules()}
            if weight.device.type == "cpu":
                weight = weight.t().contiguous().t()
            layer.forward = partial(linear, weight=weight, bias=base.bias)
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward
