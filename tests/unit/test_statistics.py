"""Statistics against closed forms, published examples and brute force."""

import math

import pytest

from rarl.records import Sample
from rarl.reporting import stats as st


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


def test_mcnemar_is_exact_for_few_discordant_pairs():
    result = st.mcnemar(*series(50, 2, 10, 38))
    exact = 2 * sum(math.comb(12, k) for k in range(3)) / 2**12
    assert result["p"] == pytest.approx(exact)
    assert (result["first_only"], result["second_only"]) == (2, 10)
    assert result["difference"] == pytest.approx(8.0)
    assert result["low"] < 8.0 < result["high"]


def test_mcnemar_is_chi_square_with_continuity_correction_for_many():
    result = st.mcnemar(*series(50, 20, 40, 40))
    chi = (abs(20 - 40) - 1) ** 2 / 60
    assert result["p"] == pytest.approx(math.erfc(math.sqrt(chi / 2)))


def test_mcnemar_without_a_discordant_pair_says_nothing_differs():
    result = st.mcnemar(*series(5, 0, 0, 5))
    assert result["p"] == 1.0 and result["difference"] == 0
    assert result["low"] < 0 < result["high"]
    with pytest.raises(ValueError):
        st.mcnemar([], [])
    with pytest.raises(ValueError):
        st.mcnemar([1], [1, 0])


def test_mcnemar_is_antisymmetric():
    a, b = series(30, 4, 13, 20)
    there, back = st.mcnemar(a, b), st.mcnemar(b, a)
    assert there["p"] == back["p"]
    assert there["difference"] == -back["difference"]
    assert there["low"] == pytest.approx(-back["high"])


def test_holm_by_hand():
    adjusted, differs = st.holm([0.01, 0.04, 0.03], 0.05)
    assert adjusted == pytest.approx([0.03, 0.06, 0.06])
    assert differs == [True, False, False]
    assert st.holm([]) == ([], [])


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
