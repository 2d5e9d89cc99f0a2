"""One model's scores by every judge, each with its interval and its counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd

from rarl.params import Params
from rarl.records import Prediction, Sample, Verdict, predictions_file, verdicts_file
from rarl.registry import DATA_SETS
from rarl.reporting.inputs import Run, in_order
from rarl.reporting.stats import by_question, wilson

#: The benchmark whose release the own test set is taken from, and its part without the own test's rows.
OVERLAPPING = DATA_SETS["silvar_med"].release
WITHOUT_OWN_TEST = f"{OVERLAPPING}_without_own_test"


def score_cell(predictions: Sequence[Prediction], verdicts: Sequence[Verdict], confidence: float) -> dict:
    """Return the scores of one model, mode, test set and judge, in percent with two decimals.

    `final` is the share of answers judged right among the `n` that were scored. Answers that could not be generated or
    judged are counted in `unscored` and in no share. An `empty` or `truncated` answer is the model's fault: it is
    scored, and also counted.
    """
    finals = [v.prediction_score for v in verdicts if v.prediction_score is not None]
    reasonings = [v.reasoning_score for v in verdicts if v.reasoning_score is not None]
    return {
        **share("final", finals, confidence),
        **share("reasoning", reasonings, confidence),
        "n": len(finals),
        "reasoning_n": len(reasonings),
        "unscored": len(verdicts) - len(finals),
        "empty": sum(not p.answer.strip() and p.error is None for p in predictions),
        "truncated": sum(p.truncated for p in predictions),
    }


def share(name: str, scores: Sequence[int], confidence: float) -> dict:
    """Return the share of 1 among 0/1 scores and its interval, in percent with two decimals; None if there are none.

    >>> share("final", [1, 1, 0, 1], 0.95)
    {'final': 75.0, 'final_low': 30.06, 'final_high': 95.44}
    """
    if not scores:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = wilson(sum(scores), len(scores), confidence)
    shares = {name: sum(scores) / len(scores), f"{name}_low": low, f"{name}_high": high}
    return {key: round(100 * value, 2) for key, value in shares.items()}


#: The fields of a sample that scores are broken down by.
GROUPINGS = ("category", "kind", "modality", "origin")
#: The columns of the breakdown that are taken from a cell.
BROKEN_DOWN = ("n", "unscored", "final", "final_low", "final_high")


@dataclass
class Judged:
    """One model's answers to one test set under one mode, with every judge's verdicts, in the order of the samples."""

    mode: str
    name: str
    samples: list[Sample]
    predictions: list[Prediction]
    verdicts: dict[str, list[Verdict]]

    def cell(self, judge: str, rows: Sequence[int], confidence: float) -> dict:
        """Return the scores over some of the rows."""
        verdicts = self.verdicts[judge]
        return score_cell([self.predictions[i] for i in rows], [verdicts[i] for i in rows], confidence)

    def cells(self, rows: Sequence[int], confidence: float) -> dict[str, dict]:
        """Return judge -> scores over some of the rows."""
        return {judge: self.cell(judge, rows, confidence) for judge in self.verdicts}


def read_judged(params: Params, model: str) -> list[Judged]:
    """Read what one model's scores are computed from.

    Raises:
        UserError: a file of predictions or verdicts is missing or does not match its questions.
    """
    run = Run(params)
    judged = []
    for mode, name in run.places:
        samples = run.samples[name]
        predictions = in_order(predictions_file(model, mode, name), samples, Prediction)
        verdicts = {
            judge: in_order(verdicts_file(model, judge, mode, name), samples, Verdict) for judge in params.judges
        }
        judged.append(Judged(mode, name, samples, predictions, verdicts))
    return judged


def breakdown(judged: list[Judged], params: Params) -> pd.DataFrame:
    """Return the main numbers of each part of a test set, by each of `GROUPINGS` and judge."""
    lines = []
    for part in judged:
        groups = [
            (by, value, [i for i, sample in enumerate(part.samples) if getattr(sample, by) == value])
            for by in GROUPINGS
            for value in sorted({getattr(sample, by) for sample in part.samples})
        ]
        for judge, (by, value, rows) in product(part.verdicts, groups):
            cell = part.cell(judge, rows, params.report.confidence)
            lines.append((part.mode, part.name, judge, by, value, *(cell[key] for key in BROKEN_DOWN)))
    return pd.DataFrame(lines, columns=["mode", "set", "judge", "by", "value", *BROKEN_DOWN])


def outside_own_test(samples: Sequence[Sample], own: Sequence[Sample]) -> list[bool]:
    """Return for each sample whether it is not in the own test set, compared by image and question."""
    seen = {(sample.image_sha256, by_question(sample)) for sample in own}
    return [(sample.image_sha256, by_question(sample)) not in seen for sample in samples]


def score_model(judged: list[Judged], params: Params) -> dict:
    """Return mode -> test set -> judge -> cell."""
    own = next(part.samples for part in judged if part.name == params.own_test)
    scores: dict = {}
    for part in judged:
        sets = scores.setdefault(part.mode, {})
        sets[part.name] = part.cells(range(len(part.samples)), params.report.confidence)
        if part.name == OVERLAPPING:
            kept = [i for i, keep in enumerate(outside_own_test(part.samples, own)) if keep]
            sets[WITHOUT_OWN_TEST] = part.cells(kept, params.report.confidence)
    return scores
