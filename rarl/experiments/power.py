"""The smallest true difference that a comparison of two revisions can show (`rarl diff`), known before a study starts.

Holm's correction demands p <= alpha / m of the first of m rows, so that is the level of a score that moves alone. The
noise of the questions is that of the verdicts at hand: how often a model is right on the same questions as the run's
other models, and how alike the questions about one image are. With several seeds on each side the spread over seeds
adds to it, as in `stats.over_seeds`.
"""

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean

from rarl.experiments.runs import cells, main_judge, questions, scores_by_id, seed_spread
from rarl.records import verdicts_file
from rarl.registry import METHODS, MODELS
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.stats import Images, design_effect, paired

POWER = 0.8


def detectable(run, seeds: int = 1, models: Sequence[str] | None = None, power: float = POWER) -> list[dict]:
    """Return the smallest true difference of each score that shows with this power, before another run is made.

    Args:
        run: The `Experiment` to compare with; its scores and, if DVC has them, its verdicts give the noise.
        seeds: The number of seeds on each side. With several, `metrics/studies/seeds.csv` gives their spread.
        models: The models that the change can move; all trained ones by default. Their rows are Holm's family.
        power: The chance that the difference is significant.

    Returns:
        A dict per model, mode and test set: these three, `n`, `n_effective` and `points`. `points` is None if even
        the largest possible difference would be missed, or if the spread over seeds is not known.
    """
    judge, alpha = main_judge(run), 1 - run.params["report"]["confidence"]
    models = [model for model in run.params["models"] if model in METHODS] if models is None else models
    family = {
        (model, mode, name): cell
        for model in models
        for (mode, name), cell in cells(run, model).items()
        if name != WITHOUT_OWN_TEST and cell.get("final") is not None
    }
    spread, lines = seed_spread(run), []
    for place, cell in family.items():
        independent = cell.get("n_effective") or cell["n"]
        correlation, effective, images = noise(run, *place, judge) or (0.0, independent, independent)
        sd = spread.get(place) if seeds > 1 else 0.0
        points = None
        if sd is not None:
            level = alpha / len(family)
            points = smallest(cell["final"] / 100, effective, images, correlation, level, power, seeds, sd / 100)
        sizes = {"n": cell["n"], "n_effective": round(effective, 1)}
        lines.append(dict(zip(("model", "mode", "set"), place)) | sizes | {"points": points and round(points, 2)})
    return lines


def noise(run, model: str, mode: str, name: str, judge: str) -> tuple[float, ...] | None:
    """Return `noise_between` a model and each of the run's others, on average.

    None if the verdicts are not at hand.
    """
    images = {id: asked[0] for id, asked in questions(run, name).items()}
    scores = {
        other: scores_by_id(run.tracked(verdicts_file(other, judge, mode, name).as_posix()) or "")
        for other in run.params["models"]
        if other in MODELS
    }
    found = []
    for other, theirs in scores.items():
        if other != model and (ids := [id for id in scores[model] if id in theirs and id in images]):
            series = ([one[id] for id in ids] for one in (scores[model], theirs))
            found.append(noise_between(*series, [images[id] for id in ids]))
    return tuple(map(fmean, zip(*found))) if found else None


def noise_between(first: Sequence[int], second: Sequence[int], images: Images) -> tuple[float, float, int]:
    """Return the correlation of two models' 0/1 scores, the effective n of their differences, and the images.

    >>> noise_between([1, 1, 0, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1, 0], "abcdefgh")
    (0.5, 8.0, 8)
    """
    test = paired(first, second, images)
    n, p, q = test["n"], test["first_percent"] / 100, test["second_percent"] / 100
    seen, scale = (test["first_only"] + test["second_only"]) / n, math.sqrt(p * (1 - p) * q * (1 - q))
    correlation = (p + q - 2 * p * q - seen) / (2 * scale) if scale else 0.0
    change = [b - a for a, b in zip(first, second)]
    return max(0.0, correlation), n / design_effect(change, images), len({*images})


