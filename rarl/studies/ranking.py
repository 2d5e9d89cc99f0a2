"""How well a measure ranks right texts above wrong ones, with bootstrap intervals over cases."""

from collections.abc import Callable, Sequence

import numpy as np

from rarl.studies.reasoning_texts import KINDS, REPEATED, RIGHT, SAME_STYLE, WRONG, Case

RESAMPLES = 2000
Scores = dict[str, np.ndarray]


def score_cases(cases: Sequence[Case], score: Callable[[list[tuple[str, str]]], list[float]]) -> Scores:
    """Score every text against its case's annotation: kind → array [cases], NaN for missing texts."""
    at = [(row, kind) for row, case in enumerate(cases) for kind in case.texts]
    pairs = [(cases[row].texts[kind], cases[row].annotation) for row, kind in at]
    scores = {kind: np.full(len(cases), np.nan) for kind in (*KINDS, *SAME_STYLE.values())}
    for (row, kind), value in zip(at, score(pairs), strict=True):
        scores[kind][row] = value
    return scores


def rate(scores: Scores, seed: int) -> dict[str, np.ndarray]:
    """Return what is reported of one measure, each an array [1 + RESAMPLES]: the value, then resampled values.

    Cases are resampled with replacement, all texts of a case together. Equal seeds sample equal cases, so that two
    measures can be compared resample by resample.

    Returns:
        * `first`: share of right texts that score above every wrong text of their case (except `repeated`);
          `first/<style>`: of the right texts in one style.
        * `auc/<kind>`: probability that a right text scores above a wrong one of that kind, of any two cases, ties
          counting half; `within/<kind>`: of the same case.
        * `same/<kind>/<style>`: `within`, right and wrong text in the same style.
    """
    count = len(scores[RIGHT[0]])
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    draws = np.vstack([np.ones(count), draws])  # how often each case is sampled
    right = np.stack([scores[style] for style in RIGHT])  # [styles, cases]
    best_wrong = np.nanmax(np.stack([scores[kind] for kind in WRONG]), axis=0)
    found = {"first": draws @ (right > best_wrong).mean(0) / count}
    for style in RIGHT:
        found[f"first/{style}"] = draws @ (scores[style] > best_wrong) / count
    for kind in (*WRONG, REPEATED):
        there = np.flatnonzero(~np.isnan(scores[kind]))
        above = _above(right[:, :, None], scores[kind][there]).mean(0)  # [cases, wrong texts]
        wrong = draws[:, there]
        found[f"auc/{kind}"] = (draws @ above * wrong).sum(1) / np.maximum(count * wrong.sum(1), 1)
        found[f"within/{kind}"] = wrong @ above[there, np.arange(len(there))] / np.maximum(wrong.sum(1), 1)
    for (kind, style), name in SAME_STYLE.items():
        there = np.flatnonzero(~np.isnan(scores[name]))
        above = _above(scores[style][there], scores[name][there])
        found[f"same/{kind}/{style}"] = draws[:, there] @ above / np.maximum(draws[:, there].sum(1), 1)
    return found


def _above(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return 1 if right is above wrong, 0.5 if they tie."""
    return (right > wrong) + 0.5 * (right == wrong)


def interval(values: np.ndarray) -> list[float]:
    """Return the value and its 95 % bootstrap percentiles."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return [round(float(value), 3) for value in (values[0], low, high)]
