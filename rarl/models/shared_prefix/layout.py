"""Group rows by the prefix that they share, and pack prefixes and rows into one sequence without padding.

A packed sequence has P prefixes, each followed by its rows' own tokens: R rows and T tokens in total. Only attention
relates tokens to each other, so only attention needs a `PackedLayout`, which is passed to the model in place of the
attention mask. The results are those of separate rows.
"""

from dataclasses import dataclass, field

import torch
import xxhash
from torch.nn.utils.rnn import pad_sequence

#: `model_type` of models in which the tokens of an image attend to each other, later ones included.
BIDIRECTIONAL_IMAGES = ("gemma3",)


@dataclass
class Prefix:
    """Leading tokens that some rows of a batch share, with the images in them."""

    ids: torch.Tensor
    """(tokens,)"""
    pixels: torch.Tensor | None
    """(patches of all its images, patch size); without a grid as in `group_by_prefix`, of its images or of one row"""
    grid: torch.Tensor | None
    """(images, 3), or None for models without"""
    rows: list[int] = field(default_factory=list)
    pixel_mask: torch.Tensor | None = None
    """(1, tiles, height, width), False for padding of images (Idefics3, SmolVLM)"""

    def positions(self, backbone) -> torch.Tensor:
        """M-RoPE positions, (3, tokens), or those of models without M-RoPE, (1, tokens)."""
        if not hasattr(backbone, "get_rope_index"):
            return torch.arange(len(self.ids), device=self.ids.device)[None]
        kinds = (self.ids == backbone.config.image_token_id).int()
        return backbone.get_rope_index(self.ids[None], kinds[None], image_grid_thw=self.grid)[0][:, 0]

    def blocks(self, backbone) -> torch.Tensor:
        """Number of the image that a token belongs to, counted from 0, or -1, (tokens,)."""
        shown = self.ids == backbone.config.image_token_id
        starts = shown & ~torch.cat([shown.new_zeros(1), shown[:-1]])
        return torch.where(shown, starts.cumsum(0) - 1, -1)


def group_by_prefix(
    ids: list[torch.Tensor],
    pixels: torch.Tensor | None = None,
    grid: torch.Tensor | None = None,
    images: list[int] | None = None,
    image_token: int | None = None,
    pixel_mask: torch.Tensor | None = None,
) -> tuple[list[Prefix], list[torch.Tensor]]:
    """Group rows by content, since TRL shuffles them.

    Args:
        ids: token ids of each row, without padding.
        pixels: what the model's processor makes of all images, row after row: patches if there is a `grid`, otherwise
            (images, channels, height, width) or (rows, tiles, channels, height, width).
        grid: (all images, 3).
        images: number of images of each row.
        image_token: if None, rows with equal ids and images share a prefix; if an id, rows with equal images and equal
            ids up to their last image token do.
        pixel_mask: (rows, tiles, height, width), False for padding of images.

    Returns:
        The prefixes, as long as their rows allow, and each row's remaining ids: one at least.

    >>> prefixes, suffixes = group_by_prefix([torch.tensor([1, 2, 3]), torch.tensor([7, 8]), torch.tensor([1, 2, 3])])
    >>> [(prefix.ids.tolist(), prefix.rows) for prefix in prefixes]
    [([1, 2], [0, 2]), ([7], [1])]
    >>> [suffix.tolist() for suffix in suffixes]
    [[3], [8], [3]]
    """
    found = {}
    for row, (tokens, shown) in enumerate(zip(ids, _split_images(len(ids), pixels, grid, images, pixel_mask))):
        same = tokens
        if image_token is not None:
            last = (tokens == image_token).nonzero()
            same = tokens[: int(last[-1]) + 1 if len(last) else 0]
        key = tuple(same.tolist()), *map(_digest, shown)
        row_pixels, row_grid, row_mask = shown
        prefix = found.setdefault(key, Prefix(tokens[:-1], row_pixels, row_grid, pixel_mask=row_mask))
        count = min(len(tokens) - 1, len(prefix.ids))
        differs = (tokens[:count] != prefix.ids[:count]).nonzero()
        prefix.ids = prefix.ids[: int(differs[0]) if len(differs) else count]
        prefix.rows.append(row)
    suffixes = list(ids)
    for prefix in found.values():
        for row in prefix.rows:
            suffixes[row] = ids[row][len(prefix.ids) :]
    return list(found.values()), suffixes


