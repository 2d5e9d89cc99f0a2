"""Group rows by the prefix that they share, and pack prefixes and rows into one sequence without padding.

A packed sequence has P prefixes, each followed by its rows' own tokens: R rows and T tokens in total. Only attention
relates tokens to each other, so only attention needs a `PackedLayout`, which is passed to the model in place of the
attention mask. The results are those of separate rows.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.utils.rnn import pad_sequence

from rarl.models.features import patch_keys


@dataclass
class Prefix:
    """Leading tokens that some rows of a batch share, with the images in them."""

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


def group_by_prefix(
    ids: list[torch.Tensor],
    pixels: torch.Tensor | None = None,
    grid: torch.Tensor | None = None,
    images: list[int] | None = None,
    image_token: int | None = None,
) -> tuple[list[Prefix], list[torch.Tensor]]:
    """Group rows by content, since TRL shuffles them.

    Args:
        ids: token ids of each row, without padding.
        pixels: patches of all images, row after row.
        grid: (all images, 3).
        images: number of images of each row.
        image_token: if None, rows with equal ids and images share a prefix; if an id, rows with equal images and equal
            ids up to their last image token do.

    Returns:
        The prefixes, as long as their rows allow, and each row's remaining ids: one at least.

    >>> prefixes, suffixes = group_by_prefix([torch.tensor([1, 2, 3]), torch.tensor([7, 8]), torch.tensor([1, 2, 3])])
    >>> [(prefix.ids.tolist(), prefix.rows) for prefix in prefixes]
    [([1, 2], [0, 2]), ([7], [1])]
    >>> [suffix.tolist() for suffix in suffixes]
    [[3], [8], [3]]
    """
    shown = [(None, None, ())] * len(ids)
    if pixels is not None:
        grids = grid.split(images)
        patches = pixels.split([int(one.prod(-1).sum()) for one in grids])
        shown = [(p, g, tuple(patch_keys(p, g))) for p, g in zip(patches, grids)]
    found = {}
    for row, (tokens, (row_pixels, row_grid, keys)) in enumerate(zip(ids, shown)):
        same = tokens
        if image_token is not None:
            last = (tokens == image_token).nonzero()
            same = tokens[: int(last[-1]) + 1 if len(last) else 0]
        prefix = found.setdefault((tuple(same.tolist()), keys), Prefix(tokens[:-1], row_pixels, row_grid))
        count = min(len(tokens) - 1, len(prefix.ids))
        differs = (tokens[:count] != prefix.ids[:count]).nonzero()
        prefix.ids = prefix.ids[: int(differs[0]) if len(differs) else count]
        prefix.rows.append(row)
    suffixes = list(ids)
    for prefix in found.values():
        for row in prefix.rows:
            suffixes[row] = ids[row][len(prefix.ids) :]
    return list(found.values()), suffixes


class PackedLayout:
    """Which tokens of a packed sequence attend to which: a row's to its prefix and, causally, to the row itself.

    Attention runs on padded prefixes, (P, longest prefix), and padded rows, (R, longest row). The layout holds the
    indices that lead there and back. Padding is token 0, to which no token attends.

    Args:
        prefixes: number of tokens of each prefix.
        rows: number of own tokens of each prefix's rows, which may be 0.
        device: of the indices.
        keep: whether the pass keeps keys and values, for a `KVCache`.
    """

    def __init__(self, prefixes: list[int], rows: list[list[int]], device: torch.device, keep: bool = False):
        self.rows = rows
        self.kept = {} if keep else None
        """By layer: keys and values of padded prefixes, then of padded rows, (P or R, heads, tokens, head size)."""
        sizes = [[prefix, *own] for prefix, own in zip(prefixes, rows)]
        groups = torch.arange(sum(map(sum, sizes))).split(list(map(sum, sizes)))
        parts = [group.split(size) for group, size in zip(groups, sizes)]
        of_prefix = [part[0] for part in parts]
        of_row = [tokens for part in parts for tokens in part[1:]]
        prefix_tokens, prefix_real = _pad(of_prefix)
        row_tokens, row_real = _pad(of_row)
        real = torch.cat([prefix_real.flatten(), row_real.flatten()]).nonzero()[:, 0]
        own = torch.cat(of_row)
        prefix_of_row = torch.tensor([number for number, own in enumerate(rows) for _ in own])
        longest = row_tokens.shape[1]
        prefix_mask = prefix_real[prefix_of_row][:, None].expand(-1, longest, -1)
        causal_mask = torch.ones(longest, longest, dtype=torch.bool).tril().expand(len(of_row), -1, -1)

        self.own = own.to(device)
        """Positions of the rows' own tokens: the last layer, and so the backbone, returns only these."""
        self.prefix_of_row = prefix_of_row.to(device)
        self.prefix_tokens, self.prefix_real = prefix_tokens.to(device), prefix_real.to(device)
        """Positions of each prefix's tokens, padded, and which of them are no padding."""
        self.row_tokens, self.row_real = row_tokens.to(device), row_real.to(device)
        """Positions of each row's own tokens, padded, and which of them are no padding."""
        self.row_in_own = _pad(torch.arange(len(own)).split(list(map(len, of_row))))[0].to(device)
        """As `row_tokens`, but positions in `own`."""
        self.order = real[torch.cat([*of_prefix, *of_row]).argsort()].to(device)
        """Where each token is in the padded prefixes, followed by the padded rows."""
        self.own_order = row_real.flatten().nonzero()[:, 0].to(device)
        """Where each own token is in the padded rows."""
        self.mask = torch.cat([prefix_mask, causal_mask], -1)[:, None].to(device)
        """(R, 1, longest row, longest prefix + longest row), True where a row's token attends to a key."""


def _pad(parts) -> tuple[torch.Tensor, torch.Tensor]:
    """Index tensors as (parts, longest part), and which elements are no padding."""
    padded, lengths = pad_sequence(parts, batch_first=True), torch.tensor([len(part) for part in parts])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def packed_inputs(backbone, prefixes: list[Prefix], parts: list[torch.Tensor], keep: bool = False) -> dict:
    """The backbone's inputs for prefixes, each followed by its rows' own tokens, with a layout in place of the mask.

    parts: own token ids of each row of the batch. keep: as for `PackedLayout`.
    """
    device = prefixes[0].ids.device
    ids, positions = [], []
    for prefix in prefixes:
        of_prefix = prefix.positions(backbone)
        ids += [prefix.ids, *(parts[row] for row in prefix.rows)]
        after = [torch.arange(len(parts[row]), device=device) for row in prefix.rows]
        positions += [of_prefix, *((of_prefix.amax() + 1 + one).expand(3, -1) for one in after)]
    lengths = [[len(parts[row]) for row in prefix.rows] for prefix in prefixes]
    layout = PackedLayout([len(prefix.ids) for prefix in prefixes], lengths, device, keep)
    inputs = {
        "input_ids": torch.cat(ids)[None],
        "position_ids": torch.cat(positions, 1)[:, None],
        "attention_mask": {"full_attention": layout},
    }
    if any(prefix.pixels is not None for prefix in prefixes):
        inputs["pixel_values"] = torch.cat([prefix.pixels for prefix in prefixes])
        inputs["image_grid_thw"] = torch.cat([prefix.grid for prefix in prefixes])
    return inputs
