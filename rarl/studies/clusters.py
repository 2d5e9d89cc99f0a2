"""Coverage of the intervals and false positives of the paired test, on simulated answers with known truth.

Questions about one image are alike: each image has its own share of right answers, from a beta distribution whose
mean is the true accuracy and whose spread gives the intra-cluster correlation rho (the beta-binomial model). Of two
models each has its own shares, and a part of the questions (`alike`) is answered by both with the same random number,
so that they agree more often than two independent models.

Both are computed by `rarl.reporting.stats`, and once more as if no two questions shared an image.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

from rarl.reporting.formats import markdown_table
from rarl.reporting.stats import mcnemar, share_interval, sign_flip, wilson

#: Questions about an image -> number of such images. The first is Silvar-Med's test split.
DESIGNS = {
    "67 images, 150 questions, as Silvar-Med": {1: 22, 2: 14, 3: 25, 4: 5, 5: 1},
    "67 images, 150 questions, 1 to 6 each": {1: 29, 2: 15, 3: 12, 4: 4, 5: 3, 6: 4},
    "20 images, 45 questions": {1: 7, 2: 6, 3: 4, 4: 1, 5: 2},
    "5 images, 12 questions": {1: 2, 2: 1, 3: 1, 5: 1},
}
#: The designs that the bars apply to.
JUDGED = tuple(DESIGNS)[:2]
BARS = {"coverage": (93.0, 97.0), "false_positives": (3.0, 7.0)}
ACCURACIES = (0.1, 0.3, 0.5, 0.7, 0.9)
CORRELATIONS = (0.0, 0.1, 0.25, 0.5)
#: Shares of the questions that two models answer with the same random number.
ALIKE = (0.0, 0.5)
#: True accuracies of two models that differ.
DIFFERENT = (0.4, 0.55)


def image_numbers(design: dict[int, int]) -> list[int]:
    """Return the number of the image of each question.

    >>> image_numbers({1: 2, 3: 1})
    [0, 1, 2, 2, 2]
    """
    sizes = [size for size, count in design.items() for _ in range(count)]
    return [image for image, size in enumerate(sizes) for _ in range(size)]


def answers(rng, images: list[int], accuracies: tuple[float, ...], rho: float, alike: float = 0.0) -> list[list[int]]:
    """Draw 0/1 scores of one model for each accuracy, on the same questions; `rng` is a NumPy generator."""
    import numpy as np

    chance, common = rng.random(len(images)), rng.random(len(images)) < alike
    scores = []
    for accuracy in accuracies:
        shares = np.full(images[-1] + 1, accuracy)
        if rho:
            spread = (1 - rho) / rho
            shares = rng.beta(accuracy * spread, (1 - accuracy) * spread, len(shares))
        drawn = np.where(common, chance, rng.random(len(images)))
        scores.append((drawn < shares[images]).astype(int).tolist())
    return scores


def share_case(design: str, rho: float, accuracy: float, repetitions: int, rng) -> dict:
    """Return how often the interval of a share covers the true accuracy, in percent, and the mean effective n."""
    images, plain = image_numbers(DESIGNS[design]), cache(wilson)
    covered, naive, effective = 0, 0, 0.0
    for _ in range(repetitions):
        [scores] = answers(rng, images, (accuracy,), rho)
        low, high, n = share_interval(scores, images)
        covered += low <= accuracy <= high
        effective += n
        low, high = plain(sum(scores), len(images))
        naive += low <= accuracy <= high
    return {
        "design": design,
        "rho": rho,
        "accuracy": accuracy,
        "coverage": round(100 * covered / repetitions, 2),
        "coverage_ignoring_images": round(100 * naive / repetitions, 2),
        "n": len(images),
        "n_effective": round(effective / repetitions, 1),
    }


def pair_case(design: str, rho: float, accuracies: tuple[float, float], alike: float, repetitions: int, rng) -> dict:
    """Return how often the paired test is significant at 5 %, and how often its interval covers, in percent.

    Significant results are false positives where both accuracies are the same, else they are the power.
    """
    images = image_numbers(DESIGNS[design])
    alone, truth = range(len(images)), 100 * (accuracies[1] - accuracies[0])
    found = {"significant": 0, "significant_ignoring_images": 0, "coverage": 0, "discordant": 0.0}
    for _ in range(repetitions):
        first, second = answers(rng, images, accuracies, rho, alike)
        test = mcnemar(first, second, images)
        found["significant"] += test["p"] <= 0.05
        change = [b - a for a, b in zip(first, second)]
        found["significant_ignoring_images"] += sign_flip(change, alone) <= 0.05
        found["coverage"] += test["low"] <= truth <= test["high"]
        found["discordant"] += (test["first_only"] + test["second_only"]) / len(images)
    place = {"design": design, "rho": rho, "first": accuracies[0], "second": accuracies[1], "alike": alike}
    return place | {key: round(100 * count / repetitions, 2) for key, count in found.items()}


def study(repetitions: int, seed: int, show: Callable[[str], None]) -> dict:
    """Simulate every case; `show` gets the name of each design when it begins."""
    import numpy as np

    numbers = iter(range(10**6))

    def rng():
        """Return the generator of the next case."""
        return np.random.default_rng([seed, next(numbers)])

    shares, pairs = [], []
    for design in DESIGNS:
        show(design)
        shares += [
            share_case(design, rho, accuracy, repetitions, rng())
            for rho, accuracy in product(CORRELATIONS, ACCURACIES)
        ]
        for rho, alike in product(CORRELATIONS, ALIKE):
            pairs += [pair_case(design, rho, (p, p), alike, repetitions, rng()) for p in ACCURACIES[:3]]
            pairs.append(pair_case(design, rho, DIFFERENT, alike, repetitions, rng()))
    return {"repetitions": repetitions, "seed": seed, "bars": BARS, "shares": shares, "pairs": pairs}


def ranges(report: dict, design: str) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest figure of a design: coverage of both intervals, false positives, both ways."""
    shares, pairs = ([case for case in report[key] if case["design"] == design] for key in ("shares", "pairs"))
    null = [case for case in pairs if case["first"] == case["second"]]
    columns = {
        "coverage": [case["coverage"] for case in shares],
        "coverage, ignoring images": [case["coverage_ignoring_images"] for case in shares],
        "coverage of a difference": [case["coverage"] for case in pairs],
        "false positives": [case["significant"] for case in null],
        "false positives, ignoring images": [case["significant_ignoring_images"] for case in null],
    }
    return {name: (min(values), max(values)) for name, values in columns.items()}


