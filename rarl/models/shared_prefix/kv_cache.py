"""Keys and values of rows that are being decoded: each prefix's once, and each row's own tokens in a slot."""

import torch

from rarl.models.shared_prefix.layout import PackedLayout


class KVCache:
    """Each of P prefixes has S slots. A slot is empty where a prefix has fewer rows, or its row has ended.

    Args:
        prefill: layout of the pass over prefixes and rows; the keys and values that it kept move here.
        room: new tokens that a row may get.
    """

    def __init__(self, prefill: PackedLayout, room: int):
        sizes = torch.tensor([len(own) for own in prefill.rows])
        taken = torch.arange(int(sizes.max())) < sizes[:, None]
        self.shape = taken.shape
        """(P, S)"""
        self.slot = taken.flatten().nonzero()[:, 0].to(prefill.own.device)
        """Each row's slot among all P * S, in ascending order."""
        self.length = prefill.row_tokens.shape[1]
        """Tokens in a slot, padding included."""
        self.prefixes, self.rows = {}, {}
        """By layer: keys and values, (2, P, heads, longest prefix, head size), (2, P, S, heads, room, head size)."""
        while prefill.kept:
            layer, (prefix_key, prefix_value, row_key, row_value) = prefill.kept.popitem()
            self.prefixes[layer] = torch.stack([prefix_key, prefix_value])
            heads, size = row_key.shape[1], row_key.shape[3]
            rows = row_key.new_zeros(2, taken.numel(), heads, self.length + room, size)
            rows[:, self.slot, :, : self.length] = torch.stack([row_key, row_value])
            self.rows[layer] = rows.unflatten(1, self.shape)
        row_padding = torch.zeros(taken.numel(), self.length, dtype=torch.bool, device=self.slot.device)
        row_padding[self.slot] = ~prefill.row_real
        prefix_padding = ~prefill.prefix_real[:, None].expand(-1, self.shape[1], -1)
        self.padding = torch.cat([prefix_padding, row_padding.unflatten(0, self.shape)], -1)[:, :, None, None]
        """(P, S, 1, 1, longest prefix + longest row of the prefill)"""
        self.padded = bool(self.padding.any())
        self.places = self._places(prefill, room)
        """(P, S, 1, 1, longest prefix + tokens of a slot): a key's place in its row, 0 for the first new token."""
        self.prefilled = self.length

    def _places(self, prefill: PackedLayout, room: int) -> torch.Tensor:
        device = self.slot.device
        own = torch.zeros(self.shape.numel(), 1, dtype=torch.long, device=device)
        own[self.slot] = prefill.row_real.sum(1, keepdim=True)
        own = own.unflatten(0, self.shape)
        prefix = prefill.prefix_real.sum(1)[:, None, None]
        tokens = torch.arange(self.length, device=device) - own
        new = torch.arange(room, device=device).expand(*self.shape, -1)
        before = torch.arange(prefill.prefix_real.shape[1], device=device) - prefix - own
        return torch.cat([before, tokens, new], -1)[:, :, None, None]

    def drop(self, alive: torch.Tensor) -> None:
        """Empty the slots of rows that have ended, and free what no row is left for. alive: (rows,), bool."""
        self.slot = self.slot[alive]
        self._compact()

    def _compact(self) -> None:
        """Keep the prefixes that have rows, with as many slots as the one with most rows needs."""
        old_slots = self.shape[1]
        left, prefix, counts = (self.slot // old_slots).unique_consecutive(return_inverse=True, return_counts=True)
        slots = int(counts.max())
        if (len(left), slots) == self.shape:
            return
        rank = torch.arange(len(prefix), device=prefix.device) - (counts.cumsum(0) - counts)[prefix]
        old_slot = rank.new_zeros(len(left), slots)
        old_slot[prefix, rank] = self.slot % old_slots
        old = left[:, None], old_slot
        for layer, rows in self.rows.items():  # one by one: both copies of all would take twice the memory
            self.rows[layer] = rows[:, *old]
            self.prefixes[layer] = self.prefixes[layer][:, left]
        self.padding, self.places = self.padding[old], self.places[old]
        self.shape, self.slot = old_slot.shape, prefix * slots + rank

    def to_slots(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, ...) to (P, S, ...), with zeros in empty slots."""
        if len(x) != self.shape.numel():
            x = x.new_zeros(self.shape.numel(), *x.shape[1:]).index_copy_(0, self.slot, x)
        return x.unflatten(0, self.shape)

    def append(self, layer: int, new: torch.Tensor) -> torch.Tensor:
        """Add a token's keys and values, (2, P, S, heads, head size); `length` advances after all layers.

        Returns what the token attends to in its slot, (2, P, S, heads, tokens, head size).
        """
        rows = self.rows[layer]
        rows[..., self.length, :] = new
        return rows[..., : self.length + 1, :]

    def hide(self, scores: torch.Tensor, window: int | None = None) -> torch.Tensor:
        """Mask the scores of padding, and of tokens before a sliding window, in place.

        scores: (P, S, heads, queries, longest prefix + tokens of a slot).
        """
        if self.padded:
            scores[..., : self.padding.shape[-1]].masked_fill_(self.padding, -torch.inf)
        return self._hide_before(window, scores, self.length)

    def _hide_before(self, window, scores, length):
        """length: tokens in a slot before the new one, int or tensor."""
        if window is not None and window < self.places.shape[-1]:
            places = self.places[..., : scores.shape[-1]]
            scores.masked_fill_(places <= length - self.prefilled - window, -torch.inf)
        return scores
