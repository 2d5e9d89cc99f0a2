"""Attention over rows of which many share one prompt: what lets a prompt be run once for all of them.

The tokens of a pass lie in one row without padding: a prompt, and behind it what each of its rows has besides. Which
tokens see each other says a layout, which takes the attention mask's place in the library's own forward pass: `Packed`
for whole rows (policy, reference, prefill), `Rollout` for one new token of each. Everything but attention treats a
token alone, so that the rest of the model needs no change, and the result is that of separate rows.
"""

from dataclasses import dataclass, field

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stages.models.features import patch_keys

NAME = "shared_prompt"
#: Models whose language model hands an attention mask on as it is given. (Qwen3-VL's builds its own.)
MODELS = ("qwen2_vl", "qwen2_5_vl")


class Packed:
    """Prompts, each followed by its rows' own tokens: these see the prompt and their own row, causally.

    Args:
        prompts: tokens of each prompt.
        rows: own tokens of each prompt's rows; zero is allowed.
        keep: keep keys and values for a `Rollout`: `kept[layer][prompt]` holds the prompt's, each
            (key-value heads, tokens, head size), and its rows', each (rows, key-value heads, longest, head size).
    """

    def __init__(
        self, prompts: list[int], rows: list[list[int]], device: torch.device, keep: bool = False
    ):
        self.prompts, self.rows = prompts, rows
        self.kept = {} if keep else None
        self.sizes, self.groups = [], []
        for prompt, own in zip(prompts, rows):
            self.sizes += [prompt, sum(own)]
            lengths, longest = torch.tensor(own, device=device), max(own, default=0)
            steps = torch.arange(longest, device=device)
            real = steps < lengths[:, None]  # (rows, longest): the rest is padding
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
                # Tokens in a row to (rows, heads, longest, head size), keys and values after the prompt's.
                q, *own = (
                    x[2 * number + 1][0].index_select(1, padded.flatten())
                    .unflatten(1, padded.shape).transpose(0, 1)
                    for x in (queries, keys, values)
                )  # fmt: skip
                if self.kept is not None:
                    kept = self.kept.setdefault(module.layer_idx, [])
                    kept.append((*(x[0] for x in prompt[1:]), *own))
                k, v = (
                    torch.cat([shared.expand(len(q), -1, -1, -1), one], 2)
                    for shared, one in zip(prompt[1:], own)
                )
                out = sdpa_attention_forward(module, q, k, v, sees, scaling=scaling)[0]
                parts.append(out.flatten(0, 1).index_select(0, real))
        return torch.cat(parts)[None]