def as_markdown(report: dict, command: str) -> str:
    """Return the study as a page."""
    return "\n".join(_page(report, command)) + "\n"


def _page(report: dict, command: str) -> Iterator[str]:
    yield from (
        "# Intervals and paired tests with several questions per image",
        "",
        f"Made by `{command}`: {report['repetitions']:,} simulated test sets in each case. Nominal are 95 % coverage",
        "and 5 % false positives; the bars, 93 to 97 % and 3 to 7 %, apply to 67 images and 150 questions.",
        "`rarl/studies/clusters.py` documents the simulation, `rarl/reporting/stats.py` the formulas and sources.",
        "",
        "## Lowest and highest figure, in percent",
        "",
    )
    found = {design: ranges(report, design) for design in DESIGNS}
    head = ["design", *found[JUDGED[0]]]
    yield from markdown_table(head, ([name, *map(_span, row.values())] for name, row in found.items()))
    for title, key in (("A share", "shares"), ("A difference between two models", "pairs")):
        yield from ("", f"## {title}", "")
        yield from figures(report[key])


def figures(cases: list[dict]) -> list[str]:
    """Return the table of simulated cases: a row each, a column for each key."""
    return markdown_table([column.replace("_", " ") for column in cases[0]], (case.values() for case in cases))


def _span(ends: tuple[float, float]) -> str:
    return "{:.1f} to {:.1f}".format(*ends)
