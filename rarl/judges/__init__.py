"""Judges: what one rater says of each prediction, in the schema of the paper's appendix B.

| kind | rates | by |
|---|---|---|
| `lexical` | every sample | the shared answer handling, word by word; the same on every machine |
| `semantic` | every sample | sentence embeddings for open answers and reasoning |
| `truth` | phantoms only | what was drawn; shares no code with the rewards |
| `llm` | every sample | a language model at an OpenAI-compatible endpoint, asked as in appendix B |
| `local` | every sample | the same question to a chat model on this machine |

A judge is a function `judge(samples, predictions, settings, *, name, encoder, truth_file) ->
list[Verdict]`, one verdict for each prediction, in order. `settings` is its block under `judge:` in `params.yaml`.
Where the machinery failed (`Prediction.error`, no truth known) a verdict is unscored and says why;
where the model failed (no answer, cut off) the answer is wrong.

CONTRIBUTING.md shows how to add one. Import heavy packages inside functions.
"""

from collections.abc import Callable
from importlib import import_module


def judge_of(kind: str) -> Callable:
    """The judge function of a kind in `rarl.registry.JUDGE_KINDS`."""
    return import_module(f"{__name__}.{kind}").judge
