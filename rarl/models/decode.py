"""Decoding: what rows share is run once, and a row that has ended costs nothing more."""

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rarl.models.graph import Replayed, StaticRollout, replays
from rarl.models.shared_prompt import Prompt, Rollout, packed_inputs
from rarl.models.step import Step

#: Settings of a generation that `decode` knows; with others the library's `generate` must be asked.
KNOWN = {
    "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "suppress_tokens",
    "pad_token_id", "bos_token_id", "eos_token_id", "repetition_penalty",
}  # fmt: skip


def unknown_settings(kwargs: dict) -> list[str]:
    """The settings among a generation's that `decode` does not know."""
    unknown = [name for name, value in kwargs.items() if value is not None and name not in KNOWN]
    if kwargs.get("repetition_penalty") not in (None, 1.0):
        unknown.append("repetition_penalty")
    return unknown


def _processors(config: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """In the library's order."""
    processors = LogitsProcessorList()
    if config.suppress_tokens:
        processors.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device))
    if not config.do_sample:
        return processors
    if config.temperature not in (None, 1.0):
        processors.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        processors.append(TopKLogitsWarper(config.top_k))
    if config.top_p not in (None, 1.0):
        processors.append(TopPLogitsWarper(config.top_p))
    return processors


@torch.no_grad()
def decode(model, prompts: list[Prompt], rests: list[torch.Tensor], config: GenerationConfig) -> list[list[int]]:
    """One completion of each row, its end token included. Arguments as `shared_prompts` returns them.

    Greedy without `config.do_sample`. Else, with the same state of the random generator these are the tokens of the
    library's `generate`: `torch.multinomial` draws exponential noise for all rows, and so does this, also for those
    that have ended.

    Args:
        model: with `lm_head` and, under `model`, a backbone made ready by `prepare_layers`; no PEFT wrapper.
    """
    inputs = packed_inputs(model.model, prompts, rests, keep=True)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[0]
    prefill = inputs["attention_mask"]["full_attention"]
    rows = [row for prompt in prompts for row in prompt.rows]
    ends = torch.tensor([len(rests[row]) for row in rows], device=hidden.device).cumsum(0) - 1
    logits = model.get_output_embeddings()(hidden[ends])
    positions = inputs["position_ids"][0, 0, prefill.own[ends]] + 1
    rows = torch.tensor(rows, device=logits.device)
    rollout = StaticRollout if replays(model, config.max_new_tokens) else Rollout
    return _decode(model, config, rollout(prefill, config.max_new_tokens), rows, logits, positions)


@torch.inference_mode()
def _decode(model, config, state: Rollout, rows, logits, positions) -> list[list[int]]:
    """From the prefilled prompts, token by token; `rows`, `logits` and `positions` lie prompt after prompt."""
    run = Step(model) if Step.fits(model) else _library_step(model)
    if isinstance(state, StaticRollout):
        run = Replayed(run, state)
    head = model.get_output_embeddings()
    processors = _processors(config, rows.device)
    ends = torch.tensor(config.eos_token_id).reshape(-1).tolist()
    where = rows.tolist()
    completions = [[] for _ in rows]
    for step in range(1, config.max_new_tokens + 1):
        logits = processors(None, logits.float())
        if config.do_sample:
            noise = torch.empty(len(completions), logits.shape[-1], device=rows.device)
            logits = logits.softmax(-1) / noise.exponential_()[rows]
        tokens = logits.argmax(-1)
        given = tokens.tolist()  # the one moment of a step at which a GPU is waited for
        for row, token in zip(where, given):
            completions[row].append(token)
        alive = [token not in ends for token in given]
        if step == config.max_new_tokens or not any(alive):
            break
        if not all(alive):
            alive = torch.tensor(alive, device=rows.device)
            rows, tokens, positions = rows[alive], tokens[alive], positions[alive]
            where = rows.tolist()
            state.keep(alive)
        logits = head(run(tokens, positions, state))
        state.length += 1
        positions = positions + 1
    return completions


def _library_step(model):
    """`Step` for any model."""
    text = model.model.language_model

    def run(tokens, positions, state):
        return text(
            inputs_embeds=text.embed_tokens(tokens)[None],
            position_ids=positions.expand(3, 1, -1),
            attention_mask={"full_attention": state},
            use_cache=False,
        ).last_hidden_state[0]

    return run
