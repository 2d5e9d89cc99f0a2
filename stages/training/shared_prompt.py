"""Attention over tokens of which many share one prompt: what makes a GRPO step run each prompt once.

The tokens of a pass lie in one row without padding. Which of them see each other says a layout, which takes the
attention mask's place in the library's own forward pass: `Packed` for prompts with their completions in full (the
policy, the reference, and the prefill), `Rollout` for one new token of each completion. Everything but attention
treats a token alone, so that the rest of the model needs no change, and the result is that of separate rows.
"""

from dataclasses import dataclass, field

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "shared_prompt"


class Packed:
    """Prompts, each followed by its completions: a completion sees the prompt and itself, causally.

    Args:
        prompts: tokens of each prompt.
        completions: tokens of each prompt's completions; zero is allowed.
        keep: keep the prompts' keys and values, `kept[layer][prompt]`, each (key-value heads, tokens, head size).
    """

    def __init__(
        self,
        prompts: list[int],
        completions: list[list[int]],
        device: torch.device,
        keep: bool = False,
    ):
        self.kept = {} if keep else None
        self.sizes, self.groups = [], []
        for prompt, own in zip(prompts, completions):
            self.sizes += [prompt, sum(own)]
            lengths, longest = torch.tensor(own, device=device), max(own, default=0)
            steps = torch.arange(longest, device=device)
            real = steps < lengths[:, None]  # (completions, longest): the rest is padding
            padded = ((lengths.cumsum(0) - lengths)[:, None] + steps).where(real, 0)
            sees = torch.ones(longest, prompt + longest, dtype=torch.bool, device=device)
            self.groups.append(
                (padded, real.flatten().nonzero()[:, 0], sees.tril(prompt)[None, None])
            )

    def attend(self, module, query, key, value, scaling):
        """query, key, value: (1, heads, tokens, head size); returns (1, tokens, heads, head size)."""
        queries, keys, values = (x.split(self.sizes, 2) for x in (query, key, value))
        parts = []
        for number, (padded, real, sees) in enumerate(self.groups):
            prompt = [x[2 * number] for x in (queries, keys, values)]
            parts.append(sdpa_attention_forward(module, *prompt, None, scaling=scaling)[0][0])
            if len(real):
                # Tokens in a row to (completions, heads, longest, head size), keys and values after the prompt's.
                q, k, v = (
                    x[2 * number + 1][0].index_select(1, padded.flatten())
                    .unflatten(1, padded.shape).transpose(0, 1)
                    for x in (queries, keys, values)
                )  # fmt: skip
                k, v = (
                    torch.cat([shared.expand(len(own), -1, -1, -1), own], 2)
                    for shared, own in zip(prompt[1:], (k, v))
                )
                out = sdpa_attention_forward(module, q, k, v, sees, scaling=scaling)[0]
                parts.append(out.flatten(0, 1).index_select(0, real))
        if self.kept is not None:
            pairs = zip(keys[::2], values[::2])
            self.kept[module.layer_idx] = [(k[0], v[0]) for k, v in pairs]
        return torch.cat(parts)[None]


