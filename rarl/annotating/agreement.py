"""How far the raters agree, and the rows on which they do not.

Only rows that several raters have finished count, each by itself and blind to the others (`plan.Plan.overlap`).

* **Findings**: those that a rater has tagged or, without any tag, those that the text states. A unit is a pair of a
  row and a term that any rater used in any row; a rater affirms it, denies it, or says nothing of it. Cohen's kappa
  for two raters, Fleiss' for more, by statsmodels. Most pairs are agreed to be absent, which kappa corrects for, but
  the number depends on the lexicon: compare it within one project only.
* **Verdicts**: the same over explained, not visible and wrong question.
* **Text**: F1 of the clinical facts (term, affirmed or denied) that two texts state, which is symmetric; the mean over
  pairs of raters and rows that both have explained.

The intervals are percentiles of a bootstrap over images, because rows about one image are alike.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rarl.annotating.session import Annotation, Annotations, tags
from rarl.rewards.terms import Fact, opposites

RESAMPLES = 1000
#: Below this F1 of their findings, raters disagree on a row.
DISAGREE = 0.5


@dataclass(frozen=True)
class Overlap:
    """A row that several raters have finished."""

    content: str
    image: str
    by: Mapping[str, Annotation]
    """Rater -> their annotation."""


def overlaps(raters: Mapping[str, Annotations], images: Mapping[str, str]) -> list[Overlap]:
    """The rows that several raters have finished, adjudications not counted; `images` maps contents to images."""
    found = []
    for content, image in sorted(images.items()):  # or a bootstrap depends on the rows' order in their files
        done = {rater: own[content] for rater, own in raters.items() if content in own}
        done = {rater: one for rater, one in done.items() if one.verdict and not one.adjudicates}
        if len(done) > 1:
            found.append(Overlap(content, image, done))
    return found


def stated(annotation: Annotation) -> frozenset[Fact]:
    """The facts that an annotation tags or, if it tags none, states in its text."""
    text = annotation.text if annotation.verdict == "explained" else ""
    return facts_of(annotation.findings or tags(text))


def facts_of(findings: Sequence[str]) -> frozenset[Fact]:
    """Tags as facts.

    >>> sorted(facts_of(["left", "no effusion"]))
    [('effusion', False), ('left', True)]
    """
    return frozenset((tag.removeprefix("no "), not tag.startswith("no ")) for tag in findings)


def f1(first: frozenset, second: frozenset) -> float:
    """Twice the common facts over all facts of both; 1 if neither has any.

    >>> f1(frozenset("ab"), frozenset("bc")), f1(frozenset(), frozenset())
    (0.5, 1.0)
    """
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else 1.0


def differ(first: Annotation, second: Annotation) -> str | None:
    """Why a third reader is needed; None if the two agree.

    They disagree if their verdicts differ, if one states the opposite of what the other states (the other side,
    another diagnosis, a denial), or if their findings have an F1 below `DISAGREE`.
    """
    if first.verdict != second.verdict:
        return "verdict"
    if first.verdict != "explained":
        return None
    one, two = stated(first), stated(second)
    if any((two - one) & opposites(fact, one, two) for fact in one - two):
        return "opposite findings"
    return "other findings" if f1(one, two) < DISAGREE else None


def reason(overlap: Overlap) -> str | None:
    """Why a third reader is needed for a row: the first reason among the pairs of raters, or None."""
    reasons = (differ(*pair) for pair in combinations(overlap.by.values(), 2))
    return next(filter(None, reasons), None)


def kappa(units: np.ndarray, categories: int) -> float | None:
    """Cohen's kappa of two raters, Fleiss' of more; None where all ratings are the same.

    Args:
        units: (number of units, raters), the category of each rating as an integer.
        categories: number of categories.
    """
    from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

    if len({*units.flat}) < 2:
        return None
    if units.shape[1] == 2:
        table = np.zeros((categories, categories))
        np.add.at(table, tuple(units.T), 1)
        return float(cohens_kappa(table, return_results=False))
    return float(fleiss_kappa((units[:, :, None] == np.arange(categories)).sum(1)))


def interval(
    rows: Sequence[Overlap], statistic: Callable[[Sequence[Overlap]], float | None], seed: int
) -> tuple[float | None, float | None, float | None]:
    """A statistic with its 95 % interval by a bootstrap over images; (value, low, high), None where undefined."""
    by_image = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    clusters, generator = list(by_image.values()), np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES if len(clusters) > 1 else 0):
        chosen = generator.integers(len(clusters), size=len(clusters))
        value = statistic([row for number in chosen for row in clusters[number]])
        values += [] if value is None else [value]
    low, high = np.quantile(values, [0.025, 0.975]).tolist() if values else (None, None)
    return statistic(rows), low, high


def agreement(rows: Sequence[Overlap], seed: int = 0) -> list[dict]:
    """Agreement of each group of raters with common rows: n, images, and each measure with its interval."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(sorted(row.by)), []).append(row)
    return [of_group(raters, group, seed) for raters, group in sorted(groups.items())]


def of_group(raters: tuple[str, ...], rows: Sequence[Overlap], seed: int) -> dict:
    """Agreement of raters on rows that all of them have finished."""
    verdicts = ["explained", "not_visible", "wrong_question"]
    said = {row.content: {rater: stated(row.by[rater]) for rater in raters} for row in rows}
    terms = sorted({term for of_row in said.values() for facts in of_row.values() for term, _ in facts})
    units = {}
    for content, of in said.items():
        rated = [[int((term, True) in of[r]) + 2 * ((term, False) in of[r]) for r in raters] for term in terms]
        units[content] = np.array(rated, dtype=int).reshape(-1, len(raters))

    def findings(some: Sequence[Overlap]) -> float | None:
        return kappa(np.concatenate([units[row.content] for row in some]), 3)

    def of_verdicts(some: Sequence[Overlap]) -> float | None:
        return kappa(np.array([[verdicts.index(row.by[r].verdict) for r in raters] for row in some]), 3)

    texts = {row.content: text_f1(row, raters) for row in rows}

    def text(some: Sequence[Overlap]) -> float | None:
        found = [texts[row.content] for row in some if texts[row.content] is not None]
        return sum(found) / len(found) if found else None

    return {
        "raters": list(raters),
        "rows": len(rows),
        "images": len({row.image for row in rows}),
        "kappa": "Cohen" if len(raters) == 2 else "Fleiss",
        "terms": len(terms),
        "findings_kappa": interval(rows, findings, seed),
        "verdict_kappa": interval(rows, of_verdicts, seed),
        "text_f1": interval(rows, text, seed),
        "disagreements": dict(Counter(filter(None, map(reason, rows)))),
    }


def text_f1(row: Overlap, raters: Sequence[str]) -> float | None:
    """Mean F1 of the facts of the texts of two raters, over the pairs that have explained the row."""
    texts = [facts_of(tags(row.by[rater].text)) for rater in raters if row.by[rater].verdict == "explained"]
    pairs = [f1(*pair) for pair in combinations(texts, 2)]
    return sum(pairs) / len(pairs) if pairs else None
