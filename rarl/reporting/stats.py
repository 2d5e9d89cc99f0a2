"""Intervals, paired tests, baselines and agreement, with questions about one image as one cluster.

Answers to questions about one image are alike, so n questions tell less than n questions about n images.
`effective_n` measures how much less, and an interval is that of this number of independent questions. The paired test
changes signs by image. With one question per image these are the intervals of Wilson, of Bonett and Price and of
Student, and McNemar's mid-p test. `rarl study clusters` checks coverage and false positives on simulated answers.

statsmodels, SciPy and scikit-learn are imported where they are used, because they take a second to load; of SciPy only
`scipy.special`, with the quantiles of `scipy.stats` to the last bit, where `rarl diff` needs it.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache

from rarl.answers.matching import matches
from rarl.answers.spelling import normalise
from rarl.records import Sample

#: The image of each question, such as its hash: questions with the same one are a cluster.
Images = Sequence[Hashable]


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
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


def share_interval(scores: Sequence[int], images: Images, confidence: float = 0.95) -> tuple[float, float, float]:
    """Wilson's interval of a share of 0/1 scores at the effective n, and that n.

    As in survey statistics (Korn and Graubard 1998; the modified Wilson limits of SAS's SURVEYFREQ).

    >>> [round(number, 3) for number in share_interval([1, 1, 0, 0, 1, 1], "aabbcd")]
    [0.178, 0.949, 2.349]
    """
    n = effective_n(scores, images, confidence)
    return *wilson(n * sum(scores) / len(scores), n, confidence), n


def effective_n(values: Sequence[float], images: Images, confidence: float = 0.95) -> float:
    """Return the number of independent questions that would be as informative about the mean of `values`.

    That is n over the `design_effect`. Student's t at images - 1 degrees of freedom replaces that at n - 1 (Korn and
    Graubard 1998), which matters for few images. With one question per image, n itself.

    Franco, Little, Louis and Slud (2019) recommend Wilson's interval at such an n, and rho from a model rather than
    the plain cluster-robust variance, with which intervals are too narrow.
    """
    n, clusters = len(values), len({*images})
    if clusters == n:
        return n
    return n / design_effect(values, images) * _few_images(n, clusters, confidence)


def design_effect(values: Sequence[float], images: Images) -> float:
    """Return Kish's design effect of the mean of `values`, 1 + (size - 1) rho.

    `size` is the number of questions about the image of an average question and rho the intra-cluster correlation by
    one-way analysis of variance, at least 0 (Donner and Klar 2000, chapter 1). Values that are all the same say
    nothing about rho: it is then taken to be 1. With one question per image, 1.
    """
    sizes = Counter(images)
    n, clusters = len(values), len(sizes)
    if clusters == n:
        return 1.0
    size = sum(count * count for count in sizes.values()) / n
    between, within = _sums_of_squares(values, images)
    rho = 1.0
    if clusters > 1 and len({*values}) > 1:
        between, within = between / (clusters - 1), within / (n - clusters)
        typical = (n - size) / (clusters - 1)
        rho = min(1.0, max(0.0, (between - within) / (between + (typical - 1) * within)))
    return 1 + (size - 1) * rho


@cache
def _few_images(n: int, clusters: int, confidence: float) -> float:
    """Return the factor of the effective n for Student's t at `clusters` - 1 instead of `n` - 1 degrees of freedom."""
    from scipy.special import stdtrit

    level = (1 + confidence) / 2
    return float(stdtrit(n - 1, level) / stdtrit(max(clusters - 1, 1), level)) ** 2


def _sums_of_squares(values: Sequence[float], images: Images) -> tuple[float, float]:
    """Return the sums of squares between and within images, the same to the last bit in any order of the rows."""
    groups: dict[Hashable, list] = {}
    for value, image in zip(values, images, strict=True):
        groups.setdefault(image, []).append(value)
    means = [math.fsum(group) ** 2 / len(group) for group in groups.values()]
    between = math.fsum([*means, -(math.fsum(values) ** 2) / len(values)])
    within = math.fsum([*(value * value for value in values), *(-mean for mean in means)])
    return max(0.0, between), max(0.0, within)


