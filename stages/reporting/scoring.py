"""One model's scores by every judge, each with its interval and its counts."""

from collections.abc import Sequence

import pandas as pd

from stages.params import Params
from stages.records import (
    Prediction,
    Sample,
    Verdict,
    predictions_file,
    read_records,
    verdicts_file,
)
from stages.reporting.inputs import in_order
from stages.reporting.statistics import by_question, wilson

#: SLAKE without the rows that are also the own test set, which is drawn from SLAKE.
WITHOUT_OWN_TEST = "slake_without_own_test"


def score_cell(
    predictions: Sequence[Prediction], verdicts: Sequence[Verdict], confidence: float
) -> dict:
    """Scores of one model, mode, test set and judge, in percent with two decimals.

    `final` counts answers that were judged right among the `n` that were scored. What a judge or the
    machinery could not score is counted in `unscored` and in no share. An `empty` or `truncated`
    answer is the model's fault: it is scored, and counted beside the score.
    """
    finals = [v.prediction_score for v in verdicts if v.prediction_score is not None]
    reasonings = [v.reasoning_score for v in verdicts if v.reasoning_score is not None]
    return {
        **_share("final", finals, confidence),
        **_share("reasoning", reasonings, confidence),
        "n": len(finals),
        "reasoning_n": len(reasonings),
        "unscored": len(verdicts) - len(finals),
        "empty": sum(not p.answer.strip() and p.error is None for p in predictions),
        "truncated": sum(p.truncated for p in predictions),
    }


def _share(name: str, scores: Sequence[int], confidence: float) -> dict:
    if not scores:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = wilson(sum(scores), len(scores), confidence)
    share = sum(scores) / len(scores)
    return {
        name: round(100 * share, 2),
        f"{name}_low": round(100 * low, 2),
        f"{name}_high": round(100 * high, 2),
    }


#: What scores are broken down by: fields of the sample.
GROUPINGS = ("category", "kind", "modality", "origin")


def breakdown(params: Params, model: str) -> pd.DataFrame:
    """The scores of each part of a test set: columns mode, set, judge, by, value, n, unscored, final and its interval."""
    lines = []
    for mode in params.modes:
        for name in params.sets_of(mode):
            samples = read_records(params.samples_file(name), Sample)
            predictions = in_order(predictions_file(model, mode, name), samples, Prediction)
            for judge in params.judges:
                verdicts = in_order(verdicts_file(model, judge, mode, name), samples, Verdict)
                for by in GROUPINGS:
                    for value in sorted({getattr(sample, by) for sample in samples}):
                        rows = [
                            i for i, sample in enumerate(samples) if getattr(sample, by) == value
                        ]
                        cell = score_cell(
                            [predictions[i] for i in rows],
                            [verdicts[i] for i in rows],
                            params.report.confidence,
                        )
                        place = {
                            "mode": mode,
                            "set": name,
                            "judge": judge,
                            "by": by,
                            "value": value,
                        }
                        lines.append(place | {key: cell[key] for key in BROKEN_DOWN})
    return pd.DataFrame(lines, columns=["mode", "set", "judge", "by", "value", *BROKEN_DOWN])


BROKEN_DOWN = ("n", "unscored", "final", "final_low", "final_high")


def outside_own_test(samples: Sequence[Sample], own: Sequence[Sample]) -> list[bool]:
    """Which samples are not in the own test set, compared by image and question."""
    seen = {(sample.image_sha256, by_question(sample)) for sample in own}
    return [(sample.image_sha256, by_question(sample)) not in seen for sample in samples]


def score_model(params: Params, model: str) -> dict:
    """mode -> test set -> judge -> cell.

    Raises:
        UserError: a file of predictions or verdicts is missing or does not fit its questions.
    """
    samples = {name: read_records(params.samples_file(name), Sample) for name in params.test_sets}
    kept = (
        outside_own_test(samples["slake"], samples[params.own_test]) if "slake" in samples else []
    )
    confidence = params.report.confidence
    scores: dict = {}
    for mode in params.modes:
        scores[mode] = {}
        for name in params.sets_of(mode):
            predictions = in_order(predictions_file(model, mode, name), samples[name], Prediction)
            for judge in params.judges:
                verdicts = in_order(verdicts_file(model, judge, mode, name), samples[name], Verdict)
                scores[mode].setdefault(name, {})[judge] = score_cell(
                    predictions, verdicts, confidence
                )
                if name == "slake":
                    scores[mode].setdefault(WITHOUT_OWN_TEST, {})[judge] = score_cell(
                        [p for p, keep in zip(predictions, kept) if keep],
                        [v for v, keep in zip(verdicts, kept) if keep],
                        confidence,
                    )
    return scores