class Rollout:
    """One new token of each unfinished row: it sees its prompt, kept once for all its rows, and its own past.

    Args:
        prefill: the pass over prompts and rows, run with `keep`; what it has kept is taken away from it.
        room: new tokens that a row may get.
    """

    def __init__(self, prefill: Packed, room: int):
        lengths = [length for own in prefill.rows for length in own]
        longest, self.length = max(prefill.prompts), max(lengths)
        self.prompts, self.own = {}, {}
        """Layer: (key or value, prompts, heads, longest, head size); (key or value, rows, heads, longest and room, head size)."""
        while prefill.kept:
            layer, kept = prefill.kept.popitem()
            heads, _, dim = kept[0][0].shape
            prompts = kept[0][0].new_zeros(2, len(kept), heads, longest, dim)
            own = prompts.new_zeros(2, len(lengths), heads, self.length + room, dim)
            row = 0
            for number, (k, v, own_k, own_v) in enumerate(kept):
                prompts[:, number, :, : k.shape[1]] = torch.stack([k, v])
                own[:, row : row + len(own_k), :, : own_k.shape[2]] = torch.stack([own_k, own_v])
                row += len(own_k)
            self.prompts[layer], self.own[layer] = prompts, own
        device = prompts.device
        self.sizes = torch.tensor([len(own) for own in prefill.rows], device=device)
        far = torch.tensor(prefill.prompts, device=device).repeat_interleave(self.sizes)
        near = torch.tensor(lengths, device=device)
        self.padding = torch.cat(
            [
                torch.arange(longest, device=device) >= far[:, None],
                torch.arange(self.length, device=device) >= near[:, None],
            ],
            1,
        )[:, None, None]
        """(rows, 1, 1, longest prompt + longest own part)"""
        self._place()

    def _place(self) -> None:
        self.slots = int(self.sizes.max())
        slots = torch.arange(self.slots, device=self.sizes.device) < self.sizes[:, None]
        self.place = None if slots.all() else slots.flatten().nonzero()[:, 0]
        """Each row's place among prompts x slots; None where all are taken."""
        self.padded = bool(self.padding.any())

    def keep(self, alive: torch.Tensor) -> None:
        """Forget the rows that have ended. alive: (rows,), bool."""
        for (
            layer
        ) in self.own:  # one after the other: old and new of all at once would be twice the memory
            self.own[layer] = self.own[layer][:, alive]
        self.padding = self.padding[alive]
        self.sizes = torch.stack([part.sum() for part in alive.split(self.sizes.tolist())])
        some = self.sizes > 0
        if not some.all():
            self.prompts = {layer: one[:, some] for layer, one in self.prompts.items()}
            self.sizes = self.sizes[some]
        self._place()

    def _by_prompt(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, heads, queries a head, n) to (prompts, heads, slots x queries a head, n); free slots hold zeros."""
        if self.place is not None:
            wide = x.new_zeros(len(self.sizes) * self.slots, *x.shape[1:])
            wide[self.place] = x
            x = wide
        return x.unflatten(0, (-1, self.slots)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: torch.Tensor) -> torch.Tensor:
        """And back."""
        x = x.unflatten(2, (self.slots, -1)).transpose(1, 2).flatten(0, 1)
        return x if self.place is None else x[self.place]

    def attend(self, module, query, key, value, scaling):
        """query, key, value: (1, heads, rows, head size); returns (1, rows, heads, head size)."""
        _, heads, rows, dim = key.shape
        own, now = self.own[module.layer_idx], self.length
        own[:, :, :, now] = torch.stack([key[0], value[0]]).transpose(1, 2)
        own_keys, own_values = own[:, :, :, : now + 1]
        keys, values = self.prompts[module.layer_idx]
        query = (query * scaling).view(heads, -1, rows, dim).permute(2, 0, 1, 3)
        far = self._by_row(self._by_prompt(query) @ keys.transpose(-1, -2))
        weights = torch.cat([far, query @ own_keys.transpose(-1, -2)], -1)
        if self.padded:
            weights[..., : self.padding.shape[-1]].masked_fill_(self.padding, -torch.inf)
        weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
        far, near = weights.split([keys.shape[2], now + 1], -1)
        out = self._by_row(self._by_prompt(far) @ values) + near @ own_values
        return out.flatten(1, 2)[None]


def _attention(module, query, key, value, attention_mask, **kwargs):
    if isinstance(attention_mask, (Packed, Rollout)):
        return attention_mask.attend(module, query, key, value, kwargs["scaling"]), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def prepare_attention(backbone) -> str | None:
    """Let a backbone's language model take a layout for its attention mask; with a usual mask it runs SDPA as before.

    It stays so: activation checkpointing runs the attention again in the backward pass.

    Returns:
        Why a model cannot, or None.
    """
    if backbone.config.model_type not in MODELS:
        return f"a model of type {backbone.config.model_type}"
    if set(backbone.language_model.config.layer_types) != {"full_attention"}:
        return "the model has attention of other kinds than full"
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    backbone.language_model.config._attn_implementation = NAME
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
        return backbone.get_rope_index(self.ids[None], kinds[None], image_grid_thw=self.grid)[0][
            :, 0
        ]


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


def packed_inputs(
    backbone, prompts: list[Prompt], parts: list[torch.Tensor], keep: bool = False
) -> dict:
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
