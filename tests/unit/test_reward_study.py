"""The study of the reasoning reward: its texts, its statistics, and the report in the repository."""

import doctest
import json
from functools import cache

import numpy as np
import pytest
from click.testing import CliRunner

from rarl.cli.reward_study import main
from rarl.params import load_params
from rarl.phantom.medical import Finding
from rarl.rewards import terms
from rarl.rewards.reasoning import score_reasoning
from rarl.studies import ranking, reasoning_reward
from rarl.studies.ranking import interval, rate, score_cases
from rarl.studies.reasoning_texts import KINDS, REPEATED, RIGHT, SAME_STYLE, WRONG, make_cases


class Overlap:
    """Stands in for BERTScore: Jaccard index of the words."""

    def f1(self, pairs):
        words = [(set(left.lower().split()), set(right.lower().split())) for left, right in pairs]
        return [len(left & right) / max(len(left | right), 1) for left, right in words]


@cache
def cases(seed=3, count=120):
    return make_cases(seed, count)


def test_a_seed_gives_the_same_texts_again():
    assert make_cases(5, 8) == make_cases(5, 8) != make_cases(6, 8)


def test_every_kind_is_there_and_none_is_the_annotation():
    for kind in (*KINDS, *SAME_STYLE.values()):
        assert any(kind in case.texts for case in cases()), kind
    for case in cases():
        assert set(case.texts) <= {*KINDS, *SAME_STYLE.values()}
        assert {*RIGHT, REPEATED, "denied", "vague", "listed"} <= set(case.texts)
        assert case.annotation not in case.texts.values()
        assert case.texts[REPEATED].count(case.annotation) == 3


def abnormal():
    return [case for case in cases() if case.findings]


def test_right_texts_name_the_sides_that_were_drawn_and_wrong_ones_others():
    for case in abnormal():
        if case.modality == "ct" or not any(finding.side for finding in case.findings):
            continue
        sides = {finding.side for finding in case.findings if finding.side}
        for style in ("plain", "report"):
            assert all(f" {side} " in f" {case.texts[style]} " for side in sides)
        if len(sides) == 1:
            [side] = {"left", "right"} - sides
            assert f" {side} " in case.texts["other_place"]
            assert f" {side} " in case.texts["other_place_report"]


def test_denied_texts_deny_every_disease():
    for case in abnormal():
        read = terms.facts(case.texts["denied"])
        for finding in case.findings:
            term = {"Brain Tumor": "tumor", "Brain Edema": "edema"}.get(finding.name)
            term = term or ("tumor" if "Cancer" in finding.name else finding.name.lower())
            if term != "cardiomegaly":  # also seen as "no large heart"
                assert (term, True) not in read and (term, False) in read, case.texts["denied"]


def test_other_finding_is_not_one_of_the_pictures():
    for case in abnormal():
        if "other_finding" in case.texts:
            named = {finding.name.lower() for finding in case.findings}
            assert any(
                name not in named and name in case.texts["other_finding"]
                for name in ("pneumonia", "nodule", "mass", "effusion", "cardiomegaly",
                             "brain tumor", "brain edema", "liver cancer", "kidney cancer")
            )  # fmt: skip


def test_right_texts_are_not_made_of_the_lexicons_words():
    known = reasoning_reward.known_words(cases())
    assert known["plain"] < 0.35
    assert known["report"] < 0.75
    overlap = score_cases(cases(), Overlap().f1)
    assert np.nanmean(overlap["plain"]) < 0.3 and np.nanmean(overlap["report"]) < 0.3


def hand_made(right, **wrong):
    """Scores of three cases in which all right styles score the same."""
    scores = {kind: np.zeros(3) for kind in (*KINDS, *SAME_STYLE.values())}
    scores |= {style: np.array(right) for style in RIGHT}
    return scores | {kind: np.array(values) for kind, values in wrong.items()}


def test_rates_of_a_small_table_worked_out_by_hand():
    scores = hand_made(
        [0.9, 0.5, 0.4],
        denied=[0.8, 0.6, 0.4],
        vague=[0.45, np.nan, np.nan],
        repeated=[1.0, 1.0, 1.0],
        denied_plain=[0.9, 0.6, np.nan],
    )
    found = {key: values[0] for key, values in rate(scores, 1).items()}
    assert found["first"] == pytest.approx(1 / 3)  # 0.4 ties with 0.4, and `repeated` is left out
    assert found["auc/denied"] == pytest.approx((3 + 1 + 0.5) / 9)
    assert found["within/denied"] == pytest.approx(1.5 / 3)
    assert found["auc/vague"] == pytest.approx(2 / 3)
    assert found["within/vague"] == 1
    assert found["auc/repeated"] == 0
    assert found["same/denied/plain"] == pytest.approx(0.25)
    assert found["auc/listed"] == 1


def test_auc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    scores = score_cases(cases(), Overlap().f1)
    right = np.concatenate([scores[style] for style in RIGHT])
    for kind in ("other_place", "denied", REPEATED):
        wrong = scores[kind][~np.isnan(scores[kind])]
        labels = [1] * len(right) + [0] * len(wrong)
        expected = roc_auc_score(labels, np.concatenate([right, wrong]))
        assert rate(scores, 1)[f"auc/{kind}"][0] == pytest.approx(expected)


def test_intervals_hold_the_value_and_narrow_with_the_number_of_cases():
    rng = np.random.default_rng(1)
    widths = []
    for count in (20, 200):
        kinds = (*KINDS, *SAME_STYLE.values())
        scores = {kind: rng.normal(kind in RIGHT, 1, count) for kind in kinds}
        value, low, high = interval(rate(scores, 1)["auc/vague"])
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < 0.75 * widths[0]


