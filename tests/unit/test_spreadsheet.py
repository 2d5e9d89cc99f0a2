"""What people open in a spreadsheet runs nothing, and what the project reads back is what it wrote."""

import csv
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_report import OWN_TEST, make_run, score_and_report

from rarl.params import load_params
from rarl.records import Prediction, Sample, read_records, write_records
from rarl.reporting import tables
from rarl.reporting.inputs import Run
from rarl.spreadsheet import restore, safe, write_csv, write_frame

FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", "- 3 cm", "'=1"]
HARMLESS = ["yes", "", "a=b", "-3.2", "+4", "-1e-05", "-inf", "3 - 2", "it's", "'quoted'"]


def runs(cell: str) -> bool:
    """Whether a spreadsheet takes the cell for a formula: said here apart from the code."""
    try:
        float(cell)
    except ValueError:
        return cell[:1] in tuple("=+-@\t\r\n＝＋－＠")
    return cell[:1] in tuple("\t\r\n")


def cells(path: str | Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_formula_becomes_text(cell):
    assert safe(cell) == f"'{cell}" and not runs(safe(cell)) and restore(safe(cell)) == cell


@pytest.mark.parametrize("cell", HARMLESS)
def test_other_text_and_numbers_stay(cell):
    assert safe(cell) == cell == restore(cell)


@given(st.text(alphabet="=+-@'\t\r\n12.e＝a ", max_size=8) | st.text())
@example("'-3.2")
def test_any_cell_is_safe_and_comes_back(cell):
    assert not runs(safe(cell)) and restore(safe(cell)) == cell


def test_a_table_keeps_its_rows_and_numbers(tmp_path):
    rows = [("text", "number"), ("=1", -3.25), ("a\r=1\r\n@b", -2), ("-4", None), ('"', "")]
    write_csv(tmp_path / "a.csv", rows)
    assert cells(tmp_path / "a.csv") == [
        ["text", "number"], ["'=1", "-3.25"], ["a\n=1\n@b", "-2"], ["-4", ""], ['"', ""]
    ]  # fmt: skip
    frame = pd.DataFrame(rows[1:], columns=rows[0]).assign(whole=pd.array([1, None, -3, 4], "Int64"))  # fmt: skip
    write_frame(tmp_path / "b.csv", frame)
    assert [row[2] for row in cells(tmp_path / "b.csv")] == ["whole", "1", "", "-3", "4"]
    assert cells(tmp_path / "b.csv")[2][0] == "a\n=1\n@b"


def test_formulas_in_questions_answers_and_categories_run_in_no_table(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, models=["base", "rarl"], judges=["lexical", "semantic"], benchmarks=[],
             modes=["reasoning"], logs=False)  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rows = read_records("data/curated/test.jsonl", Sample)
    texts = FORMULAS[:4] * 5
    rows = [row.model_copy(update={"question": text, "answers": [text], "category": text})
            for row, text in zip(rows, texts)]  # fmt: skip
    write_records("data/curated/test.jsonl", rows)
    for model in ("base", "rarl"):
        path = f"data/predictions/{model}/reasoning/{OWN_TEST}.jsonl"
        said = read_records(path, Prediction)
        write_records(path, [row.model_copy(update={"answer": text}) for row, text in zip(said, texts)])  # fmt: skip
    score_and_report(tmp_path, monkeypatch)

    written = [*Path("data").rglob("*.csv"), *Path("metrics").rglob("*.csv")]
    assert {"disagreements.csv", "base.csv", "breakdown.csv"} <= {path.name for path in written}
    for path in written:
        assert not [cell for row in cells(path) for cell in row if runs(cell)], path
    listed = cells("data/report/disagreements.csv")
    questions = {row[listed[0].index("question")] for row in listed[1:]}
    assert questions and questions <= {f"'{text}" for text in FORMULAS[:4]}
    # Read back, a category is the one of the questions.
    frame = tables.breakdown(Run(load_params()))
    assert set(frame[frame["by"] == "category"]["value"]) == set(FORMULAS[:4])
