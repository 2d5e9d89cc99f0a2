"""The labelled pairs of the semantic judge's calibration, and the curve over them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from rarl.answers.matching import matches
from rarl.judges.semantic import CONTRADICTED
from rarl.records import Sample
from rarl.studies.threshold import GRID, Pair, answer_pairs, as_markdown, calibrate, middle, reasoning_pairs, reworded


def row(index, answer, question="What is seen?", kind="open", reasoning=None, modality="xray"):
    return Sample(
        id=f"x/dev/{index}", dataset="x", split="dev", image="a.png", image_sha256=str(index), question=question,
        answers=[answer], kind=kind, reasoning=reasoning, modality=modality,
    )  # fmt: skip


ROWS = [
    row(1, "Nodule"),
    row(2, "Effusion, Mass"),
    row(3, "Brain tumor"),
    row(4, "None"),
    row(5, "Yes", kind="yes_no"),
    row(6, "nodule"),
]


def test_pairs_are_labelled_by_rule_and_none_is_decided_by_text_alone():
    pairs = answer_pairs(ROWS)
    assert {pair.row for pair in pairs} == {"x/dev/1", "x/dev/2", "x/dev/3", "x/dev/6"}
    by_id = {sample.id: sample for sample in ROWS}
    for pair in pairs:
        sample = by_id[pair.row]
        assert not matches(pair.text, sample.answers, sample.kind, sample.choices)
    kinds = {pair.kind: pair.right for pair in pairs}
    assert kinds == {
        "sentence": True, "other words": True, "another answer": False, "another term": False,
        "too many or few": False,
        "denied": False,
    }  # fmt: skip
    assert Pair("x/dev/2", "too many or few", False, "Effusion", "Effusion, Mass", "What is seen?") in pairs
    assert not any(p.kind == "another answer" and "nodule" in p.text.lower() for p in pairs if p.row == "x/dev/1")
    assert pairs == answer_pairs(ROWS)


def test_a_term_is_reworded_as_a_whole_word():
    assert reworded("Brain tumor") == "cerebral tumour"
    assert reworded("nodules") is None and reworded("Nothing") is None


def test_reasoning_pairs_come_from_annotated_rows():
    rows = [
        row(1, "No", "Is it normal?", "yes_no", "There is a nodule. So it is not normal."),
        row(2, "Yes", "Is it normal?", "yes_no", "The lung is clear. So it is normal."),
        row(3, "Mass", reasoning="There is a bright mass.", modality="mri"),
        row(4, "Mass"),
    ]
    pairs = [p for p in reasoning_pairs(rows) if p.row == "x/dev/1"]
    assert {(p.kind, p.text) for p in pairs} == {
        ("other words", "There is a nodular. So it is not normal."),
        ("reordered", "So it is not normal. There is a nodule."),
        ("another answer", "The lung is clear. So it is normal."),
        ("another picture", "There is a bright mass."),
    }


def pairs_of(right, wrong):
    return [Pair(str(i % 7), "r", True, "", "") for i in range(right)] + [
        Pair(str(i % 7), "w", False, "", "") for i in range(wrong)
    ]


def test_the_threshold_lies_in_the_middle_of_the_gap():
    found = calibrate(pairs_of(20, 30), [0.9] * 20 + [0.5] * 30)
    assert found["auc"] == 1 and found["balanced_accuracy"] == 1
    assert found["chosen"] == pytest.approx(0.705) or found["chosen"] in (0.7, 0.71)
    assert found["low"] <= found["chosen"] <= found["high"]
    assert found["curve"][0] == [0.0, 1.0, 1.0] and found["curve"][-1] == [1.0, 0.0, 0.0]
    assert (found["right"], found["wrong"], found["rows"]) == (20, 30, 7)


def test_every_kind_weighs_the_same_within_its_label():
    """100 easy wrong pairs do not drown 10 hard ones."""
    rng = np.random.default_rng(0)
    easy = [Pair(str(i), "easy", False, "", "") for i in range(100)]
    hard = [Pair(str(i), "hard", False, "", "") for i in range(10)]
    right = [Pair(str(i), "right", True, "", "") for i in range(50)]
    cosines = [0.1] * 100 + [0.8] * 10 + list(rng.uniform(0.7, 1, 50))
    assert calibrate([*easy, *hard, *right], cosines)["chosen"] > 0.8
    assert calibrate([*easy, *right], cosines[:100] + cosines[110:])["chosen"] < 0.71


def test_what_is_refused_at_any_threshold_moves_none():
    right, wrong = [0.7, 0.8, 0.9], [0.2, 0.5, 0.75]
    pairs = pairs_of(3, 3)
    refused = [Pair(str(i), "denied", False, "", "") for i in range(50)]
    alone = calibrate(pairs, right + wrong)
    found = calibrate([*pairs, *refused], right + wrong + [CONTRADICTED] * 50)
    assert (found["chosen"], found["auc"], found["curve"]) == (alone["chosen"], alone["auc"], alone["curve"])
    assert set(found["kinds"]["denied"]["curve"]) == {0}


def test_one_label_alone_calibrates_nothing():
    assert calibrate(pairs_of(5, 0), [0.5] * 5) is None
    assert calibrate([], []) is None


def test_a_tie_is_split():
    taken = np.where(GRID < 0.6, 1.0, 0.0)
    refused = np.where(GRID < 0.4, 1.0, 0.0)
    assert middle(taken, refused) == pytest.approx(0.495, abs=0.006)


def test_the_study_writes_numbers_into_git_and_texts_beside(tmp_path, monkeypatch):
    from rarl.cli import threshold_study
    from rarl.judges import semantic
    from rarl.records import write_records

    monkeypatch.chdir(tmp_path)
    write_records("data/curated/dev.jsonl", ROWS)
    monkeypatch.setattr(
        threshold_study, "load_params", lambda: type("P", (), {"encoder": type("E", (), {"source": "fake"})})
    )
    monkeypatch.setattr(semantic, "embed", lambda texts, source: {t: np.array([len(t) % 5, 1.0]) / 9 for t in texts})
    result = CliRunner().invoke(threshold_study.main, [], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "metrics/studies/semantic_threshold.json").read_text(encoding="utf-8")
    study = json.loads(text)
    assert set(study["parts"]) == {"answers"} and "odule" not in text
    assert "odule" in (tmp_path / "data/studies/semantic_threshold.csv").read_text(encoding="utf-8")
    assert "| answers | denied | wrong |" in as_markdown(study, "x")


def test_without_open_answers_the_study_says_so(tmp_path, monkeypatch):
    from rarl.cli import threshold_study
    from rarl.records import write_records

    monkeypatch.chdir(tmp_path)
    write_records("data/curated/dev.jsonl", [ROWS[4]])
    monkeypatch.setattr(
        threshold_study, "load_params", lambda: type("P", (), {"encoder": type("E", (), {"source": "fake"})})
    )
    result = CliRunner().invoke(threshold_study.main, [])
    assert result.exit_code == 1 and "open questions" in result.output and "Traceback" not in result.output