def _split_images(rows: int, pixels, grid, images, pixel_mask) -> list[tuple]:
    """Pixels, grid and mask of each row, None where the model has none."""
    sizes, nothing = [1] * rows, [None] * rows
    if pixels is None:
        return list(zip(nothing, nothing, nothing))
    grids = nothing if grid is None else grid.split(images)
    if grid is not None:
        sizes = [int(one.prod(-1).sum()) for one in grids]
    elif pixels.ndim == 4:
        sizes = images
    masks = nothing if pixel_mask is None else pixel_mask.split(1)
    return list(zip(pixels.split(sizes), grids, masks))


def _digest(x: torch.Tensor | None) -> tuple | None:
    return x if x is None else (x.shape, xxhash.xxh3_128_hexdigest(x.cpu().contiguous().view(torch.uint8).numpy()))


class PackedLayout:
    """Which tokens of a packed sequence attend to which: a row's to its prefix and, causally, to the row itself.

    In layers with a sliding window a token attends to the last tokens only, of its prefix and its row together.

    Attention runs on padded prefixes, (P, longest prefix), and padded rows, (R, longest row). The layout holds the
    indices that lead there and back. Padding is token 0, to which no token attends.

    Args:
        prefixes: number of tokens of each prefix.
        rows: number of own tokens of each prefix's rows, which may be 0.
        device: of the indices.
        keep: whether the pass keeps keys and values, for a `KVCache`.
        blocks: for each prefix, the image of each token or -1: tokens of an image attend to each other in both
            directions. None if attention is causal.
    """

    def __init__(
        self,
        prefixes: list[int],
        rows: list[list[int]],
        device: torch.device,
        keep: bool = False,
        blocks: list[torch.Tensor] | None = None,
    ):
        self.rows, self._masks = rows, {}
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
        self._mask = torch.cat([prefix_mask, causal_mask], -1)[:, None].to(device)
        self._blocks = None if blocks is None else pad_sequence(blocks, batch_first=True, padding_value=-1)
        self._lengths = torch.tensor(prefixes, device=device)

    def masks(self, window: int | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """True where a token attends to a key, for layers with a sliding window of `window` tokens or without one.

        Returns:
            Of rows, (R, 1, longest row, longest prefix + longest row); and of prefixes, (P, 1, longest prefix, longest
            prefix), or None for causal attention.
        """
        if window not in self._masks:
            self._masks[window] = self._row_mask(window), self._prefix_mask(window)
        return self._masks[window]

    def _row_mask(self, window):
        row, total = self._mask.shape[2:]
        if window is None or window >= total:
            return self._mask
        own = torch.arange(row, device=self._mask.device)
        prefix = torch.arange(total - row, device=self._mask.device) - self._lengths[self.prefix_of_row][:, None]
        keys = torch.cat([prefix, own.expand(len(prefix), -1)], 1)  # counted from the row's first own token
        return self._mask & (own[:, None] - keys[:, None] < window)[:, None]

    def _prefix_mask(self, window):
        longest = self.prefix_tokens.shape[1]
        if self._blocks is None and (window is None or window >= longest):
            return None
        place = torch.arange(longest, device=self._mask.device)
        distance = (place[:, None] - place).expand(len(self._lengths), -1, -1)
        mask = distance >= 0
        if self._blocks is not None:
            mask = mask | (self._blocks[:, None] == self._blocks[..., None]) & (self._blocks[:, None] >= 0)
        return (mask if window is None else mask & (distance < window))[:, None]


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
        positions += [of_prefix, *((of_prefix.amax() + 1 + one).expand(len(of_prefix), -1) for one in after)]
    lengths = [[len(parts[row]) for row in prefix.rows] for prefix in prefixes]
    bidirectional = backbone.config.model_type in BIDIRECTIONAL_IMAGES
    blocks = [prefix.blocks(backbone) for prefix in prefixes] if bidirectional else None
    layout = PackedLayout([len(prefix.ids) for prefix in prefixes], lengths, device, keep, blocks)
    inputs = {
        "input_ids": torch.cat(ids)[None],
        "position_ids": torch.cat(positions, 1)[:, None].squeeze(0),
        "attention_mask": {"full_attention": layout},
    }
    shown = {"pixel_values": "pixels", "image_grid_thw": "grid", "pixel_attention_mask": "pixel_mask"}
    for name, field_name in shown.items():
        values = [getattr(prefix, field_name) for prefix in prefixes]
        if any(value is not None for value in values):
            inputs[name] = torch.cat(values)
    return inputs
