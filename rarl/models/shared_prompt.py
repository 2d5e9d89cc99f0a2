"""Attention over rows of which many share one prompt: what lets a prompt be run once for all of them.

The tokens of a pass lie in one row without padding: a prompt, and behind it what each of its rows has besides. Which
tokens see each other says a layout, which takes the attention mask's place in the library's own forward pass: `Packed`
for whole rows (policy, reference, prefill), `Rollout` for one new token of each. Everything but attention treats a
token alone, so that the rest of the model needs no change, and the result is that of separate rows. Of a prompt the
last layer makes only what its rows look at.
"""

from dataclasses import dataclass, field

import torch
from peft.tuners.lora import Linear as LoraLinear

from rarl.models.features import patch_keys
from rarl.models.layers import adapted, attention, gated, replace_forward, rms_norm, rotate, without_autocast

#: Models whose language model hands an attention mask on as it is given. (Qwen3-VL's builds its own.)
MODELS = ("qwen2_vl", "qwen2_5_vl")


class Packed:
    """Prompts, each followed by its rows' own tokens: these see the prompt and their own row, causally.

    For attention, prompts and rows are padded at their ends, so that all of them are computed at once. Padding repeats a
    token of the prompt, and no token attends to it.

    Args:
        prompts: tokens of each prompt.
        rows: own tokens of each prompt's rows; zero is allowed.
        keep: keep keys and values for a `Rollout`: `kept[layer]` holds the prompts' keys and values, each
            (prompts, key-value heads, longest prompt, head size), and the rows', each
            (rows, key-value heads, longest row, head size).
    """

    def __init__(self, prompts: list[int], rows: list[list[int]], device: torch.device, keep: bool = False):
        self.prompts, self.rows = prompts, rows
        self.kept = {} if keep else None
        group, first, starts, end = [], [], [], 0
        for number, (prompt, own) in enumerate(zip(prompts, rows)):
            first.append(end)
            end += prompt
            for count in own:
                group.append(number)
                starts.append(end)
                end += count
        lengths = [count for own in rows for count in own]
        far, near = torch.arange(max(prompts)), torch.arange(max(lengths, default=0))
        prompts, group, first, starts, lengths = map(torch.tensor, (prompts, group, first, starts, lengths))
        of_prompt, of_row = far < prompts[:, None], near < lengths[:, None]
        prompt_places = torch.where(of_prompt, first[:, None] + far, first[:, None])
        row_places = torch.where(of_row, starts[:, None] + near, first[group][:, None])
        real, real_of_prompt = (x.flatten().nonzero()[:, 0] for x in (of_row, of_prompt))
        own = row_places.flatten()[real]
        order = torch.empty(end, dtype=torch.long)
        order[prompt_places.flatten()[real_of_prompt]] = real_of_prompt
        order[own] = of_prompt.numel() + real
        asked = torch.zeros(of_row.numel(), dtype=torch.long)
        asked[real] = torch.arange(len(real))
        sees = torch.ones(len(near), len(near), dtype=torch.bool).tril()
        sees = [of_prompt[group][:, None], sees[None]]
        sees = torch.cat([x.expand(len(group), len(near), -1) for x in sees], -1)[:, None]

        self.own = own.to(device)
        """Places of the rows' own tokens: what the last layer, and so the backbone, returns."""
        self.group = group.to(device)
        """Each row's prompt."""
        self.prompt_places, self.row_places = prompt_places.to(device), row_places.to(device)
        """Places of the tokens of each prompt and of each row, padded."""
        self.asked = asked.view_as(row_places).to(device)
        """The same of each row, among the rows' own tokens."""
        self.order, self.real = order.to(device), real.to(device)
        """Place of each token, and of each own token, among the padded ones (of prompts and rows, and of rows)."""
        self.sees = sees.to(device)
        """(rows, 1, longest row, longest prompt + longest row)"""

    def attend(self, module, query, key, value):
        """query: (tokens, heads, head size), of all tokens or of the rows' own; key and value: of all, with fewer heads.

        Returns as query.
        """
        of_all = len(query) == len(key)
        prompt, own = ([_padded(x, places) for x in (key, value)] for places in (self.prompt_places, self.row_places))
        if self.kept is not None:
            self.kept[module.layer_idx] = (*prompt, *own)
        parts = []
        if of_all:
            parts.append(attention(_padded(query, self.prompt_places), *prompt, module.scaling))
        query = _padded(query, self.row_places if of_all else self.asked)
        seen = [torch.cat([x[self.group], one], 2) for x, one in zip(prompt, own)]
        parts.append(attention(query, *seen, module.scaling, self.sees))
        flat = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])
        return flat.index_select(0, self.order if of_all else self.real)


