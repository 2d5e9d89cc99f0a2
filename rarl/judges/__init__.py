"""Judges: one rater's verdict on each prediction, in the schema of the paper's appendix B.

| kind | rates | by |
|---|---|---|
| `lexical` | every sample | the shared answer handling, word by word; the same on every machine |
| `semantic` | every sample | sentence embeddings for open answers and reasoning |
| `truth` | phantoms only | the phantom's findings; shares no code with the rewards |
| `llm` | every sample | a language model at an OpenAI-compatible endpoint, prompted as in appendix B |
| `local` | every sample | a chat model on this machine, with the same prompt |
| `human` | rated samples | people's ratings (`rarl rate`) |

A judge is a function `judge(samples, predictions, settings, *, name, encoder, truth_file) -> list[Verdict]` that takes
samples and predictions one for one, and returns one verdict for each, in order. `settings` is its block under `judge:`
in `params.yaml`. If the infrastructure failed (`Prediction.error`, no truth known), a verdict is unscored and has the
reason; if the model failed (no answer, cut off), the answer is wrong.

CONTRIBUTING.md shows how to add one. Import heavy packages inside functions.
"""

from collections.abc import Callable
from importlib import import_module


def judge_of(kind: str) -> Callable:
    """Return the judge function of a kind in `rarl.registry.JUDGE_KINDS`."""
    return import_module(f"{__name__}.{kind}").judge