def sign_flip(differences: Sequence[int], images: Images) -> float:
    """Mid-p value of the exact test that changes the signs of the images' summed differences.

    If the two models are exchangeable on every image, each sum of an image is as likely as its negative, whatever the
    correlation between its questions; the modified Obuchowski test (Yang, Sun and Hardin 2010) is the normal
    approximation. All changes of sign are counted, so there is no random number. The mid-p value counts half of the
    ties with the observed sum, because the exact test rejects too rarely (Fagerland, Lydersen and Laake 2013). With
    one question per image it is McNemar's mid-p test.

    >>> sign_flip([1, 1, 1, 1, -1], "abcde"), sign_flip([1, 1, 1, 1, -1], "aabbc")
    (0.21875, 0.375)
    """
    import numpy as np

    sums: Counter = Counter()
    for difference, image in zip(differences, images, strict=True):
        sums[image] += difference
    steps = sorted(abs(total) for total in sums.values() if total)
    chances = np.ones(1)  # of each sum, from -reach to reach, where reach is the sum of the steps so far
    for step in steps:
        wider = np.zeros(len(chances) + 2 * step)
        wider[2 * step :] = chances
        wider[: len(chances)] += chances
        chances = wider / 2
    extreme = sum(steps) + abs(sum(differences))
    return min(1.0, float(2 * chances[extreme:].sum() - chances[extreme]))


def mcnemar(first: Sequence[int], second: Sequence[int], images: Images, confidence: float = 0.95) -> dict:
    """Paired comparison of two series of 0/1 scores on the same questions.

    Returns:
        `n`, `n_effective` (of the differences), `first_only` and `second_only` (questions that only one of them got
        right), `difference` in points (second minus first) with `low` and `high`, and `p` by `sign_flip`. The
        interval is Bonett and Price's adjusted Wald interval of a paired difference (2012) at the effective n, which
        also holds when no pair is discordant.

    Raises:
        ValueError: the series differ in length or are empty.
    """
    from scipy.special import ndtri

    if not len(first) == len(second) == len(images) or not first:
        raise ValueError(f"two series of the same questions are needed, not {len(first)} and {len(second)}")
    differences = [int(b) - int(a) for a, b in zip(first, second)]
    n, first_only, second_only = len(first), differences.count(-1), differences.count(1)
    effective = effective_n(differences, images, confidence)
    up, down = ((only * effective / n + 1) / (effective + 2) for only in (second_only, first_only))
    half = ndtri((1 + confidence) / 2) * math.sqrt((up + down - (up - down) ** 2) / (effective + 2))
    return {
        "n": n,
        "n_effective": effective,
        "first_only": first_only,
        "second_only": second_only,
        "difference": 100 * (second_only - first_only) / n,
        "low": 100 * max(-1.0, up - down - half),
        "high": 100 * min(1.0, up - down + half),
        "p": sign_flip(differences, images),
    }


