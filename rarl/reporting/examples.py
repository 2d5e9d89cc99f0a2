"""Examples in the style of the paper's Tables 4 and 5, good and bad: chosen by rule, so that nobody picks them.

The rule: of all answers of a kind (such as "answer right, reasoning wrong"), the one whose question's id has the
smallest SHA-256. That is a draw that the data decide and that comes out the same in every run.
"""

import hashlib
from collections.abc import Callable

from rarl.records import Verdict
from rarl.registry import METHODS
from rarl.reporting.inputs import Run
from rarl.reporting.tables import MODELS, SETS

OWN = {
    "Answer and reasoning right": (1, 1),
    "Reasoning right, answer wrong": (0, 1),
    "Answer right, reasoning wrong": (1, 0),
    "Answer and reasoning wrong": (0, 0),
}
UNSEEN = {"Answer right": 1, "Answer wrong": 0}


def shown_model(run: Run) -> str:
    """The model whose answers are shown: the last of the methods that the run has, else the first model."""
    return next((m for m in reversed(METHODS) if m in run.params.models), run.params.models[0])


def draw(ids: list[str]) -> str | None:
    """The id with the smallest SHA-256; None of an empty list."""
    return min(ids, key=lambda id: hashlib.sha256(id.encode()).hexdigest(), default=None)


def examples(run: Run) -> dict[str, list[dict]]:
    """`own`: reasoning and answer on the own test (Table 4); `unseen`: each benchmark (Table 5)."""
    own = run.params.own_test
    kinds = {
        label: (lambda v, pair=pair: (v.prediction_score, v.reasoning_score) == pair) for label, pair in OWN.items()
    }
    judged = run.verdicts[shown_model(run), run.main_mode, own, run.main_judge]
    if all(verdict.reasoning_score is None for verdict in judged):
        kinds = _unseen_kinds()
    benchmarks = [name for name in run.params.sets_of(run.main_mode) if name != own]
    return {
        "own": _of_set(run, own, kinds),
        "unseen": [entry for name in benchmarks for entry in _of_set(run, name, _unseen_kinds())],
    }


def _unseen_kinds() -> dict[str, Callable[[Verdict], bool]]:
    return {label: (lambda v, score=score: v.prediction_score == score) for label, score in UNSEEN.items()}


def _of_set(run: Run, name: str, kinds: dict[str, Callable[[Verdict], bool]]) -> list[dict]:
    model = shown_model(run)
    verdicts = run.verdicts[model, run.main_mode, name, run.main_judge]
    at = {sample.id: i for i, sample in enumerate(run.samples[name])}
    found = []
    for label, is_kind in kinds.items():
        ids = [verdict.id for verdict in verdicts if is_kind(verdict)]
        if (id := draw(ids)) is not None:
            i = at[id]
            found.append(
                {
                    "label": label,
                    "count": len(ids),
                    "of": len(verdicts),
                    "set": name,
                    "set_label": SETS[name],
                    "model": model,
                    "model_label": MODELS[model],
                    "sample": run.samples[name][i],
                    "said": run.predictions[model, run.main_mode, name][i],
                    "verdict": verdicts[i],
                }
            )
    return found