def test_a_thinned_lexicon_reads_less_and_leaves_nothing_behind():
    text = "A hypoattenuating focus in the hepatic parenchyma, an enlarged heart, tiny, basal, renal."
    before, whole = terms.facts(text), terms.WORDINGS
    with reasoning_reward.thinned_lexicon(1):
        assert len(terms.WORDINGS) < 0.8 * len(whole)
        assert terms.facts(text) < before
        assert terms.facts("a nodule in the left lung") == {("nodule", True), ("left", True), ("lung", True)}
    assert terms.WORDINGS is whole
    assert terms.facts(text) == before


def test_study_and_report_with_a_stand_in_for_the_encoder():
    report = reasoning_reward.study(cases(), Overlap(), 0.5, 1)
    assert report["favoured"] in reasoning_reward.MEASURES
    assert set(report["gain_over_bertscore"]) == {"terms", "mix"}
    for row in report["guards"]:
        assert row["guarded"] < row["earns"] and row["sound_stopped"] == 0, row
    text = reasoning_reward.as_markdown(json.loads(json.dumps(report)), "the command", "a stand-in")
    for words in ("the command", "a stand-in", "| report |", *WRONG, *reasoning_reward.VARIANTS.values()):
        assert words in text
    assert "nan" not in text


def test_the_study_takes_a_seed_of_its_own(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    output = str(tmp_path / "study.json")
    result = CliRunner().invoke(main, ["--seed", "97", "--output", output])
    assert result.exit_code == 1 and "--seed" in result.output
    assert list(tmp_path.iterdir()) == []


def test_shipped_profile_uses_what_the_study_in_the_repository_favours(repository):
    report = json.loads((repository / "metrics/studies/reasoning_reward.json").read_text())
    params = load_params(repository / "params.yaml")
    expected = report["favoured"] if report["clearly_better"] else "bertscore"
    assert params.reward.reasoning == expected
    assert not any(params.reward.guards.model_dump().values())


def test_the_report_in_the_repository_is_that_of_the_present_terms_and_texts(repository):
    """Who changes the lexicon or the texts runs `rarl study reward` again."""
    report = json.loads((repository / "metrics/studies/reasoning_reward.json").read_text())
    told = make_cases(20, report["cases"])
    scores = score_cases(told, lambda pairs: score_reasoning(pairs, None, "terms"))
    for kind in KINDS:
        mean = report["measures"]["terms"][f"mean/{kind}"]
        assert np.nanmean(scores[kind]) == pytest.approx(mean, abs=0.001), kind
    text = (repository / "metrics/studies/reasoning_reward.md").read_text(encoding="utf-8")
    assert reasoning_reward.as_markdown(report, "@", "@").split("\n\n")[2:] == text.split("\n\n")[2:]


@pytest.mark.parametrize("module", [ranking, reasoning_reward])
def test_the_worked_examples_in_the_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_findings_are_those_of_the_phantoms():
    assert all(isinstance(one, Finding) for case in cases() for one in case.findings)
    share = np.mean([bool(case.findings) for case in cases()])
    assert 0.4 < share < 0.7


def test_a_judge_is_a_fourth_measure():
    """The stand-in calls a text right if it is the annotation; of some texts it says nothing usable."""

    def grade(items):
        return [None if text.startswith("No") else float(text == annotation) for _, _, annotation, text in items]

    report = reasoning_reward.study(cases(count=40), Overlap(), 0.5, 1, grade, "a stand-in")
    found = report["measures"]["judge"]
    told = [text for case in cases(count=40) for text in case.texts.values()]
    assert report["judge"] == {
        "is": "a stand-in",
        "texts": len(told),
        "usable": sum(not text.startswith("No") for text in told),
    }
    assert 0 < report["judge"]["usable"] < len(told) and found["mean/listed"] == 0
    assert found["first"][0] < 0.05 and "judge" in report["gain_over_bertscore"]
    text = reasoning_reward.as_markdown(json.loads(json.dumps(report)), "the command", "an encoder")
    assert "`judge` is a stand-in" in text and "| `mix` | `judge` |" in text and "nan" not in text


def test_the_truth_rater_reads_the_findings():
    rated = reasoning_reward.truth_ratings(cases()).reshape(len(KINDS), -1)
    mean = {kind: np.nanmean(row) for kind, row in zip(KINDS, rated)}
    assert mean["reordered"] > 0.95 and mean["repeated"] > 0.95 and mean["other_place"] > 0.95
    assert mean["denied"] < 0.05 and mean["other_finding"] < 0.05 and mean["vague"] < 0.05


def test_agreement_is_that_of_the_statistics_libraries():
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    rated, scores = np.array([0, 1, 1, np.nan, 0]), np.array([0.2, 0.9, 0.1, 0.8, 0.1])
    there = [0, 1, 2, 4]
    found = reasoning_reward.agreement(scores, rated)
    assert found["auc"] == pytest.approx(roc_auc_score(rated[there], scores[there]), abs=1e-3)
    assert found["spearman"] == pytest.approx(spearmanr(rated[there], scores[there]).statistic, abs=1e-3)


def test_a_judge_that_grades_no_reasoning_is_refused(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    result = CliRunner().invoke(main, ["--judge", "semantic", "--output", str(tmp_path / "study.json")])
    assert result.exit_code == 1 and "a judge of kind llm or local" in result.output
