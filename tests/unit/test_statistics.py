"""Statistics against closed forms, published examples and brute force."""

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from rarl.records import Sample
from rarl.reporting import stats as st
from rarl.studies import clusters

STUDIES = Path(__file__).parents[2] / "metrics/studies"


def sample(id: str, question: str, answers: list[str], kind: str = "open") -> Sample:
    return Sample(
        id=id,
        dataset="d",
        split="train",
        image="a.png",
        image_sha256="0" * 64,
        question=question,
        answers=answers,
        kind=kind,
    )


def test_wilson_is_the_closed_form():
    z, n, k = 1.959963985, 148, 100
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert st.wilson(k, n) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert half == pytest.approx(0.075, abs=0.001)  # the noise of the paper's own test set


def test_wilson_stays_inside_at_the_ends_and_widens_with_confidence():
    low, high = st.wilson(0, 10)
    assert low == pytest.approx(0, abs=1e-12) and 0 < high < 0.35
    wide = st.wilson(5, 10, 0.99)
    narrow = st.wilson(5, 10, 0.8)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with pytest.raises(ValueError):
        st.wilson(0, 0)


def series(both: int, first_only: int, second_only: int, neither: int) -> tuple[list[int], list[int]]:
    first = [1] * both + [1] * first_only + [0] * second_only + [0] * neither
    second = [1] * both + [0] * first_only + [1] * second_only + [0] * neither
    return first, second


def alone(n: int) -> range:
    """Images of n questions, no two about the same."""
    return range(n)


def mid_p(few: int, n: int) -> float:
    """McNemar's mid-p value by its formula: the exact one minus the chance of the observed split."""
    exact = 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n
    return exact - math.comb(n, few) / 2**n


@pytest.mark.parametrize(("first_only", "second_only"), [(2, 10), (1, 7), (0, 5), (20, 40), (90, 60)])
def test_with_one_question_per_image_the_test_is_mcnemars_mid_p(first_only, second_only):
    result = st.mcnemar(*series(50, first_only, second_only, 38), alone(88 + first_only + second_only))
    assert result["p"] == pytest.approx(mid_p(min(first_only, second_only), first_only + second_only))
    assert (result["first_only"], result["second_only"]) == (first_only, second_only)


def test_mid_p_of_the_published_example():
    """Fagerland, Lydersen and Laake (2013), airway hyper-responsiveness: 1 and 7 discordant pairs, 0.039."""
    assert st.mcnemar(*series(1, 1, 7, 12), alone(21))["p"] == pytest.approx(0.039, abs=5e-4)


def test_with_one_question_per_image_the_interval_of_a_difference_is_bonett_and_prices():
    first_only, second_only, n = 2, 10, 100
    result = st.mcnemar(*series(50, first_only, second_only, 38), alone(n))
    up, down, z = (second_only + 1) / (n + 2), (first_only + 1) / (n + 2), 1.959963985
    half = z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    ends = (100 * (up - down - half), 100 * (up - down + half))
    assert (result["low"], result["high"]) == pytest.approx(ends, abs=1e-6)
    assert result["difference"] == pytest.approx(8.0) and result["n_effective"] == n


def test_mcnemar_without_a_discordant_pair_says_nothing_differs():
    result = st.mcnemar(*series(5, 0, 0, 5), alone(10))
    assert result["p"] == 1.0 and result["difference"] == 0
    assert result["low"] < 0 < result["high"]
    with pytest.raises(ValueError):
        st.mcnemar([], [], [])
    with pytest.raises(ValueError):
        st.mcnemar([1], [1, 0], ["a"])


