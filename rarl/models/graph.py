"""Decoding on a CUDA device: a step is recorded once a batch and replayed for each token.

A step of few rows is a thousand small operations, and to ask for each takes longer than the device needs for it. A
CUDA graph asks for all of them at once, provided that each step does the same to the same memory: so keys and values
lie in a cache of fixed size, and what changes from token to token lies on the device.
"""

from functools import cache

import torch
from tqdm import tqdm

from rarl.models.shared_prompt import Rollout
from rarl.models.step import Step

#: New tokens from which recording a step pays, and steps before it, in which the libraries set themselves up.
PAYS, WARM = 16, 2


def replays(model, tokens: int) -> bool:
    """Whether decoding so many new tokens of this model is to be recorded."""
    return model.get_output_embeddings().weight.is_cuda and tokens >= PAYS and Step.fits(model)


class StaticRollout(Rollout):
    """A rollout with a static cache: all slots in each step, those of rows that have ended, too."""

    def __init__(self, prefill, room: int):
        super().__init__(prefill, room)
        self.unseen = torch.nn.functional.pad(self.padding, (0, room), value=True)
        """(prompts, 1, slots, 1, longest prompt + places in a slot): what no token sees, or not yet."""
        self.now = torch.tensor([self.length], device=self.place.device)
        self.far = self.unseen.shape[-1] - self.length - room

    def keep(self, alive):
        self.place = self.place[alive]

    def _put(self, own, new):
        own.index_copy_(-2, self.now, new[..., None, :])
        return own

    def _hide(self, weights):
        return weights.masked_fill_(self.unseen, -torch.inf)


class Replayed:
    """`Step` over all slots of a static cache; from the third token on a CUDA graph of it, where there is CUDA.

    Where the graph cannot be recorded, it says so and goes on without, and so do later ones.
    """

    _failed = False
    _first = None
    """The first graph of the process: its memory is that of each later one, so it must outlive them."""

    def __init__(self, step: Step, state: StaticRollout):
        self.step, self.state = step, state
        self.tokens, self.positions = torch.zeros(
            2, state.unseen[..., 0].numel(), dtype=torch.long, device=state.place.device
        )
        self.graph, self.steps = None, 0

    def __call__(self, tokens, positions, state):
        """As `Step`: arguments and result are of the rows that have not ended."""
        self.tokens.index_copy_(0, state.place, tokens)
        self.positions.index_copy_(0, state.place, positions)
        self.steps += 1
        if self.graph is None and tokens.is_cuda:
            self._on_cuda()
        elif self.graph is None:
            self.output = self._run()
        if self.graph is not None:
            self.graph.replay()
        return self.output[state.place]

    def _run(self):
        state = self.state
        state.unseen.index_fill_(-1, state.now + state.far, False)
        output = self.step(self.tokens, self.positions, state)
        state.now.add_(1)
        return output

    def _on_cuda(self):
        """Run a step, or record one without running it."""
        device = self.tokens.device
        here, aside = torch.cuda.current_stream(device), _stream(device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            if self.steps != WARM + 1 or Replayed._failed or not self._record():
                self.output = self._run()
        here.wait_stream(aside)

    def _record(self) -> bool:
        graph, pool = torch.cuda.CUDAGraph(), None
        if Replayed._first is None:
            torch.cuda.empty_cache()  # while recording, what is kept free cannot be taken
        else:
            pool = Replayed._first.pool()
        try:
            # Other threads may go on meanwhile, for instance one that pins memory for batches to come.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                output = self._run()
            finally:
                graph.capture_end()
        except RuntimeError as error:
            Replayed._failed = True
            reason = str(error.__context__ or error).splitlines()[0]
            tqdm.write(f"decoding: no CUDA graph ({reason}); without, slower")
            return False
        self.graph, self.output = graph, output
        Replayed._first = Replayed._first or graph
        return True


@cache
def _stream(device) -> torch.cuda.Stream:
    """One for all graphs, since each stream keeps some memory."""
    return torch.cuda.Stream(device)
