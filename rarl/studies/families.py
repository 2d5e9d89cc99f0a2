"""False findings and power of `rarl diff`, on simulated families of scores with known truth.

A family is what one comparison tests: three trained models under two modes on six test sets, and under two more modes
on the own test set. (SLAKE without the own test's rows is a part of SLAKE and not tested.) The answers are those of
`rarl.studies.clusters`: alike within an image, and a part of them alike in all models. Under all modes a model's
answers come from the same random numbers. Over seeds the accuracy varies, and half of that variance moves all scores
of a model together.

Nothing differs between the two sides. Then, one at a time, some scores differ by what `rarl.experiments.power`
announces from the answers of the first side and of the other models.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from rarl.experiments.power import POWER, disagreement, noise_between, smallest
from rarl.experiments.runs import correct, paired_by_id
from rarl.reporting.stats import wilson
from rarl.studies.clusters import answers, figures, image_numbers

#: The test sets of the default run: questions about an image -> number of such images; the first is the own test set.
SETS = {
    "silvar_med": {1: 22, 2: 14, 3: 25, 4: 5, 5: 1},
    "slake": {3: 18, 4: 49},
    "vqa_rad": {2: 2, 3: 32},
    "vqa_med": {1: 100},
    "path_vqa": {3: 16, 4: 13},
    "cv_bench": {1: 100},
}
MODELS, MODES = 3, 2
#: Modes on the own test set only.
OWN_MODES = 2
RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
#: Standard deviations of a score over seeds, in points: every sixth of those in metrics/studies/seeds.csv.
SPREADS = (0.0, 1.5, 2.9, 4.5, 5.0, 8.2, 9.7)
#: Intra-cluster correlation, and the share of the questions that all models answer with the same random number.
WORLDS = ((0.1, 0.5), (0.4, 0.3))
#: Seeds on each side, and world.
CASES = tuple(product((1, 3), WORLDS))
ALPHA = 0.05
BARS = {"false_findings": 5.0, "power": (100 * POWER - 5, 100 * POWER + 5)}
#: The number of other models at hand.
OTHERS = 3
#: In each family every `PART`-th score differs, one at a time.
PART = 14


@dataclass(frozen=True)
class Score:
    """One row of a family: a model under a mode on a test set."""

    model: int
    test_set: str
    rate: float
    spread: float
    """Standard deviation of the accuracy over seeds, 0 to 1; 0 in a comparison of one seed."""


def family_of(seeds: int) -> list[Score]:
    """Return the rows of a family; every accuracy meets every spread over seeds."""
    own = next(iter(SETS))
    places = [*product(range(MODELS), SETS, range(MODES)), *product(range(MODELS), [own], range(OWN_MODES))]
    found = []
    for i, (model, name, _) in enumerate(places):
        rate = RATES[i % len(RATES)]
        spread = min(SPREADS[i % len(SPREADS)] / 100, min(rate, 1 - rate) / 2.5) if seeds > 1 else 0.0
        found.append(Score(model, name, rate, spread))
    return found


class Draw:
    """The simulated answers of one row: `seeds` series on each side, and one each of the other models at hand."""

    def __init__(self, score: Score, seeds: int, world: tuple[float, float], effects, number: int):
        self.score, self.seeds, self.world, self.effects, self.number = score, seeds, world, effects, number
        self.images = image_numbers(SETS[score.test_set])

    def sides(self, difference: float) -> tuple[list, list, list]:
        """Return the first side, the second, and the other models, always from the same random numbers."""
        import numpy as np

        k, rate = self.seeds, self.score.rate
        means = [*[rate] * (k + OTHERS), *[rate + difference] * k]
        effects = [*self.effects[:k], *[0.0] * OTHERS, *self.effects[k:]]
        accuracies = (mean + self.score.spread * effect for mean, effect in zip(means, effects))
        clipped = tuple(min(0.995, max(0.005, accuracy)) for accuracy in accuracies)
        drawn = answers(np.random.default_rng(self.number), self.images, clipped, *self.world)
        return drawn[:k], drawn[-k:], drawn[k:-k]

    def test(self, difference: float = 0.0) -> dict:
        """Compare both sides, as `rarl diff` does; the second is better by `difference`, 0 to 1."""
        sides = ([dict(enumerate(series)) for series in side] for side in self.sides(difference)[:2])
        return paired_by_id(*sides, dict(enumerate(self.images)), 1 - ALPHA)

    def announced(self, rows: int) -> float:
        """Return the announced difference, 0 to 1, towards 50 %; 0 if even the largest one would be missed."""
        [first, *_], _, others = self.sides(0.0)
        found = [noise_between(first, other, self.images) for other in others]
        correlation, n, images = (fmean(values) for values in zip(*found))
        rate = self.score.rate
        sd = math.sqrt(self.score.spread**2 + disagreement(rate, correlation, 0.0) / (2 * n))
        points = smallest(fmean(first), n, images, correlation, ALPHA / rows, seeds=self.seeds, sd=sd) or 0.0
        return (points if rate <= 0.5 else -points) / 100


def simulate(scores: list[Score], seeds: int, world: tuple[float, float], rng, turn: int) -> tuple[bool, list, int]:
    """Compare one family.

    Returns:
        Whether there is a false finding; accuracy, announced points and whether they were found, of each row that
        differs in turn; the number of rows for which no difference could be announced.
    """
    together = rng.standard_normal((MODELS, 2 * seeds))
    numbers = {(score.model, score.test_set): int(rng.integers(2**63)) for score in scores}
    draws = []
    for score in scores:
        effects = (together[score.model] + rng.standard_normal(2 * seeds)) / math.sqrt(2)
        draws.append(Draw(score, seeds, world, effects, numbers[score.model, score.test_set]))
    lines = [draw.test() for draw in draws]
    found, without = [], 0
    for i in range(turn % PART, len(draws), PART):
        if difference := draws[i].announced(len(draws)):
            family = [draws[i].test(difference) if j == i else dict(line) for j, line in enumerate(lines)]
            correct(family, ALPHA)
            found.append((scores[i].rate, 100 * abs(difference), bool(family[i]["differs"])))
        else:
            without += 1
    correct(lines, ALPHA)
    return any(line["differs"] for line in lines), found, without


def case(seeds: int, world: tuple[float, float], families: int, rng) -> dict:
    """Simulate many families of one kind: both shares in percent, with Wilson's intervals."""
    scores = family_of(seeds)
    results = [simulate(scores, seeds, world, rng, turn) for turn in range(families)]
    found = [row for _, rows, _ in results for row in rows]
    without = sum(count for *_, count in results)
    line = {"seeds": seeds, "rho": world[0], "alike": world[1], "rows": len(scores)}
    line |= share("false_findings", [false for false, *_ in results]) | share("power", [hit for *_, hit in found])
    for rate in RATES:
        hits = [hit for at, _, hit in found if at == rate]
        line[f"power_at_{100 * rate:.0f}"] = round(100 * fmean(hits), 1) if hits else None
    line["points"] = round(fmean(points for _, points, _ in found), 1)
    return line | {"not_announced": round(100 * without / (len(found) + without), 1)}