def smallest(
    share: float,
    n: float,
    images: float,
    correlation: float,
    alpha: float,
    power: float = POWER,
    seeds: int = 1,
    sd: float = 0.0,
) -> float | None:
    """Return the smallest true difference, in points, that is significant at `alpha` with this power.

    Args:
        share: The accuracy now, 0 to 1. The difference is towards 50 %, where the noise is largest.
        n: The effective number of questions.
        images: The number of images that the questions are about.
        correlation: The correlation of two models' scores of a question.
        alpha: The level of the two-sided test.
        power: The chance that the difference is significant.
        seeds: The number of seeds on each side.
        sd: The standard deviation of the score over seeds, 0 to 1; not used with one seed.
    """
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    if n < 2 or images < 2:
        return None
    share, most = min(share, 1 - share), max(share, 1 - share) - 1e-9
    few = min(1.0, float(stdtrit(n - 1, alpha / 2) / stdtrit(images - 1, alpha / 2)) ** 2)  # as `stats.effective_n`

    def surplus(x: float) -> float:
        if seeds == 1:
            return one_seed(x, round(n * few), disagreement(share, correlation, x), alpha) - power
        return over_seeds(x, n, images, share, correlation, alpha, seeds, sd) - power

    return 100 * float(brentq(surplus, 1e-6, most)) if surplus(most) > 0 else None


def disagreement(share: float, correlation: float, x: float, seeds: int = 1) -> float:
    """Return the expected square of a question's difference between two sides, if the second is better by `x`.

    With one seed on each side that is the share of questions that only one of them gets right.

    >>> disagreement(0.5, 0.5, 0.0), disagreement(0.5, 0.0, 0.25), disagreement(0.5, 0.5, 0.0, seeds=2)
    (0.25, 0.5, 0.125)
    """
    better = share + x
    before, after = share * (1 - share), better * (1 - better)
    within = (before + after) * (1 + (seeds - 1) * correlation) / seeds
    return within - 2 * correlation * math.sqrt(before * after) + x * x


def one_seed(x: float, n: int, discordant: float, alpha: float) -> float:
    """Return the power of McNemar's mid-p test (`stats.sign_flip`) on `n` pairs, by its exact distribution.

    Connor's formula (`stats.smallest_difference`) is up to 6 points too low at the small levels of a family.
    """
    import numpy as np
    from scipy.stats import binom

    pairs = np.arange(n + 1)
    found = binom.sf(critical(n, alpha) - 1, pairs, min(1.0, (1 + x / discordant) / 2))
    return float(binom.pmf(pairs, n, min(1.0, discordant)) @ found)


@cache
def critical(n: int, alpha: float):
    """Return for 0 to `n` discordant pairs the number for one side that is significant: an array."""
    import numpy as np
    from scipy.stats import binom

    pairs = np.arange(n + 1)
    found = np.arange(n + 2)[:, None]
    p = binom.sf(found - 1, pairs, 0.5) + binom.sf(found, pairs, 0.5)
    return np.argmax((p <= alpha) & (2 * found > pairs), axis=0)


def over_seeds(
    x: float, n: float, images: float, share: float, correlation: float, alpha: float, seeds: int, sd: float
) -> float:
    """Return the power of `stats.over_seeds`: the mean over what the seeds' variance is estimated to be."""
    import numpy as np
    from scipy.special import ndtr, stdtrit
    from scipy.stats import chi2

    squares, each, freedom = disagreement(share, correlation, x, seeds), 2 / seeds, 2 * seeds - 2
    # Part of the spread is the chance with which a seed answers a question; it grows with the noise of the accuracy.
    now, then = (disagreement(accuracy, correlation, 0.0) / (2 * n) for accuracy in (share, share + x))
    alone = max(0.0, sd * sd - now)
    true = (squares - x * x) / n + each * alone
    centre = x * n / (n + 2)
    of_questions = ((squares * n + each) / (n + 2) - centre**2) / (n + 2)
    of_seeds = each * (alone + (now + then) / 2) * chi2.ppf((np.arange(200) + 0.5) / 200, freedom) / freedom
    variance = of_questions + of_seeds
    threshold = stdtrit(variance**2 / (of_questions**2 / (images - 1) + of_seeds**2 / freedom), 1 - alpha / 2)
    return float(ndtr((centre - threshold * np.sqrt(variance)) / (math.sqrt(true) * n / (n + 2))).mean())
