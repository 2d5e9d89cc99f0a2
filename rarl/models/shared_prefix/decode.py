"""Generation: a shared prefix runs once for its rows, and a row that has ended costs nothing more."""

import torch
from transformers import GenerationConfig

from rarl.models.shared_prefix.fused_decoder import FusedDecoder
from rarl.models.shared_prefix.kv_cache import KVCache
from rarl.models.shared_prefix.layout import Prefix, packed_inputs

#: Settings of a generation that `decode` supports.
SUPPORTED = {
    "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "suppress_tokens",
    "pad_token_id", "bos_token_id", "eos_token_id", "repetition_penalty",
}  # fmt: skip
#: New tokens from which the capture of a CUDA graph pays.
GRAPH_PAYS = 16


def unsupported_settings(kwargs: dict) -> list[str]:
    """The settings of a generation for which the library's `generate` is needed.

    >>> unsupported_settings({"top_p": 0.9, "min_p": 0.1, "typical_p": None, "repetition_penalty": 1.0})
    ['min_p']
    """
    unsupported = [name for name, value in kwargs.items() if value is not None and name not in SUPPORTED]
    if kwargs.get("repetition_penalty") not in (None, 1.0):
        unsupported.append("repetition_penalty")
    return unsupported


@torch.no_grad()
def decode(model, prefixes: list[Prefix], suffixes: list[torch.Tensor], config: GenerationConfig) -> list[list[int]]:
    """Generate a completion for each row.

    Sampling gives the tokens that the library's `generate` gives for the same state of the random generator:
    `torch.multinomial` draws exponential noise for all rows, and so does this, also for rows that have ended.

    model: without PEFT's wrapper, after `patch_layers`. prefixes, suffixes: from `group_by_prefix`. config: greedy
    unless `do_sample`. Returns the token ids of each row, its end token included.
    """
    inputs = packed_inputs(model.model, prefixes, suffixes, keep=True)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[0]
    prefill = inputs["attention_mask"]["full_attention"]
    rows = [row for prefix in prefixes for row in prefix.rows]
    last = torch.tensor([len(suffixes[row]) for row in rows], device=hidden.device).cumsum(0) - 1
    logits = model.get_output_embeddings()(hidden[last])
    positions = inputs["position_ids"].flatten(0, -2)[0, prefill.own[last]] + 1
    rows = torch.tensor(rows, device=logits.device)
    if uses_cuda_graph(model, config.max_new_tokens):
        from rarl.models.shared_prefix.cuda_graph import GraphedDecoder, StaticKVCache

        cache = StaticKVCache(prefill, config.max_new_tokens)
        return _decode(model, config, GraphedDecoder(FusedDecoder(model), cache), cache, rows, logits, positions)
    step = FusedDecoder(model) if FusedDecoder.fits(model) else _library_step(model)
    return _decode(model, config, step, KVCache(prefill, config.max_new_tokens), rows, logits, positions)


def uses_cuda_graph(model, tokens: int) -> bool:
    """Whether to capture a CUDA graph for decoding `tokens` new tokens."""
    return model.get_output_embeddings().weight.is_cuda and tokens >= GRAPH_PAYS and FusedDecoder.fits(model)


@torch.inference_mode()
def _decode(model, config, step, cache: KVCache, rows, logits, positions) -> list[list[int]]:
    """Decode token by token after the prefill. rows, logits, positions: in the order of the cache's slots."""
    head = model.get_output_embeddings()
    processors = model._get_logits_processor(config, device=rows.device)
    ends = torch.tensor(config.eos_token_id).reshape(-1).tolist()
    completions, where = [[] for _ in rows], rows.tolist()
    for count in range(1, config.max_new_tokens + 1):
        logits = processors(None, logits.float())
        if config.do_sample:
            noise = torch.empty(len(completions), logits.shape[-1], device=rows.device)
            logits = logits.softmax(-1) / noise.exponential_()[rows]
        tokens = logits.argmax(-1)
        chosen = tokens.tolist()  # the only moment of a step that waits for a GPU
        for row, token in zip(where, chosen):
            completions[row].append(token)
        alive = [token not in ends for token in chosen]
        if count == config.max_new_tokens or not any(alive):
            break
        if not all(alive):
            alive = torch.tensor(alive, device=rows.device)
            rows, tokens, positions = rows[alive], tokens[alive], positions[alive]
            where = rows.tolist()
            cache.drop(alive)
        logits = head(step(tokens, positions, cache))
        cache.length += 1
        positions = positions + 1
    return completions


def _library_step(model):
    """`FusedDecoder` for any model."""
    text = model.get_decoder()

    def run(tokens, positions, cache):
        return text(
            inputs_embeds=text.embed_tokens(tokens)[None],
            position_ids=positions[None],
            attention_mask={"full_attention": cache},
            use_cache=False,
        ).last_hidden_state[0]

    return run