def share(name: str, hits: list[bool]) -> dict[str, float]:
    """Return a share in percent with its interval, as columns."""
    low, high = wilson(sum(hits), len(hits))
    numbers = (sum(hits) / len(hits), low, high)
    return {key: round(100 * number, 2) for key, number in zip((name, f"{name}_low", f"{name}_high"), numbers)}


def study(families: int, seed: int, show: Callable[[str], None], cases: Sequence[tuple] = CASES) -> dict:
    """Simulate every case; `show` gets each when it begins."""
    import numpy as np

    found = []
    for seeds, world in cases:
        show("{} seeds on each side, rho {}, {} alike".format(seeds, *world))
        found.append(case(seeds, world, families, np.random.default_rng([seed, len(found)])))
    return {"families": families, "seed": seed, "bars": BARS, "cases": found}


def as_markdown(report: dict, command: str) -> str:
    """Return the study as a page."""
    return "\n".join(_page(report, command)) + "\n"


def _page(report: dict, command: str) -> Iterator[str]:
    yield from (
        "# False findings and power of `rarl diff`",
        "",
        f"Made by `{command}`: {report['families']:,} simulated families a case, with `seeds` seeds on each side.",
        "`rarl/studies/families.py` documents the simulation. All figures but `points` are percent:",
        "",
        "- `false findings`: families in which any score is called different, although none is; the bar is 5.",
        "- `power`: how often a score is found that alone differs, by the difference that `rarl/experiments/power.py`",
        "  announces for 80 % (`points` on average); the bar is 75 to 85. Also by accuracy.",
        "- `not announced`: scores of which even the largest difference would be missed.",
        "",
    )
    yield from figures(report["cases"])