def _padded(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """x: (tokens, heads, head size); places: (rows, tokens of a row). Returns (rows, heads, tokens of a row, head size)."""
    return x.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


class Rollout:
    """One new token of each unfinished row: it sees its prompt, kept once for all its rows, and its own past.

    Keys and values lie in slots, as many for each prompt; a row that has ended leaves its slot empty.

    Args:
        prefill: the pass over prompts and rows, run with `keep`; what it has kept is taken away from it.
        room: new tokens that a row may get.
    """

    def __init__(self, prefill: Packed, room: int):
        sizes = [len(own) for own in prefill.rows]
        longest, self.slots = max(prefill.prompts), max(sizes)
        self.length = max(max(own) for own in prefill.rows)
        """Places taken in each slot."""
        device = prefill.own.device
        taken = torch.arange(self.slots) < torch.tensor(sizes)[:, None]
        self.place = taken.flatten().nonzero()[:, 0].to(device)
        """Each row's slot among prompts x slots."""
        self.prompts, self.own = {}, {}
        """Layer: (key or value, prompts, heads, longest, head size), and
        (key or value, prompts, heads, slots, room, head size)."""
        slot = self.place // self.slots, self.place % self.slots
        while prefill.kept:
            layer, (key, value, *rows) = prefill.kept.popitem()
            self.prompts[layer] = torch.stack([key, value])
            heads, dim = key.shape[1], key.shape[-1]
            own = key.new_zeros(2, len(sizes), heads, self.slots, self.length + room, dim)
            own.transpose(2, 3)[:, *slot, :, : self.length] = torch.stack(rows)
            self.own[layer] = own
        far = torch.arange(longest) >= torch.tensor(prefill.prompts)[:, None]
        own = [own + [self.length] * (self.slots - len(own)) for own in prefill.rows]
        near = torch.arange(self.length) >= torch.tensor(own)[..., None]
        far = far[:, None].expand(-1, self.slots, -1)
        self.padding = torch.cat([far, near], -1)[:, None, :, None].to(device)
        """(prompts, 1, slots, 1, longest prompt + longest own part)"""
        self.padded = bool(self.padding.any())

    def keep(self, alive: torch.Tensor) -> None:
        """Forget the rows that have ended. alive: (rows,), bool."""
        self.place = self.place[alive]
        prompt = self.place // self.slots
        left, prompt, sizes = prompt.unique_consecutive(return_inverse=True, return_counts=True)
        count, slots = len(self.padding), int(sizes.max())
        if len(left) == count and slots == self.slots:
            return
        first = sizes.cumsum(0) - sizes
        place = prompt * slots + torch.arange(len(prompt), device=prompt.device) - first[prompt]
        slot = torch.zeros(len(left) * slots, dtype=torch.long, device=place.device)
        slot[place] = self.place % self.slots
        old = left[:, None], slot.view(-1, slots)
        # One layer after the other: old and new of all at once would be twice the memory.
        for layer, own in self.own.items():
            self.own[layer] = own.transpose(2, 3)[:, *old].transpose(2, 3).contiguous()
            self.prompts[layer] = self.prompts[layer][:, left]
        self.padding = self.padding[:, 0][old][:, None]
        self.place, self.slots = place, slots

    def attend(self, module, query, key, value):
        """query: (rows, heads, head size), key and value with fewer heads; returns as query."""
        with without_autocast(query):
            return self._attend(module, query, key, value)

    def _attend(self, module, query, key, value):
        own = self.own[module.layer_idx]
        prompts, heads, slots = own.shape[1:4]
        keys, values = self.prompts[module.layer_idx].flatten(1, 2)
        new, narrow = torch.stack([key, value], 1), query.dtype != torch.float32
        if not narrow:
            query = query * module.scaling
        full = len(query) == prompts * slots
        if not full:
            query, new = (
                x.new_zeros(prompts * slots, *x.shape[1:]).index_copy_(0, self.place, x) for x in (query, new)
            )
        new = new.unflatten(0, (prompts, slots)).permute(2, 0, 3, 1, 4)
        own_keys, own_values = self._put(own, new).flatten(1, 3)
        # To (prompts, key heads, slots, queries a key head, head size).
        query = query.view(prompts, slots, heads, -1, query.shape[-1]).transpose(1, 2).contiguous()
        far = _scores(query.flatten(0, 1).flatten(1, 2), keys)
        near = _scores(query.flatten(0, 2), own_keys)
        weights = [x.view(*query.shape[:-1], -1) for x in (far, near)]
        weights = self._hide(torch.cat(weights, -1))
        if narrow:
            weights = weights.mul_(module.scaling)
        weights = weights.softmax(-1).to(query.dtype)
        far, near = weights.split([keys.shape[1], own_keys.shape[1]], -1)
        out = torch.bmm(far.flatten(0, 1).flatten(1, 2), values).view(-1, *query.shape[3:])
        out = out.baddbmm_(near.flatten(0, 2), own_values).view_as(query)
        out = out.transpose(1, 2).reshape(prompts * slots, -1, query.shape[-1])
        return out if full else out[self.place]

    def _put(self, own, new):
        """Add a token's keys and values to a layer's; returns those that it sees."""
        own[..., self.length, :] = new
        return own[..., : self.length + 1, :]

    def _hide(self, weights):
        if self.padded:
            weights[..., : self.padding.shape[-1]].masked_fill_(self.padding, -torch.inf)
        return weights


def _scores(query, keys):
    """(batch, queries, keys) in float32: with Qwen2's biases scores are in the hundreds, where bfloat16 has steps of 1."""
    if query.dtype == torch.float32:
        return torch.bmm(query, keys.transpose(1, 2))
    if query.is_cuda:
        return torch.bmm(query, keys.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(query.float(), keys.float().transpose(1, 2))


def _attention(module, hidden_states, attention_mask=None, position_embeddings=None, asked=None, **kwargs):
    """Of the library's arguments those that a layout leaves a meaning; asked: places of the queries, all if None."""
    if not isinstance(attention_mask, (Packed, Rollout)):
        return type(module).forward(
            module, hidden_states, attention_mask=attention_mask,
            position_embeddings=position_embeddings, **kwargs,
        )  # fmt: skip
    of_all = [hidden_states[0], *(one[0, :, None] for one in position_embeddings)]
    some = of_all if asked is None else [one[asked] for one in of_all]
    heads = (-1, module.head_dim)
    query = rotate(module.q_proj(some[0]).unflatten(-1, heads), *some[1:])
    key = rotate(module.k_proj(of_all[0]).unflatten(-1, heads), *of_all[1:])
    value = module.v_proj(of_all[0]).unflatten(-1, heads)
    out = attention_mask.attend(module, query, key, value)
    return module.o_proj(out.flatten(1)[None]), None


def _last_layer(layer, hidden_states, attention_mask=None, **kwargs):
    """Of the prompts only keys and values are needed."""
    if not isinstance(attention_mask, Packed):
        return type(layer).forward(layer, hidden_states, attention_mask=attention_mask, **kwargs)
    own, normed = attention_mask.own, layer.input_layernorm(hidden_states)
    attended, _ = layer.self_attn(normed, attention_mask=attention_mask, asked=own, **kwargs)
    hidden = hidden_states[:, own] + attended
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def prepare_layers(network) -> str | None:
    """Let a model's language model take a layout in place of its attention mask, with patched layers.

    The patch stays: activation checkpointing runs layers again in the backward pass. An unsupported model is left as it is.

    Args:
        network: a model with a head, without PEFT's wrapper.

    Returns:
        Why the model does not support shared prompts, or None.
    """
    if network.config.model_type not in MODELS:
        return f"a model of type {network.config.model_type}"
    backbone, config = network.model, network.config.get_text_config()
    if set(config.layer_types) != {"full_attention"}:
        return "the model has attention of other kinds than full"
    if config.attention_dropout:
        return "the model has dropout in its attention"
    replace_forward(backbone.language_model.norm, rms_norm)
    replace_forward(backbone.language_model.layers[-1], _last_layer)
    for layer in backbone.language_model.layers:
        replace_forward(layer.self_attn, _attention)
        if layer.mlp.config.hidden_act == "silu":
            replace_forward(layer.mlp, gated)
        replace_forward(layer.input_layernorm, rms_norm)
        replace_forward(layer.post_attention_layernorm, rms_norm)
        for module in layer.modules():
            if isinstance(module, LoraLinear):
                replace_forward(module, adapted)
    return None


@dataclass
class Prompt:
    """What some rows of a batch begin with, their images included."""

    ids: torch.Tensor
    """(tokens,)"""
    pixels: torch.Tensor | None
    """(patches of all its images, patch size)"""
    grid: torch.Tensor | None
    """(images, 3)"""
    rows: list[int] = field(default_factory=list)

    def positions(self, backbone) -> torch.Tensor:
        """M-RoPE positions, (3, tokens)."""
        kinds = (self.ids == backbone.config.image_token_id).int()
        return backbone.get_rope_index(self.ids[None], kinds[None], image_grid_thw=self.grid)[0][:, 0]


def shared_prompts(
    ids: list[torch.Tensor],
    pixels: torch.Tensor | None,
    grid: torch.Tensor | None,
    images: list[int] | None,
    by_image: int | None = None,
) -> tuple[list[Prompt], list[torch.Tensor]]:
    """What rows share, by content: TRL shuffles rows, so their order says nothing.

    Args:
        ids: token ids of each row, without padding.
        pixels: patch rows of all images, row after row.
        grid: (all images, 3).
        images: number of images of each row.
        by_image: None puts rows with equal ids and images together; the image token's number, rows with equal images
            and equal ids up to the last of them.

    Returns:
        The prompts, as long as can be shared, and of each row its ids after the prompt: one at least.
    """
    pictures = [(None, None, ())] * len(ids)
    if pixels is not None:
        grids = grid.split(images)
        patches = pixels.split([int(one.prod(-1).sum()) for one in grids])
        pictures = [(p, g, tuple(patch_keys(p, g))) for p, g in zip(patches, grids)]
    found = {}
    for row, (tokens, (*picture, keys)) in enumerate(zip(ids, pictures)):
        same = tokens
        if by_image is not None:
            last = (tokens == by_image).nonzero()
            same = tokens[: int(last[-1]) + 1 if len(last) else 0]
        prompt = found.setdefault((tuple(same.tolist()), keys), Prompt(tokens[:-1], *picture))
        count = min(len(tokens) - 1, len(prompt.ids))
        differs = (tokens[:count] != prompt.ids[:count]).nonzero()
        prompt.ids = prompt.ids[: int(differs[0]) if len(differs) else count]
        prompt.rows.append(row)
    rests = list(ids)
    for prompt in found.values():
        for row in prompt.rows:
            rests[row] = ids[row][len(prompt.ids) :]
    return list(found.values()), rests


def packed_inputs(backbone, prompts: list[Prompt], parts: list[torch.Tensor], keep: bool = False) -> dict:
    """The model's inputs for prompts, each followed by its rows' parts; the layout stands for the mask."""
    device = prompts[0].ids.device
    ids, positions = [], []
    for prompt in prompts:
        before = prompt.positions(backbone)
        ids += [prompt.ids, *(parts[row] for row in prompt.rows)]
        after = [torch.arange(len(parts[row]), device=device) for row in prompt.rows]
        positions += [before, *((before.amax() + 1 + one).expand(3, -1) for one in after)]
    layout = Packed(
        [len(prompt.ids) for prompt in prompts],
        [[len(parts[row]) for row in prompt.rows] for prompt in prompts],
        device,
        keep,
    )
    inputs = {
        "input_ids": torch.cat(ids)[None],
        "position_ids": torch.cat(positions, 1)[:, None],
        "attention_mask": {"full_attention": layout},
    }
    if any(prompt.pixels is not None for prompt in prompts):
        inputs["pixel_values"] = torch.cat([prompt.pixels for prompt in prompts])
        inputs["image_grid_thw"] = torch.cat([prompt.grid for prompt in prompts])
    return inputs