class Rollout:
    """One new token of each unfinished completion: it sees its group's prompt, kept once, and its own past.

    Args:
        prompts: `Packed.kept` of the prefill.
        sizes: completions of each prompt, whose rows lie group after group.
        room: tokens that a completion may get.
    """

    def __init__(self, prompts: dict, sizes: list[int], room: int):
        self.prompts, self.sizes, self.room = prompts, list(sizes), room
        self.own = {}
        """Layer: (key or value, rows, key-value heads, room, head size)."""
        self.length = 0
        """Tokens of each completion before this step."""

    def keep(self, alive: torch.Tensor) -> None:
        """Forget the rows that have ended. alive: (rows,), bool."""
        self.own = {layer: own[:, alive] for layer, own in self.own.items()}
        sizes = [int(part.sum()) for part in alive.split(self.sizes)]
        for layer, prompts in self.prompts.items():
            self.prompts[layer] = [prompt for prompt, size in zip(prompts, sizes) if size]
        self.sizes = [size for size in sizes if size]

    def attend(self, module, query, key, value, scaling):
        """query, key, value: (1, heads, rows, head size); returns (1, rows, heads, head size)."""
        _, heads, rows, dim = key.shape
        layer = module.layer_idx
        if layer not in self.own:
            self.own[layer] = key.new_empty(2, rows, heads, self.room, dim)
        now = self.length
        self.own[layer][:, :, :, now] = torch.stack([key[0], value[0]]).transpose(1, 2)
        own_keys, own_values = self.own[layer][:, :, :, : now + 1]
        query = (query * scaling).view(heads, -1, rows, dim)  # the query heads of each key head
        near = query.permute(2, 0, 1, 3) @ own_keys.transpose(-1, -2)
        parts, start = [], 0
        for (keys, values), size in zip(self.prompts[layer], self.sizes):
            group = slice(start, start + size)
            start += size
            q = query[:, :, group].flatten(1, 2)
            far = q @ keys.transpose(-1, -2)  # (heads, queries a head x rows, prompt)
            own = near[group].permute(1, 2, 0, 3)
            weights = torch.cat([far, own.flatten(1, 2)], -1)
            weights = weights.softmax(-1, dtype=torch.float32).to(q.dtype)
            far, own = weights.split([keys.shape[1], now + 1], -1)
            own = own.view(heads, -1, size, now + 1).permute(2, 0, 1, 3) @ own_values[group]
            parts.append((far @ values).view(heads, -1, size, dim).permute(2, 0, 1, 3) + own)
        return torch.cat(parts).flatten(1, 2)[None]


def _attention(module, query, key, value, attention_mask, **kwargs):
    if isinstance(attention_mask, (Packed, Rollout)):
        return attention_mask.attend(module, query, key, value, kwargs["scaling"]), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def prepare_attention(backbone) -> None:
    """Let a backbone's language model take a layout for its attention mask; with a usual mask it runs SDPA as before.

    It stays so: activation checkpointing runs the attention again in the backward pass.
    """
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    backbone.language_model.config._attn_implementation = NAME


@dataclass
class Prompt:
    """A distinct prompt of a batch, with its images."""

    ids: torch.Tensor
    """(tokens,)"""
    pixels: torch.Tensor | None
    """(patches of all its images, patch size)"""
    grid: torch.Tensor | None
    """(images, 3)"""
    rows: list[int] = field(default_factory=list)
    """The batch's rows that have it."""

    def same(self, other: "Prompt") -> bool:
        if self.pixels is None:
            return True
        return torch.equal(self.grid, other.grid) and torch.equal(self.pixels, other.pixels)

    def positions(self, backbone) -> torch.Tensor:
        """M-RoPE positions, (3, tokens)."""
        kinds = (self.ids == backbone.config.image_token_id).int()
        return backbone.get_rope_index(self.ids[None], kinds[None], image_grid_thw=self.grid)[0][
            :, 0
        ]


def distinct_prompts(
    ids: list[torch.Tensor],
    pixels: torch.Tensor | None,
    grid: torch.Tensor | None,
    images: list[int] | None,
) -> list[Prompt]:
    """The prompts of a batch by content: token ids and pixels. TRL shuffles rows, so their order says nothing.

    Args:
        ids: token ids of each row's prompt, without padding.
        pixels: patch rows of all images, row after row.
        grid: (all images, 3).
        images: number of images of each row.
    """
    if pixels is None:
        pictures = [(None, None)] * len(ids)
    else:
        grids = grid.split(images)
        pictures = zip(pixels.split([int(one.prod(-1).sum()) for one in grids]), grids)
    found = {}
    for row, (tokens, picture) in enumerate(zip(ids, pictures)):
        prompt = Prompt(tokens, *picture)
        alike = found.setdefault(tuple(tokens.tolist()), [])
        first = next((one for one in alike if one.same(prompt)), None)
        if first is None:
            alike.append(first := prompt)
        first.rows.append(row)
    return [prompt for alike in found.values() for prompt in alike]


def joined_images(prompts: list[Prompt]) -> dict:
    """The model's image inputs for these prompts in a row."""
    if all(prompt.pixels is None for prompt in prompts):
        return {}
    return {
        "pixel_values": torch.cat([prompt.pixels for prompt in prompts]),
        "image_grid_thw": torch.cat([prompt.grid for prompt in prompts]),
    }
