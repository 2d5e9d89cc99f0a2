"""Intervals, paired tests, baselines and agreement.

Every test here treats the questions as independent. Several questions can share an image, so the true uncertainty is
somewhat larger; the page says so. statsmodels, SciPy and scikit-learn are imported where they are used, because they
take a second to load.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from rarl.answers import matches, normalise
from rarl.records import Sample

#: Discordant pairs below which McNemar's test is computed exactly (binomial) instead of by chi-square.
EXACT_BELOW = 25


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share; both ends in 0..1.

    >>> [round(end, 4) for end in wilson(31, 150)]
    [0.1496, 0.2784]

    Raises:
        ValueError: `n` is 0.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n <= 0:
        raise ValueError("no interval of 0 scored answers")
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def mcnemar(first: Sequence[int], second: Sequence[int], confidence: float = 0.95) -> dict:
    """Paired comparison of two series of 0/1 scores on the same questions.

    Returns:
        `n`, `first_only` and `second_only` (questions that only one of them got right), `difference` in points (second
        minus first) with `low` and `high`, and McNemar's `p`. The interval is Bonett and Price's adjusted Wald
        interval of a paired difference (2012), which also holds when no pair is discordant.

    Raises:
        ValueError: the series differ in length or are empty.
    """
    from scipy.stats import norm
    from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test

    if len(first) != len(second) or not first:
        raise ValueError(f"two series of the same questions are needed, not {len(first)} and {len(second)}")
    n = len(first)
    pairs = Counter(zip(map(int, first), map(int, second)))
    first_only, second_only = pairs[1, 0], pairs[0, 1]
    discordant = first_only + second_only
    if discordant == 0:
        p = 1.0
    else:
        table = [[pairs[1, 1], first_only], [second_only, pairs[0, 0]]]
        p = float(mcnemar_test(table, exact=discordant < EXACT_BELOW).pvalue)
    up, down = (second_only + 1) / (n + 2), (first_only + 1) / (n + 2)
    half = norm.ppf((1 + confidence) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return {
        "n": n,
        "first_only": first_only,
        "second_only": second_only,
        "difference": 100 * (second_only - first_only) / n,
        "low": 100 * max(-1.0, up - down - half),
        "high": 100 * min(1.0, up - down + half),
        "p": min(p, 1.0),
    }


def scored_by_both(first: Sequence[int | None], second: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return the pairs of two series of scores of the same questions in which neither is None."""
    return [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]


def paired(first: Sequence[int | None], second: Sequence[int | None], confidence: float = 0.95) -> dict:
    """`mcnemar` on the questions that both series score, with both shares in percent; {} if there are none.

    >>> test = paired([1, 0, None, 1], [1, 1, 1, 0])
    >>> test["n"], round(test["first_percent"], 1), round(test["second_percent"], 1), test["difference"]
    (3, 66.7, 66.7, 0.0)
    """
    if not (both := scored_by_both(first, second)):
        return {}
    first, second = zip(*both)
    shares = {"first_percent": 100 * sum(first) / len(both), "second_percent": 100 * sum(second) / len(both)}
    return mcnemar(first, second, confidence) | shares


def unpaired(
    first: float, n_first: int, second: float, n_second: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's interval, in points, of the difference (second minus first) of two independent shares in percent."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    counts = (second * n_second / 100, n_second, first * n_first / 100, n_first)
    low, high = confint_proportions_2indep(*counts, method="newcomb", compare="diff", alpha=1 - confidence)
    return 100 * float(low), 100 * float(high)


def mean_change(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences of scores, in points, with its interval by Student's t.

    Raises:
        ValueError: `values` is empty.
    """
    from scipy.stats import ttest_1samp

    if not values:
        raise ValueError("no interval of no difference")
    mean = 100 * sum(values) / len(values)
    if len({*values}) == 1:  # no spread: t is not defined
        return mean, mean, mean
    low, high = ttest_1samp(values, 0).confidence_interval(confidence)
    return mean, 100 * float(low), 100 * float(high)


def holm(p_values: Sequence[float], alpha: float = 0.05) -> tuple[list[float], list[bool]]:
    """Holm's correction of one family of tests: adjusted p values, and which are below `alpha`."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return [], []
    reject, adjusted, _, _ = multipletests(p_values, alpha=alpha, method="holm")
    return [float(p) for p in adjusted], [bool(r) for r in reject]


def smallest_difference(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest true difference, in points, that McNemar's test on `n` pairs detects with `power`.

    Solves Connor's sample size formula (1987), n = (z_a sqrt(d) + z_b sqrt(d - x^2))^2 / x^2, for x, where d is
    `discordant`, the expected share of the pairs in which only one of the two is right. None if even a difference as
    large as d would be missed.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z_alpha, z_beta = norm.ppf(1 - alpha / 2), norm.ppf(power)

    def surplus(x: float) -> float:
        return x * math.sqrt(n) - z_alpha * math.sqrt(discordant) - z_beta * math.sqrt(max(0.0, discordant - x * x))

    if n <= 0 or discordant <= 0 or surplus(discordant) < 0:
        return None
    return 100 * float(brentq(surplus, 0.0, discordant))


def most_frequent_answers(train: Sequence[Sample], test: Sequence[Sample], by: Callable[[Sample], str]) -> list[str]:
    """Return for each test question the most frequent training answer of its group, spelled by `answers.normalise`.

    If training has no such group, the most frequent answer overall. `by` maps a sample to its group, such as its kind.
    """
    counts: dict[str | None, Counter] = {}
    for sample in train:
        for group in (by(sample), None):
            counts.setdefault(group, Counter())[normalise(sample.answers[0])] += 1
    # Ties: the first in the alphabet, so that the baseline does not depend on the order of rows.
    top = {group: min(c, key=lambda answer: (-c[answer], answer)) for group, c in counts.items()}
    return [top.get(by(sample), top.get(None, "")) for sample in test]


def baseline_scores(train: Sequence[Sample], test: Sequence[Sample], by: Callable[[Sample], str]) -> list[int]:
    """Return 1 for each test question that the most frequent answer of its group gets right, else 0."""
    answers = most_frequent_answers(train, test, by)
    return [int(matches(a, s.answers, s.kind, s.choices)) for a, s in zip(answers, test)]


def by_kind(sample: Sample) -> str:
    """Group samples by the kind of their question."""
    return sample.kind


def by_question(sample: Sample) -> str:
    """Group samples by the text of their question, whatever its case and spaces."""
    return " ".join(sample.question.casefold().split())


def agreement(first: Sequence[int], second: Sequence[int]) -> dict:
    """Agreement of two judges' 0/1 scores: `n`, `agreement` in percent, Cohen's `kappa`.

    `kappa` is None if both judges gave every answer the same score: chance agreement is then complete.
    """
    from sklearn.metrics import cohen_kappa_score

    n = len(first)
    if n == 0:
        return {"n": 0, "agreement": None, "kappa": None}
    same = 100 * sum(a == b for a, b in zip(first, second)) / n
    constant = len({*first, *second}) == 1
    return {"n": n, "agreement": same, "kappa": None if constant else float(cohen_kappa_score(first, second))}