def scored_by_both(first: Sequence[int | None], second: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return the pairs of two series of scores of the same questions in which neither is None."""
    return [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]


def paired(
    first: Sequence[int | None], second: Sequence[int | None], images: Images, confidence: float = 0.95
) -> dict:
    """`mcnemar` on the questions that both series score, with both shares in percent; {} if there are none.

    >>> test = paired([1, 0, None, 1], [1, 1, 1, 0], "abcd")
    >>> test["n"], round(test["first_percent"], 1), round(test["second_percent"], 1), test["difference"]
    (3, 66.7, 66.7, 0.0)
    """
    rows = [row for row in zip(first, second, images, strict=True) if None not in row[:2]]
    if not rows:
        return {}
    first, second, images = zip(*rows)
    shares = {"first_percent": 100 * sum(first) / len(rows), "second_percent": 100 * sum(second) / len(rows)}
    return mcnemar(first, second, images, confidence) | shares


def over_seeds(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], images: Images, confidence: float = 0.95
) -> dict:
    """Paired comparison of two means over seeds: a series of 0/1 scores per seed, all on the same questions.

    The variance has two parts. That of the questions is `mcnemar`'s, from the differences of the means over seeds.
    That of the seeds is the pooled variance of a seed's score, times one over the number of seeds on each side. The
    chance with which a seed answers a single question is in both, so the interval is wide rather than narrow.
    Student's t has the degrees of freedom of Satterthwaite (1946).

    Returns:
        `first_percent` and `second_percent`, `difference` in points with `low` and `high`, and `p`.

    Raises:
        ValueError: there is one seed on each side, or no question.
    """
    from scipy.special import stdtr, stdtrit

    sides = (first, second)
    freedom = sum(len(side) - 1 for side in sides)
    if not freedom or not images:
        raise ValueError("several seeds on one side at least, and a question, are needed")
    shares = [[math.fsum(scores) / len(images) for scores in side] for side in sides]
    means = [math.fsum(side) / len(side) for side in shares]
    before, after = ([math.fsum(scores) / len(side) for scores in zip(*side, strict=True)] for side in sides)
    change = [b - a for a, b in zip(before, after, strict=True)]
    n, each = len(images) / design_effect(change, images), sum(1 / len(side) for side in sides)
    centre = math.fsum(change) / len(change) * n / (n + 2)
    squares = (math.fsum(d * d for d in change) / len(change) * n + each) / (n + 2)
    of_questions = (squares - centre**2) / (n + 2)
    spread = math.fsum((one - mean) ** 2 for side, mean in zip(shares, means) for one in side) / freedom
    variance = of_questions + each * spread
    freedom = variance**2 / (of_questions**2 / max(1, len({*images}) - 1) + (each * spread) ** 2 / freedom)
    error = math.sqrt(variance)
    half = stdtrit(freedom, (1 + confidence) / 2) * error
    return {
        "first_percent": 100 * means[0],
        "second_percent": 100 * means[1],
        "difference": 100 * (means[1] - means[0]),
        "low": 100 * max(-1.0, centre - half),
        "high": 100 * min(1.0, centre + half),
        "p": float(2 * stdtr(freedom, -abs(centre) / error)),
    }


def unpaired(
    first: float, n_first: int, second: float, n_second: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's interval, in points, of the difference (second minus first) of two independent shares in percent."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    counts = (second * n_second / 100, n_second, first * n_first / 100, n_first)
    low, high = confint_proportions_2indep(*counts, method="newcomb", compare="diff", alpha=1 - confidence)
    return 100 * float(low), 100 * float(high)


def mean_change(values: Sequence[float], images: Images, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences of scores, in points, with its interval by Student's t over images.

    The variance is the cluster-robust one with the correction for few clusters (CR1), t has images - 1 degrees of
    freedom. With one question per image it is the usual interval. Without an end, NaN, if all are about one image.

    Raises:
        ValueError: `values` is empty.
    """
    from scipy.stats import t

    if not values:
        raise ValueError("no interval of no difference")
    n = len(values)
    mean = math.fsum(values) / n
    if len({*values}) == 1:  # no spread: t is not defined
        return 100 * mean, 100 * mean, 100 * mean
    residuals: dict[Hashable, list] = {}
    for value, image in zip(values, images, strict=True):
        residuals.setdefault(image, []).append(value - mean)
    if (clusters := len(residuals)) == 1:
        return 100 * mean, math.nan, math.nan
    squares = math.fsum(math.fsum(group) ** 2 for group in residuals.values())
    half = t.ppf((1 + confidence) / 2, clusters - 1) * math.sqrt(clusters / (clusters - 1) * squares) / n
    return 100 * mean, float(100 * (mean - half)), float(100 * (mean + half))


def holm(p_values: Sequence[float], alpha: float = 0.05) -> tuple[list[float], list[bool]]:
    """Holm's correction of one family of tests: adjusted p values, and which are below `alpha`.

    As statsmodels' `multipletests`, which takes a second to import.

    >>> holm([0.04, 0.01, 0.04])
    ([0.08, 0.03, 0.08], [False, True, False])
    """
    n, highest, significant = len(p_values), 0.0, True
    adjusted, reject = [0.0] * n, [False] * n
    for rank, i in enumerate(sorted(range(n), key=p_values.__getitem__)):
        significant = significant and p_values[i] <= alpha / (n - rank)
        highest = max(highest, p_values[i] * (n - rank))
        adjusted[i], reject[i] = min(1.0, float(highest)), bool(significant)
    return adjusted, reject


def smallest_difference(n: float, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
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
