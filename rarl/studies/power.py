"""The smallest true difference that a comparison of two revisions can show (`rarl diff`), known before a study starts.

Holm's correction demands p <= alpha / m of the first of m rows, so that is the level of a score that moves alone. The
question noise is that of the verdicts at hand: two models answer a share of the questions alike, and the others
independently of one another (the simulation of `rarl.studies.clusters`). With several seeds on each side the noise of
the seeds adds to it, as in `stats.over_seeds`.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from rarl.records import verdicts_file
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.stats import Images, design_effect, mcnemar_power, paired
from rarl.studies.runs import finals, main_judge, questions, seed_spread

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
    models = [model for model in run.params["models"] if model != "base"] if models is None else models
    cells = {
        (model, mode, name): judges[judge]
        for model in models
        for mode, sets in run.json(f"metrics/scores/{model}.json").items()
        for name, judges in sets.items()
        if name != WITHOUT_OWN_TEST and judges.get(judge, {}).get("final") is not None
    }
    spread, lines = seed_spread(run), []
    for place, cell in cells.items():
        alike, effective = noise(run, *place, judge) or (0.0, cell.get("n_effective") or cell["n"])
        sd = spread.get(place) if seeds > 1 else 0.0
        points = None
        if sd is not None:
            points = smallest(cell["final"] / 100, effective, alike, alpha / len(cells), power, seeds, sd / 100)
        sizes = {"n": cell["n"], "n_effective": round(effective, 1)}
        lines.append(dict(zip(("model", "mode", "set"), place)) | sizes | {"points": points and round(points, 2)})
    return lines


def noise(run, model: str, mode: str, name: str, judge: str) -> tuple[float, float] | None:
    """Return `alike` and the effective n of the differences between a model and the run's others, on average.

    None if the verdicts are not at hand.
    """
    images = {id: asked[0] for id, asked in questions(run, name).items()}
    scores = {
        other: finals(run.tracked(verdicts_file(other, judge, mode, name).as_posix()) or "")
        for other in run.params["models"]
    }
    found = []
    for other, theirs in scores.items():
        if other != model and (ids := [id for id in scores[model] if id in theirs and id in images]):
            series = ([one[id] for id in ids] for one in (scores[model], theirs))
            found.append(alike_and_effective(*series, [images[id] for id in ids]))
    return (fmean(alike for alike, _ in found), fmean(n for _, n in found)) if found else None


def alike_and_effective(first: Sequence[int], second: Sequence[int], images: Images) -> tuple[float, float]:
    """Return the share of questions that two models answer alike, and the effective n of their differences.

    `alike` is 0 if they disagree as often as two independent models of their accuracies, and 1 if as rarely as these
    accuracies permit.

    >>> alike_and_effective([1, 1, 0, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1, 0], "abcdefgh")
    (0.5, 8.0)
    """
    test = paired(first, second, images)
    n, p, q = test["n"], test["first_percent"] / 100, test["second_percent"] / 100
    most, least, seen = p + q - 2 * p * q, abs(p - q), (test["first_only"] + test["second_only"]) / n
    alike = (most - seen) / (most - least) if most > least + 1e-9 else 0.0
    change = [b - a for a, b in zip(first, second)]
    return min(1.0, max(0.0, alike)), n / design_effect(change, images)


def smallest(
    share: float, n: float, alike: float, alpha: float, power: float = POWER, seeds: int = 1, sd: float = 0.0
) -> float | None:
    """Return the smallest true difference, in points, that is significant at `alpha` with this power.

    Args:
        share: The accuracy now, 0 to 1. The difference is towards 50 %, where the noise is largest.
        n: The effective number of questions.
        alike: The share of questions that both sides answer alike.
        alpha: The level of the two-sided test.
        power: The chance that the difference is significant.
        seeds: The number of seeds on each side.
        sd: The standard deviation of the score over seeds, 0 to 1; not used with one seed.
    """
    from scipy.optimize import brentq

    share = min(share, 1 - share)
    chance = mcnemar_power if seeds == 1 else over_seeds(seeds, sd, disagreement(share, alike, 0.0))

    def surplus(x: float) -> float:
        return chance(x, n, disagreement(share, alike, x), alpha) - power

    largest = 1 - share - 1e-9
    return 100 * float(brentq(surplus, 1e-6, largest)) if n > 0 and surplus(largest) > 0 else None


def disagreement(share: float, alike: float, x: float) -> float:
    """Return the expected share of questions that only one of two models gets right, if the second is better by `x`.

    >>> disagreement(0.5, 0.5, 0.0), round(disagreement(0.5, 0.5, 0.25), 3)
    (0.25, 0.375)
    """
    return alike * x + (1 - alike) * (share + (share + x) - 2 * share * (share + x))


def over_seeds(seeds: int, sd: float, churn: float) -> Callable[[float, float, float, float], float]:
    """Return the power of `stats.over_seeds`, as a function like `stats.mcnemar_power`.

    `churn` is the share of questions on which two seeds of one side disagree; that noise is also in `sd`.
    """
    from scipy.special import nctdtr, stdtrit

    def chance(x: float, n: float, discordant: float, alpha: float) -> float:
        of_questions, of_seeds = (discordant - x * x) / (seeds * n), 2 * sd**2 / seeds
        assumed = of_questions + of_seeds
        true = of_questions + max(0.0, of_seeds - churn / (seeds * n))
        freedom = assumed**2 / (of_questions**2 / n + of_seeds**2 / (2 * seeds - 2))
        critical = stdtrit(freedom, 1 - alpha / 2) * math.sqrt(assumed / true)
        return 1 - float(nctdtr(freedom, x / math.sqrt(true), critical))

    return chance
