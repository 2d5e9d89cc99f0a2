"""The difference that a comparison is announced to show, from made-up runs."""

import pytest
from test_compare import repository  # noqa: F401 (a fixture)
from test_diff import measured  # noqa: F401 (a fixture)

from rarl.reporting.stats import sign_flip, smallest_difference
from rarl.studies.experiments import Workspace
from rarl.studies.power import critical, detectable, disagreement, one_seed, smallest


def test_the_announced_difference_has_the_stated_power():
    points = smallest(0.7, 100, 0.4, alpha=0.01)
    assert one_seed(points / 100, 100, disagreement(0.3, 0.4, points / 100), 0.01) == pytest.approx(0.8)
    assert smallest(0.3, 100, 0.4, alpha=0.01) == pytest.approx(points), "towards 50 % from either side"
    assert smallest(0.5, 150, 0.0, alpha=0.05) == pytest.approx(smallest_difference(150, 0.5), rel=0.03)
    assert smallest(0.5, 8, 0.0, alpha=0.001) is None


def test_the_critical_numbers_are_those_of_the_test():
    for pairs, found in enumerate(critical(12, 0.05)):
        for up in range(pairs // 2 + 1, pairs + 1):
            p = sign_flip([1] * up + [-1] * (pairs - up), range(pairs))
            assert (p <= 0.05) == (up >= found)
        assert found > pairs / 2


def test_more_seeds_show_smaller_differences_unless_seeds_are_the_noise():
    churn = disagreement(0.5, 0.5, 0) / 200
    one, three, five = (smallest(0.5, 100, 0.5, 0.01, seeds=k, sd=churn**0.5) for k in (1, 3, 5))
    assert five < three < one
    assert smallest(0.5, 100, 0.5, 0.01, seeds=3, sd=0.1) > one


def test_the_noise_is_that_of_the_verdicts_else_of_the_scores(measured):  # noqa: F811
    lines = detectable(Workspace())
    assert [(line["model"], line["mode"], line["set"]) for line in lines] == [
        (model, "reasoning", "silvar_med") for model in ("sft", "grpo", "rarl")
    ]
    assert {line["n_effective"] for line in lines} == {100.0}, "of the scores: only one model has verdicts"
    assert lines[0]["points"] == pytest.approx(smallest(0.6, 100.0, 0.0, 0.05 / 3), abs=0.01)
    [alone] = detectable(Workspace(), models=["sft"])
    assert alone["points"] < lines[0]["points"], "a smaller family"
    assert {line["points"] for line in detectable(Workspace(), seeds=3)} == {None}, "no spread over seeds is known"
