"""Decoding on a CUDA device: a step is captured once per batch as a CUDA graph and replayed for each token.

A step of few rows is a thousand small kernels, and launching them one by one takes longer than running them. A graph
launches all of them at once, but always on the same memory: keys and values are in a cache of fixed size, and what
changes from token to token is on the device. A run on a CPU never imports this module.
"""

from functools import cache

import torch
from tqdm import tqdm

from rarl.models.shared_prefix.fused_decoder import FusedDecoder
from rarl.models.shared_prefix.kv_cache import KVCache

#: Steps before the captured one, in which the libraries set themselves up.
WARMUP = 2


class StaticKVCache(KVCache):
    """A cache of fixed size, whose steps run all slots, empty ones included."""

    def __init__(self, prefill, room: int):
        super().__init__(prefill, room)
        self.unseen = torch.nn.functional.pad(self.padding, (0, room), value=True)
        """(P, S, 1, 1, longest prefix + tokens of a slot), True for padding and for tokens to come."""
        self.now = torch.tensor([self.length], device=self.slot.device)
        self.far = self.unseen.shape[-1] - self.length - room

    def _compact(self):
        """Nothing: slots stay where they are."""

    def append(self, layer, new):
        """As `KVCache`, but for all tokens of a slot, those to come included."""
        rows = self.rows[layer]
        return rows.index_copy_(-2, self.now, new[..., None, :])

    def hide(self, scores, window=None):
        """As `KVCache`, and mask the scores of tokens to come."""
        return self._hide_before(window, scores.masked_fill_(self.unseen, -torch.inf), self.now)


class GraphedDecoder:
    """A `FusedDecoder` over all slots of a static cache, replayed as a CUDA graph from its third step on.

    If the capture fails, this is logged once and the process decodes without graphs.
    """

    _failed = False
    _first = None
    """The first graph of the process: later ones share its memory, so it must outlive them."""

    def __init__(self, step: FusedDecoder, state: StaticKVCache):
        self.step, self.state = step, state
        count, device = state.shape.numel(), state.slot.device
        self.tokens, self.positions = torch.zeros(2, count, dtype=torch.long, device=device)
        self.graph, self.steps = None, 0

    def __call__(self, tokens, positions, state):
        """As `FusedDecoder`: arguments and result are of the rows that have not ended."""
        self.tokens.index_copy_(0, state.slot, tokens)
        self.positions.index_copy_(0, state.slot, positions)
        self.steps += 1
        if self.graph is None and tokens.is_cuda:
            self._on_cuda()
        elif self.graph is None:
            self.output = self._run()
        if self.graph is not None:
            self.graph.replay()
        return self.output[state.slot]

    def _run(self):
        state = self.state
        state.unseen.index_fill_(-1, state.now + state.far, False)
        output = self.step(self.tokens, self.positions, state)
        state.now.add_(1)
        return output

    def _on_cuda(self):
        """Run a step, or capture one without running it."""
        device = self.tokens.device
        current, side = torch.cuda.current_stream(device), _stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            if self.steps != WARMUP + 1 or GraphedDecoder._failed or not self._capture():
                self.output = self._run()
        current.wait_stream(side)

    def _capture(self) -> bool:
        graph, pool = torch.cuda.CUDAGraph(), None
        if GraphedDecoder._first is None:
            torch.cuda.empty_cache()  # a capture cannot use the allocator's free blocks
        else:
            pool = GraphedDecoder._first.pool()
        try:
            # Other threads may use CUDA meanwhile, for instance to pin the memory of coming batches.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                output = self._run()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            GraphedDecoder._failed = True
            reason = str(error.__context__ or error).splitlines()[0]
            tqdm.write(f"decoding: no CUDA graph ({reason}); decoding without it, slower")
            return False
        self.graph, self.output = graph, output
        GraphedDecoder._first = GraphedDecoder._first or graph
        return True


@cache
def _stream(device) -> torch.cuda.Stream:
    """One stream for all captures, since each stream keeps some memory."""
    return torch.cuda.Stream(device)
