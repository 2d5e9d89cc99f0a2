"""The paper's claims against its own tables and against a made-up run."""

import pandas as pd
import pytest
from test_report import OWN_TEST, make_run, score_and_report

from rarl.params import load_params
from rarl.reporting import claims
from rarl.reporting.inputs import Run
from rarl.reporting.stats import unpaired


@pytest.fixture
def frame(full, monkeypatch):
    monkeypatch.chdir(full[0])
    return claims.claims(Run(load_params()))


def lines(frame, claim, source="paper"):
    return frame[(frame["claim"] == claim) & (frame["source"] == source)].to_dict("records")


def verdict(frame, claim, source="paper"):
    return claims.overall([line["verdict"] for line in lines(frame, claim, source)])


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("observation_1_sft", "undecided"),
        ("observation_1_full", "holds"),
        ("observation_2_own", "undecided"),
        ("observation_2_unseen", "holds"),
        ("observation_2_gap", "undecided"),
        ("abstract_778", "undecided"),
        ("abstract_27", "holds"),
        ("abstract_4", "undecided"),
        ("observation_3_own", "undecided"),
        ("observation_3_prompt", "undecided"),
    ],
)
def test_what_the_papers_own_tables_bear_out(frame, claim, expected):
    assert verdict(frame, claim) == expected


@pytest.mark.parametrize(
    ("claim", "figure", "where"),
    [
        ("abstract_778", 7.78, ["ratio of Own test (Silvar-Med), final, by Human"]),
        ("abstract_27", 27, []),
        ("abstract_4", 4.17, ["ratio of VQA-RAD, final, by GPT-4o mini"]),
        ("abstract_4", 9.18, ["ratio of SLAKE, final, by GPT-4o mini"]),
        ("observation_3_own", 4.5, []),
        ("observation_3_prompt", 4.01, ["ratio of Own test (Silvar-Med), reasoning, by GPT-4o mini"]),
        ("observation_3_prompt", 7.78, ["ratio of Own test (Silvar-Med), final, by Human"]),
    ],
)
def test_where_the_printed_figures_come_from(frame, claim, figure, where):
    assert claims.printed_as(figure, lines(frame, claim)) == where


def test_points_and_ratio_of_the_example_that_the_paper_prints(frame):
    [row] = [x for x in lines(frame, "abstract_4") if (x["set"], x["judge"]) == ("vqa_rad", "gpt_4o_mini")]
    assert (row["difference"], row["ratio"], row["n"]) == (1.83, 4.17, 451)
    assert row["low"] < 0 < row["high"] and row["verdict"] == "undecided"
    [own] = [x for x in lines(frame, "observation_2_own") if (x["score"], x["judge"]) == ("final", "gpt_4o_mini")]
    assert own["difference"] == -3.37 and own["n"] == 148 and own["verdict"] == "undecided"


def test_newcombes_interval_against_the_published_example():
    """Newcombe (1998), table II, example (a), method 10: 56/70 and 48/80 give 0.0524 to 0.3339."""
    low, high = unpaired(100 * 48 / 80, 80, 100 * 56 / 70, 70)
    assert (low, high) == (pytest.approx(5.24, abs=0.01), pytest.approx(33.39, abs=0.01))


def test_verdicts():
    assert claims.side(0.1, 9) == "holds" and claims.side(-9, -0.1) == "fails"
    assert claims.side(-1, 1) == "undecided" and claims.side(-1, 1, margin=2) == "holds"
    assert claims.overall(["holds", "holds"]) == "holds"
    assert claims.overall(["holds", "undecided"]) == "undecided"
    assert claims.overall(["holds", "undecided", "fails"]) == "fails"
    assert claims.overall([]) == "not run"


def test_ours_are_paired_on_the_same_questions(full, frame, monkeypatch):
    monkeypatch.chdir(full[0])
    run = Run(load_params())
    [row] = [x for x in lines(frame, "observation_2_own", "ours") if x["score"] == "final"]
    first, second = (
        [v.prediction_score for v in run.verdicts[model, "reasoning", OWN_TEST, "lexical"]]
        for model in ("sft", "grpo")
    )
    both = [(a, b) for a, b in zip(first, second) if None not in (a, b)]
    assert row["n"] == len(both)
    assert row["difference"] == pytest.approx(100 * sum(b - a for a, b in both) / len(both), abs=0.006)
    assert {x["set"] for x in lines(frame, "abstract_27", "ours")} == {"vqa_rad", "slake", "vqa_med", "path_vqa"}
    assert verdict(frame, "observation_1_sft", "ours") == "not run"


def test_table_2_of_the_study_is_read(full, monkeypatch, tmp_path):
    monkeypatch.chdir(full[0])
    study = tmp_path / "table2.csv"
    pd.DataFrame(
        [
            {"source": "paper", "method": "SFT", "samples": 500, "Total": 47.19, "n": None},
            {"source": "ours (embedded)", "method": "SFT", "samples": 500, "Total": 40.0, "n": 2638},
            {"source": "ours (embedded)", "method": "RL w/ LoRA", "samples": 500, "Total": 50.0, "n": 2638},
        ]
    ).to_csv(study, index=False)
    monkeypatch.setattr(claims, "TABLE2", study)
    assert not len(claims.our_table2("paper")), "another profile's"
    found = lines(claims.claims(Run(load_params())), "observation_1_sft", "ours")
    assert [(x["score"], x["difference"], x["verdict"]) for x in found] == [("500 samples", 10.0, "holds")]


def test_a_claim_about_a_model_that_was_not_run_is_not_judged(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, models=["base", "sft"], judges=["lexical"], benchmarks=[], logs=False)
    html, output = score_and_report(tmp_path, monkeypatch)
    frame = claims.claims(Run(load_params()))
    assert set(frame["source"]) == {"paper"}
    assert "not run" in html and "not run" in output
