"""Measured scores in a model card's metadata: the hub's `model-index`.

A training writes its card before there are scores. They are added where a folder is made that leaves the pipeline:
`rarl merge` and `rarl publish`.
"""

from collections.abc import Iterator

from rarl.params import Params
from rarl.sharing.model_card import is_phantom

#: Score of a cell -> the metric's identifier.
METRICS = {"final": "accuracy", "reasoning": "reasoning"}


def eval_results(scores: dict, params: Params) -> list:
    """Return the hub's `EvalResult` of each test set, judge and score in the main mode, in percent.

    A metric's name has the interval, because the hub's pages show names and values only; `args` has all numbers.
    """
    from huggingface_hub import EvalResult

    from rarl.reporting.inputs import Run
    from rarl.reporting.tables import SETS

    mode, confidence = Run(params).main_mode, params.report.confidence
    kind, suffix = ("phantom-", ", synthetic images") if is_phantom(params) else ("", "")
    results = []
    for name, judge, score, cell in _cells(scores.get(mode, {})):
        low, high = cell[f"{score}_low"], cell[f"{score}_high"]
        count, effective = ("n", "n_effective") if score == "final" else ("reasoning_n", "reasoning_n_effective")
        results.append(
            EvalResult(
                task_type="visual-question-answering",
                task_name="Visual Question Answering",
                dataset_type=kind + name.replace("_", "-"),
                dataset_name=SETS[name] + suffix,
                dataset_split="test",
                metric_type=METRICS[score],
                metric_name=f"{METRICS[score]} in %, {judge} judge ({100 * confidence:g} % interval {low} to {high})",
                metric_value=cell[score],
                metric_args={
                    "judge": judge,
                    "prompt": mode,
                    "confidence": confidence,
                    "low": low,
                    "high": high,
                    "questions": cell[count],
                    "effective_questions": cell[effective],
                },
                verified=False,
            )
        )
    return results


def _cells(sets: dict) -> Iterator[tuple]:
    """Yield (test set, judge, score, cell) of what was scored."""
    for name, judges in sets.items():
        for judge, cell in judges.items():
            for score in METRICS:
                if cell[score] is not None:
                    yield name, judge, score, cell


def with_results(text: str, name: str, results: list) -> str:
    """Return a model card with `model-index` metadata of the model `name`, which lists `results`."""
    from huggingface_hub import ModelCard

    card = ModelCard(text)
    if results:
        card.data.model_name, card.data.eval_results = name, results
    return str(card)