def test_mcnemar_is_antisymmetric():
    a, b = series(30, 4, 13, 20)
    images = [i // 3 for i in range(67)]
    there, back = st.mcnemar(a, b, images), st.mcnemar(b, a, images)
    assert there["p"] == back["p"]
    assert there["difference"] == -back["difference"]
    assert there["low"] == pytest.approx(-back["high"])


def simulated(seed: int, rho: float = 0.3, design: str = clusters.JUDGED[0]) -> tuple[list, list, list]:
    """Two models' scores and the image of each question."""
    images = clusters.image_numbers(clusters.DESIGNS[design])
    first, second = clusters.answers(np.random.default_rng(seed), images, (0.5, 0.65), rho)
    return first, second, images


def all_numbers(first: list, second: list, images: list) -> tuple:
    change = [b - a for a, b in zip(first, second)]
    test = st.mcnemar(first, second, images)
    return *st.share_interval(first, images), *test.values(), *st.mean_change(change, images)


def test_with_one_question_per_image_the_interval_of_a_share_is_wilsons():
    first, *_ = simulated(1)
    for scores in (first, [0] * 9, [1] * 9, [1]):
        low, high, n = st.share_interval(scores, alone(len(scores)))
        assert n == len(scores) and (low, high) == st.wilson(sum(scores), len(scores))


def test_with_one_question_per_image_the_interval_of_a_mean_is_students():
    values = [0.25, -0.5, 0.125, 0.1]
    mean, spread = sum(values) / 4, np.std(values, ddof=1) / 2
    ends = [100 * (mean + sign * 3.182446305 * spread) for sign in (0, -1, 1)]
    assert st.mean_change(values, "abcd") == pytest.approx(ends)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_rows_changes_no_bit(seed):
    rows = list(zip(*simulated(seed)))
    numbers = all_numbers(*zip(*rows))
    random.Random(seed).shuffle(rows)
    assert all_numbers(*zip(*rows)) == numbers
    first, second, images = zip(*rows)
    assert all_numbers(first, second, [f"image {image}" for image in images]) == numbers


@pytest.mark.parametrize("copies", [2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_asking_every_question_again_tells_nothing_new(copies, seed):
    first, second, images = simulated(seed)
    for image in (alone(len(images)), images):
        once = all_numbers(first, second, image)
        again = all_numbers(first * copies, second * copies, [*image] * copies)
        share, test, mean = slice(0, 3), slice(3, 11), slice(11, 14)
        assert again[share][0] <= once[share][0] and again[share][1] >= once[share][1]
        assert again[share][2] <= once[share][2]
        (*_, low, high, p), (*_, low_once, high_once, p_once) = again[test], once[test]
        assert low <= low_once and high >= high_once and p == pytest.approx(p_once)
        assert again[mean] == pytest.approx(once[mean])


def test_what_is_alike_within_images_counts_by_image():
    scores = [1, 1, 1, 0, 0, 0] * 10
    low, high, n = st.share_interval(scores, [i // 3 for i in range(60)])
    assert n == pytest.approx(20, rel=0.1) and n < 20, "20 images; Student's t takes a little more"
    assert low < st.wilson(30, 60)[0] and high > st.wilson(30, 60)[1]
    independent = st.effective_n([1, 0] * 30, [i // 2 for i in range(60)])
    assert 55 < independent < 60, "no more than n, however unlike the answers about an image are"


@pytest.mark.parametrize("right", [0, 1])
def test_at_no_and_all_right_the_questions_of_an_image_count_once(right):
    images = [i // 3 for i in range(60)]
    low, high, n = st.share_interval([right] * 60, images)
    assert 18 < n < 20
    assert (high if right else low) == pytest.approx(right) and high - low > 0.1


def test_few_images():
    for images in (["a"] * 6, ["a"] * 5 + ["b"], [*"aabbcd"], [*"aabbcde"]):
        scores = [1, 0, 1, 1, 0, 1, 1][: len(images)]
        low, high, n = st.share_interval(scores, images)
        assert 0 <= low < high <= 1 and 0 < n < len(images)
        test = st.mcnemar(scores, [1] * len(images), images)
        assert -100 <= test["low"] < test["high"] <= 100 and 0 < test["p"] <= 1
    assert math.isnan(st.mean_change([1, 0], "aa")[1])
    assert st.mean_change([1, 1], "aa") == (100, 100, 100)


def test_sign_flips_are_counted_as_by_brute_force():
    rng = random.Random(4)
    for _ in range(20):
        images = [rng.randrange(7) for _ in range(15)]
        change = [rng.choice([-1, 0, 0, 1]) for _ in images]
        sums = [sum(c for c, i in zip(change, images) if i == image) for image in range(7)]
        drawn = [abs(sum(s * f for s, f in zip(sums, signs))) for signs in itertools.product((1, -1), repeat=7)]
        observed = abs(sum(change))
        beyond, ties = sum(d > observed for d in drawn), sum(d == observed for d in drawn)
        p = (beyond + ties / 2) / len(drawn) if observed else 1.0
        assert st.sign_flip(change, images) == pytest.approx(p)


@pytest.mark.parametrize(("rho", "accuracy"), [(0.0, 0.7), (0.25, 0.1), (0.5, 0.5), (0.5, 0.9)])
def test_intervals_cover_the_truth(rho, accuracy):
    """`rarl study clusters` in short; the limits are the bars of 93 and 97 % and two standard errors."""
    case = clusters.share_case(clusters.JUDGED[0], rho, accuracy, 600, np.random.default_rng(3))
    assert 91.2 <= case["coverage"] <= 98.4
    assert rho < 0.5 or case["coverage_ignoring_images"] < 90


@pytest.mark.parametrize(("rho", "accuracy"), [(0.0, 0.5), (0.5, 0.3)])
def test_equal_models_are_rarely_told_apart(rho, accuracy):
    """The bars are 3 and 7 %."""
    case = clusters.pair_case(clusters.JUDGED[0], rho, (accuracy,) * 2, 0.5, 600, np.random.default_rng(3))
    assert 1.6 <= case["significant"] <= 9.1 and 91.2 <= case["coverage"] <= 98.4
    assert rho == 0 or case["significant_ignoring_images"] > 10


def test_the_studys_page_has_its_figures():
    report = json.loads((STUDIES / "clusters.json").read_text(encoding="utf-8"))
    for design in clusters.JUDGED:
        found = clusters.ranges(report, design)
        for name, bar in (("coverage", "coverage"), ("false positives", "false_positives")):
            assert report["bars"][bar][0] <= found[name][0] <= found[name][1] <= report["bars"][bar][1], name
    page = (STUDIES / "clusters.md").read_text(encoding="utf-8")
    command = f"rarl study clusters --repetitions {report['repetitions']} --seed {report['seed']}"
    assert page == clusters.as_markdown(report, command)


def test_holm_by_hand():
    adjusted, differs = st.holm([0.01, 0.04, 0.03], 0.05)
    assert adjusted == pytest.approx([0.03, 0.06, 0.06])
    assert differs == [True, False, False]
    assert st.holm([]) == ([], [])


def test_over_seeds_the_spread_widens_the_interval():
    images = [f"image {i // 2}" for i in range(60)]
    first = [[int((i + seed) % 3 == 0) for i in range(60)] for seed in range(3)]
    second = [[int((i + seed) % 3 != 0) for i in range(60)] for seed in range(3)]
    test = st.over_seeds(first, second, images)
    assert (test["first_percent"], test["second_percent"]) == pytest.approx((100 / 3, 200 / 3))
    assert test["difference"] == pytest.approx(100 / 3) and test["low"] > 0 and test["p"] < 0.001
    back = st.over_seeds(second, first, images)
    assert (-back["high"], -back["low"], back["p"]) == pytest.approx((test["low"], test["high"], test["p"]))
    spread = [*second[:2], [1] * 60]
    assert st.over_seeds(first, spread, images)["p"] > test["p"], "although the difference is larger"
    assert st.over_seeds(first, first, images)["p"] == 1.0
    one = st.over_seeds(first[:1], second, images)
    assert one["high"] - one["low"] > test["high"] - test["low"]
    for few in ((first[:1], second[:1], images), ([[]] * 2, [[]] * 2, [])):
        with pytest.raises(ValueError, match="several seeds"):
            st.over_seeds(*few)


def test_over_seeds_the_interval_excludes_zero_where_p_is_small():
    images = [*range(40)]
    first = [[int(i < 20) for i in range(40)], [int(i < 22) for i in range(40)]]
    for right in range(22, 40):
        test = st.over_seeds(
            first, [[int(i < right) for i in range(40)], [int(i < right - 2) for i in range(40)]], images
        )
        assert (test["p"] < 0.05) == (test["low"] > 0)


def test_smallest_difference_is_found_with_the_stated_power():
    from random import Random

    n, discordant = 150, 0.3
    points = st.smallest_difference(n, discordant)
    assert points is not None and 10 < points < 15
    random, found, runs = Random(1), 0, 400
    second_only = (discordant + points / 100) / 2
    for _ in range(runs):
        draws = [random.random() for _ in range(n)]
        up = sum(d < second_only for d in draws)
        down = sum(second_only <= d < discordant for d in draws)
        found += (up - down) ** 2 > 1.959964**2 * (up + down)
    assert found / runs == pytest.approx(0.8, abs=0.07)
    assert st.smallest_difference(600, discordant) < points
    assert st.smallest_difference(5, 0.1) is None
    assert st.smallest_difference(0, 0.3) is None


def test_most_frequent_answers_follow_the_group_and_fall_back():
    train = [
        sample("1", "Is it normal?", ["Yes"], "yes_no"),
        sample("2", "Is it normal?", ["Yes"], "yes_no"),
        sample("3", "Is the lung healthy?", ["No"], "yes_no"),
        sample("4", "Which organ?", ["Lung"]),
    ]
    test = [
        sample("5", "is the lung  healthy?", ["No"], "yes_no"),
        sample("6", "Which organ?", ["Heart", "lung"]),
        sample("7", "How many?", ["2"], "number"),
    ]
    assert st.most_frequent_answers(train, test, st.by_kind) == ["yes", "lung", "yes"]
    assert st.most_frequent_answers(train, test, st.by_question) == ["no", "lung", "yes"]
    assert st.baseline_scores(train, test, st.by_kind) == [0, 1, 0]
    assert st.baseline_scores(train, test, st.by_question) == [1, 1, 0]


def test_most_frequent_answers_count_spellings_of_one_answer_together():
    train = [sample(str(i), "q", [a]) for i, a in enumerate(["Mass", "Mass", "Yes", "yes", "YES"])]
    assert st.most_frequent_answers(train, train[:1], st.by_kind) == ["yes"]
    assert st.most_frequent_answers([], train[:1], st.by_kind) == [""]
    assert st.baseline_scores([], train[:1], st.by_kind) == [0]


def test_equal_counts_do_not_hang_on_the_order_of_rows():
    train = [sample("1", "q", ["b"]), sample("2", "q", ["a"])]
    test = [sample("3", "q", ["a"])]
    assert st.most_frequent_answers(train, test, st.by_kind) == ["a"]
    assert st.most_frequent_answers(train[::-1], test, st.by_kind) == ["a"]


def test_agreement_by_hand():
    first = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    result = st.agreement(first, second)
    assert result["agreement"] == pytest.approx(70)
    assert result["kappa"] == pytest.approx((0.7 - 0.5) / 0.5)
    assert st.agreement([1, 1], [1, 1]) == {"n": 2, "agreement": 100.0, "kappa": None}
    assert st.agreement([], [])["n"] == 0
