"""The report with rivals: one asked under one mode only and read in another form, and one asked like the rest."""

import re
from pathlib import Path

import pandas as pd
import pytest
from test_report import OWN_TEST, make_run, score_and_report

from rarl.params import load_params
from rarl.rating.export import present_answers
from rarl.records import read_json
from rarl.reporting.inputs import Run

RIVALS = {
    "near": {"label": "Near <b>", "source": "data/base"},
    "2b": {"label": "Two B", "source": "data/base", "modes": ["reasoning"], "reads": "boxed"},
}
SIZE = {"rows": 24, "benchmarks": ["slake"], "judges": ["lexical", "semantic"], "logs": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The tables of a run of base, sft and rarl without rivals and of the same with two, then its page and output."""
    found = {}
    for name, rivals in (("without", {}), ("with", RIVALS)):
        root = tmp_path_factory.mktemp(name)
        make_run(root, **SIZE, models=["base", "sft", "rarl", *rivals], rival=rivals)
        with pytest.MonkeyPatch.context() as patch:
            html, output = score_and_report(root, patch)
        found[name] = root, html, output
    return found


def table(runs, which: str, name: str) -> pd.DataFrame:
    return pd.read_csv(runs[which][0] / f"metrics/tables/{name}.csv")


@pytest.mark.parametrize("name", ["paired_tests", "detectable", "claims", "table3"])
def test_no_number_of_the_others_moves(runs, name):
    before, after = table(runs, "without", name), table(runs, "with", name)
    if name == "paired_tests":
        after = after[~after["family"].str.endswith(", with rivals")]
    pd.testing.assert_frame_equal(before, after.reset_index(drop=True))


def test_agreement_over_all_models_is_without_rivals(runs):
    before, after = table(runs, "without", "agreement"), table(runs, "with", "agreement")
    kept = after[~after["model"].isin([*RIVALS])].reset_index(drop=True)
    pd.testing.assert_frame_equal(before, kept)
    assert {*after["model"]} >= {*RIVALS}


def test_rivals_are_compared_with_every_model_in_families_of_their_own(runs):
    tests = table(runs, "with", "paired_tests")
    pairs = tests[tests["family"] == "between models, with rivals"]
    assert {frozenset(pair) for pair in zip(pairs["first"], pairs["second"])} == {
        frozenset(pair) for pair in [*((m, r) for m in ("base", "sft", "rarl") for r in RIVALS), ("near", "2b")]
    }
    assert (pairs["p_holm"] >= pairs["p"]).all()
    modes = tests[tests["family"] == "from direct to reasoning, with rivals"]
    assert [*modes["first"]] == ["near, direct"], "the other one is not asked under it"


def test_a_rival_is_shown_under_its_modes(runs):
    own = table(runs, "with", "own_test")
    assert [*own.loc[own["model"] == "2b", "mode"]] == ["reasoning"]
    assert {*own.loc[own["model"] == "near", "mode"]} == {"reasoning", "direct", "blank"}
    cell = read_json(runs["with"][0] / "metrics/scores/2b.json")["reasoning"][OWN_TEST]["lexical"]
    assert cell["untagged"] == 100.0, "no box in its completions"


def test_pages_name_rivals_with_colours_of_their_own(runs):
    root, html, output = runs["with"]
    assert html.count("rival: not trained here") == 2 and "Near &lt;b&gt;" in html and "Near <b>" not in html
    assert "comparisons with rivals in families of their own" in html and "all models but the rivals" in html
    assert "--m-near: #aa00ff" in html and "--m-2b: #bb1133" in html
    assert "test, with rivals, points" in output and re.search(r"\d of 7 comparisons with rivals", html)
    assert 'data-cost="rival_near"' in html
    cases = (root / "data/report/cases.html").read_text(encoding="utf-8")
    assert '"2b": ["reasoning"]' in cases or '"2b":["reasoning"]' in cases
    assert "Two B" in (root / "data/report/report.md").read_text(encoding="utf-8")
    _, html, _ = runs["without"]
    assert "rival" not in re.sub(r"<dl.*?</dl>", "", html, flags=re.DOTALL)


def test_the_rating_page_counts_only_what_was_asked(runs, monkeypatch):
    monkeypatch.chdir(runs["with"][0])
    params = load_params()
    assert present_answers(params)
    assert ("2b", "direct") not in Run(params).asked and Path("data/predictions/2b").is_dir()
