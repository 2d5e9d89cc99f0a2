"""One model's scores by every judge, each with its interval and its counts."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from rarl.params import Params
from rarl.records import Prediction, Sample, Verdict, predictions_file, read_records, verdicts_file
from rarl.registry import DATA_SETS
from rarl.reporting.inputs import in_order
from rarl.reporting.stats import by_question, wilson

#: The benchmark whose release the own test set is taken from, and its part without the own test's rows.
OVERLAPPING = DATA_SETS["silvar_med"].release
WITHOUT_OWN_TEST = f"{OVERLAPPING}_without_own_test"


def score_cell(predictions: Sequence[Prediction], verdicts: Sequence[Verdict], confidence: float) -> dict:
    """Scores of one model, mode, test set and judge, in percent with two decimals.

    `final` counts answers that were judged right among the `n` that were scored. What a judge or the
    machinery could not score is counted in `unscored` and in no share. An `empty` or `truncated`
    answer is the model's fault: it is scored, and counted beside the score.
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
    """The share of 1 among scores of 0 and 1 with its interval, in percent with two decimals; None where there are none."""
    if not scores:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = wilson(sum(scores), len(scores), confidence)
    part = sum(scores) / len(scores)
    return {name: round(100 * part, 2), f"{name}_low": round(100 * low, 2), f"{name}_high": round(100 * high, 2)}


#: What scores are broken down by: fields of the sample.
GROUPINGS = ("category", "kind", "modality", "origin")


#: What stands in the breakdown of each part's score.
BROKEN_DOWN = ("n", "unscored", "final", "final_low", "final_high")


@dataclass
class Judged:
    """One model's answers to one test set under one mode, with every judge's verdicts, in the samples' order."""

    mode: str
    name: str
    samples: list[Sample]
    predictions: list[Prediction]
    verdicts: dict[str, list[Verdict]]

    def cell(self, judge: str, rows: Sequence[int], confidence: float) -> dict:
        """The score of some of the rows."""
        verdicts = self.verdicts[judge]
        return score_cell([self.predictions[i] for i in rows], [verdicts[i] for i in rows], confidence)


def read_judged(params: Params, model: str) -> list[Judged]:
    """Everything that one model's scores are made of.

    Raises:
        UserError: a file of predictions or verdicts is missing or does not fit its questions.
    """
    samples = {name: read_records(params.samples_file(name), Sample) for name in params.test_sets}
    return [
        Judged(
            mode,
            name,
            samples[name],
            in_order(predictions_file(model, mode, name), samples[name], Prediction),
            {
                judge: in_order(verdicts_file(model, judge, mode, name), samples[name], Verdict)
                for judge in params.judges
            },
        )
        for mode in params.modes
        for name in params.sets_of(mode)
    ]


def breakdown(judged: list[Judged], params: Params) -> pd.DataFrame:
    """The scores of each part of a test set: columns mode, set, judge, by, value, n, unscored, final and its interval."""
    lines = []
    for part in judged:
        for judge in part.verdicts:
            for by in GROUPINGS:
                rows = defaultdict(list)
                for i, sample in enumerate(part.samples):
                    rows[getattr(sample, by)].append(i)
                for value in sorted(rows):
                    place = (part.mode, part.name, judge, by, value)
                    cell = part.cell(judge, rows[value], params.report.confidence)
                    lines.append((*place, *(cell[key] for key in BROKEN_DOWN)))
    return pd.DataFrame(lines, columns=["mode", "set", "judge", "by", "value", *BROKEN_DOWN])


def outside_own_test(samples: Sequence[Sample], own: Sequence[Sample]) -> list[bool]:
    """Which samples are not in the own test set, compared by image and question."""
    seen = {(sample.image_sha256, by_question(sample)) for sample in own}
    return [(sample.image_sha256, by_question(sample)) not in seen for sample in samples]


def score_model(judged: list[Judged], params: Params) -> dict:
    """mode -> test set -> judge -> cell."""
    confidence = params.report.confidence
    own = next(part.samples for part in judged if part.name == params.own_test)
    scores: dict = {}
    for part in judged:
        sets = scores.setdefault(part.mode, {})
        every = range(len(part.samples))
        sets[part.name] = {judge: part.cell(judge, every, confidence) for judge in part.verdicts}
        if part.name == OVERLAPPING:
            kept = [i for i, keep in enumerate(outside_own_test(part.samples, own)) if keep]
            sets[WITHOUT_OWN_TEST] = {judge: part.cell(judge, kept, confidence) for judge in part.verdicts}
    return scores
