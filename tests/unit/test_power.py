"""The difference that a comparison is announced to show, from made-up runs."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_compare import repository  # noqa: F401 (a fixture)
from test_diff import measured  # noqa: F401 (a fixture)

from rarl.cli import diff_study
from rarl.experiments.power import critical, detectable, disagreement, one_seed, smallest
from rarl.experiments.revisions import Workspace
from rarl.reporting.stats import sign_flip, smallest_difference
from rarl.studies import families
from rarl.studies.families import WORLDS, study

STUDIES = Path(__file__).parents[2] / "metrics/studies"


def test_the_announced_difference_has_the_stated_power():
    points = smallest(0.7, 100, 100, 0.4, alpha=0.01)
    assert one_seed(points / 100, 100, disagreement(0.3, 0.4, points / 100), 0.01) == pytest.approx(0.8)
    assert smallest(0.3, 100, 100, 0.4, alpha=0.01) == pytest.approx(points), "towards 50 % from either side"
    assert smallest(0.5, 150, 150, 0.0, alpha=0.05) == pytest.approx(smallest_difference(150, 0.5), rel=0.03)
    assert smallest(0.3, 100, 20, 0.4, alpha=0.01) > points, "few images"
    assert smallest(0.5, 8, 8, 0.0, alpha=0.001) is None


def test_the_critical_numbers_are_those_of_the_test():
    for pairs, found in enumerate(critical(12, 0.05)):
        for up in range(pairs // 2 + 1, pairs + 1):
            p = sign_flip([1] * up + [-1] * (pairs - up), range(pairs))
            assert (p <= 0.05) == (up >= found)
        assert found > pairs / 2


@pytest.mark.parametrize("seeds", [1, 3])
def test_in_simulated_families_the_bars_hold(seeds):
    """`rarl study diff` in short; the limits are the bars and two standard errors."""
    [found] = [case for case in study(60, 7, lambda _: None, [(seeds, WORLDS[1])])["cases"]]
    assert found["rows"] == 42 and found["false_findings_low"] <= 5
    assert found["power_low"] <= 85 and found["power_high"] >= 75


def test_without_the_correction_the_simulation_has_false_findings(monkeypatch):
    monkeypatch.setattr(
        families, "correct", lambda lines, alpha: [line.update(differs=line["p"] < alpha) for line in lines]
    )
    [found] = study(10, 7, lambda _: None, [(1, WORLDS[1])])["cases"]
    assert found["false_findings"] > 50


def test_the_command_writes_the_figures_and_a_page(tmp_path):
    result = CliRunner().invoke(diff_study.main, ["--families", "10", "--output", str(tmp_path / "diff.json")])
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "diff.json").read_text())["cases"]) == 4
    assert "Made by `rarl study diff --families 10 --seed 7`" in (tmp_path / "diff.md").read_text()


def test_the_shipped_figures_meet_the_bars_and_are_the_pages():
    report = json.loads((STUDIES / "diff.json").read_text(encoding="utf-8"))
    for case in report["cases"]:
        assert case["false_findings"] <= report["bars"]["false_findings"]
        assert report["bars"]["power"][0] <= case["power"] <= report["bars"]["power"][1]
    command = f"rarl study diff --families {report['families']} --seed {report['seed']}"
    assert (STUDIES / "diff.md").read_text(encoding="utf-8") == families.as_markdown(report, command)


def test_more_seeds_show_smaller_differences_unless_seeds_are_the_noise():
    churn = disagreement(0.5, 0.5, 0) / 200
    one, three, five = (smallest(0.5, 100, 100, 0.5, 0.01, seeds=k, sd=churn**0.5) for k in (1, 3, 5))
    assert five < three < one
    assert smallest(0.5, 100, 100, 0.5, 0.01, seeds=3, sd=0.1) > one


def test_the_noise_is_that_of_the_verdicts_else_of_the_scores(measured):  # noqa: F811
    lines = detectable(Workspace())
    assert [(line["model"], line["mode"], line["set"]) for line in lines] == [
        (model, "reasoning", "silvar_med") for model in ("sft", "grpo", "rarl")
    ]
    assert {line["n_effective"] for line in lines} == {100.0}, "of the scores: only one model has verdicts"
    assert lines[0]["points"] == pytest.approx(smallest(0.6, 100.0, 100.0, 0.0, 0.05 / 3), abs=0.01)
    [alone] = detectable(Workspace(), models=["sft"])
    assert alone["points"] < lines[0]["points"], "a smaller family"
    assert {line["points"] for line in detectable(Workspace(), seeds=3)} == {None}, "no spread over seeds is known"
