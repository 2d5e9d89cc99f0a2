"""`rarl study judges`: labelled rows, the judges' figures on them, and the peers. All texts here are invented."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import cohen_kappa_score

from rarl.cli import main
from rarl.errors import UserError
from rarl.params import load_params
from rarl.studies import judges as judges_study
from rarl.studies import peers
from rarl.studies.judges import TABLE, chosen_judges, figures, read_before, read_rows, study
from rarl.studies.peers import PEERS, best_threshold, cross_validated, peer_scores

KEYS = ["n", "kappa", "kappa_low", "kappa_high", "false_accepts", "false_rejects"]


def row(question="What is the gizzard made of?", answers=("copper",), prediction="Copper.", right=1, **more):
    texts = {"question": question, "answers": list(answers), "prediction": prediction}
    return texts | {"judge": "Ann", "right": right} | more


ROWS = [
    row(),
    row(prediction="Brass."),  # false reject
    row("Is the antenna bent?", ["yes"], "<think>It leans.</think> <answer>Yes, it is.</answer>"),
    row("Is the antenna bent?", ["yes"], "No.", 0),
    row("Is the antenna bent?", ["no"], "No.", 0),  # false accept
    row("How many gears?", ["3"], "three", judge="Bo", model="x", dataset="y"),
    row(
        "How many gears?",
        ["3"],
        "There are four of them, as far as one can tell from here, and no more.",
        0,
        judge="Bo",
    ),
    row("Which part?", ["B"], "B) lever", choices=["axle", "lever"], kind=None),
    row("Which part?", ["B"], "", 0, choices=["axle", "lever"], kind="choice"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch, repository):
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS), encoding="utf-8")
    return tmp_path


def command(*arguments, code=0):
    result = CliRunner().invoke(main, ["study", "judges", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_json_has_the_figures_and_nothing_else(folder):
    found = json.loads(command("rows.jsonl", "--judges", "lexical,exact", "--json").stdout)
    assert list(found) == ["lexical", "exact"] and list(found["lexical"]) == ["Ann", "Bo"]
    assert list(found["lexical"]["Ann"]) == ["all", "yes_no", "choice", "open"]
    assert list(found["lexical"]["Bo"]) == ["all", "number"]
    assert all(list(group) == KEYS for judge in found.values() for by in judge.values() for group in by.values())
    ann = found["lexical"]["Ann"]
    assert (ann["all"]["n"], ann["all"]["false_accepts"], ann["all"]["false_rejects"]) == (7, 1, 1)
    assert ann["open"]["kappa"] is None and ann["open"]["false_rejects"] == 1  # no row is labelled wrong
    assert found["lexical"]["Bo"]["all"]["kappa"] == 1 and found["lexical"]["Bo"]["all"]["kappa_low"] is None
    assert {path.name for path in folder.iterdir()} == {"params.yaml", "rows.jsonl", "metrics"}  # metrics/cost


def test_the_console_shows_figures_and_disagreements(folder):
    said = command("rows.jsonl", "--judges", "lexical").stdout
    assert "Labelled by Ann" in said and "Labelled by Bo" in said and "more words" in said
    assert "lexical rejects, labelled right by Ann (open, line 2)" in said and "prediction  Brass." in said
    assert "lexical accepts, labelled wrong by Ann (yes_no, line 5)" in said
    assert "reason      Right: 'No.' is the reference 'no'." in said
    said = command("rows.jsonl", "--judges", "lexical", "--disagreements", "1").stdout
    assert "line 2" in said and "line 5" not in said and "1 more disagreements of lexical" in said
    assert "line 5" in command("rows.jsonl", "--judges", "lexical", "--disagreements", "all").stdout
    assert "nor `all`" in command("rows.jsonl", "--disagreements", "many", code=2).output


def test_control_characters_do_not_reach_the_terminal(folder):
    (folder / "rows.jsonl").write_text(json.dumps(row(prediction="\x1b[2JBrass", judge="[red]\x1b[2J")), "utf-8")
    assert "\x1b" not in command("rows.jsonl", "--judges", "lexical").stdout


def test_the_list_has_every_disagreement_and_the_pages_no_text(folder):
    command(
        "rows.jsonl", "--judges", "lexical,exact", "--disagreements", "0", "--list", "l.csv", "--out", "out/judges"
    )
    with open("l.csv", encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["judge"] == "lexical"]
    assert [(line["line"], line["verdict"], line["labelled"], line["labelled_by"]) for line in lines] == [
        ("2", "wrong", "right", "Ann"),
        ("5", "right", "wrong", "Ann"),
    ]
    assert lines[0]["question"] == ROWS[1]["question"] and lines[0]["reference"] == "copper"
    for name in ("out/judges.json", "out/judges.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "rarl study judges rows.jsonl --judges lexical,exact --seed 20" in text
        assert not any(word in text for word in ("gizzard", "opper", "rass", "antenna", "gears", "lever"))
    page = json.loads((folder / "out/judges.json").read_text(encoding="utf-8"))
    assert (page["rows"], page["questions"], page["thresholds"]) == (9, 4, {"exact": {"set": 1}})
    lengths = page["lengths"]["lexical"]
    assert {name: {k: v["n"] for k, v in by.items()} for name, by in lengths.items()} == {
        "Ann": {"1-3 words": 7}, "Bo": {"1-3 words": 1, "more words": 1}
    }  # fmt: skip
    assert "| all | lexical | 7 | 0.42 |" in text and "equals the reference after normalisation | 1.00 |" in text


def test_earlier_figures_are_shown_beside_the_new_ones(folder):
    before = json.loads(command("rows.jsonl", "--judges", "lexical", "--json").stdout)
    before["lexical"]["Ann"]["all"] |= {"kappa": None, "false_rejects": 4, "n": 8}
    (folder / "before.json").write_text(json.dumps(before), encoding="utf-8")
    said = command("rows.jsonl", "--judges", "lexical,exact", "--before", "before.json", "--out", "new").stdout
    page = (folder / "new.md").read_text(encoding="utf-8")
    assert "| all | lexical | 8→7 | undefined→0.42 |" in page and "| 4→1 (25 %) |" in page and "An arrow" in page
    assert "4→1 (25 %)" in said
    assert "→" not in next(line for line in page.splitlines() if line.startswith("| all | exact"))
    assert read_before(folder / "before.json")["lexical"]["Bo"]["all"].n == 2
    (folder / "before.json").write_text('{"lexical": {"Ann": {"all": {"n": 1}}}}', encoding="utf-8")
    assert "lexical.Ann.all.kappa" in command("rows.jsonl", "--before", "before.json", code=1).output
    assert "no such file" in command("rows.jsonl", "--before", "gone.json", code=1).output


def test_a_judge_decides_as_the_stage_does(folder):
    params = load_params()
    rows = read_rows(folder / "rows.jsonl")
    found = study(rows, ["lexical"], params, seed=0).results["lexical"]
    assert found.accepted == [True, False, True, False, True, True, False, True, False]
    assert [one.kind for one in rows] == ["open", "open", *["yes_no"] * 3, "number", "number", "choice", "choice"]
    assert chosen_judges(params, None) == ["lexical", "semantic"]
    assert chosen_judges(params, "recall, lexical,recall") == ["recall", "lexical"]


@pytest.mark.parametrize("name", ["truth", "lexicle", ",", "lexical,gone"])
def test_an_unknown_judge_lists_those_that_are_known(folder, name):
    said = command("rows.jsonl", "--judges", name, code=1).output
    assert all(known in said for known in ("lexical", "semantic", "gpt_4o_mini", "token_f1", "bertscore"))


def test_a_row_without_a_verdict_is_left_out_and_reported(folder, monkeypatch):
    real = judges_study.judged

    def one_fails(*arguments):
        verdicts = real(*arguments)
        return [verdicts[0].model_copy(update={"prediction_score": None, "unscored": "no network"}), *verdicts[1:]]

    monkeypatch.setattr(judges_study, "judged", one_fails)
    result = command("rows.jsonl", "--judges", "lexical", "--json")
    assert json.loads(result.stdout)["lexical"]["Ann"]["all"]["n"] == 6
    assert "1 without a verdict" in result.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense", "a JSON object with question, answers, prediction, judge, right"),
        ("[1]", "a JSON object"),
        (json.dumps(row(right=2)), "`right` is 2"),
        (json.dumps(row(right=0.5)), "0 (wrong) or 1 (right)"),
        (json.dumps(row(right=None)), "label this row"),
        (json.dumps({k: v for k, v in row().items() if k != "right"}), "no `right`"),
        (json.dumps({k: v for k, v in row().items() if k != "judge"}), "who labelled the row"),
        (json.dumps(row(answers=[])), "no `answers`"),
        (json.dumps(row(answers=[" "])), "`answers` is [' ']"),
        (json.dumps(row(answers=[{"a": 1}])), "`answers` is"),
        (json.dumps(row(prediction=None)), "no `prediction`"),
        (json.dumps(row(kind="maybe")), "yes_no, choice, number or open"),
        (json.dumps(row(choices=[True])), "the options"),
    ],
)
def test_a_bad_row_is_named(folder, line, expected):
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    said = command("rows.jsonl", "--json", code=1)
    assert not said.stdout and "rows.jsonl, line 11" in said.output and expected in said.output
    assert all(part in said.output for part in ("found:", "expected:", "to do:"))


@pytest.mark.parametrize(
    ("content", "expected"), [(b"", "no rows"), (b"\n \n", "no rows"), (b"\xff\xfe", "not UTF-8")]
)
def test_an_empty_or_binary_file_is_refused(folder, content, expected):
    (folder / "rows.jsonl").write_bytes(content)
    assert expected in command("rows.jsonl", code=1).output
    (folder / "rows.csv").write_bytes(content)
    assert expected in command("rows.csv", code=1).output


def test_a_missing_file_is_refused(folder):
    assert "no such file" in command("gone.jsonl", code=1).output
    assert "directory" in command(".", code=1).output


def test_one_label_alone_is_said(folder):
    (folder / "rows.jsonl").write_text(json.dumps(row()) + "\n", encoding="utf-8")
    result = command("rows.jsonl", "--judges", "lexical", "--json")
    assert json.loads(result.stdout)["lexical"]["Ann"]["all"] == dict(zip(KEYS, (1, None, None, None, 0, 0)))
    assert "all rows are labelled right" in result.stderr


@pytest.mark.parametrize("delimiter", ",;\t")
def test_a_spreadsheet_has_the_same_rows(folder, delimiter):
    lines = [["Question", "answers", "prediction", "judge", "right", "kind", "choices", "notes"]]
    for one in ROWS:
        texts = (one["question"], "|".join(one["answers"]), one["prediction"], one["judge"], one["right"])
        lines.append([*texts, one.get("kind") or "", " | ".join(one.get("choices", [])), "line\nbreak"])
    with open("rows.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)
    as_csv, as_json = read_rows(folder / "rows.csv"), read_rows(folder / "rows.jsonl")
    assert [one.model_copy(update={"line": 0}) for one in as_csv] == [
        one.model_copy(update={"line": 0}) for one in as_json
    ]
    assert [one.line for one in as_csv][:3] == [2, 4, 6]
    with open("rows.csv", "a", encoding="utf-8") as file:
        file.write('"not closed')
    assert "line 20" in command("rows.csv", code=1).output


def test_a_spreadsheet_without_labels_is_refused(folder):
    (folder / "rows.csv").write_text("question,answers,prediction,judge\nWhy?,so,so,Ann\n", encoding="utf-8")
    assert "no `right`" in command("rows.csv", code=1).output


def labelled(questions, right):
    texts = [row(f"Question {q}?", right=int(label)) for q, label in zip(questions, right, strict=True)]
    return [judges_study.Labelled(**text, line=1) for text in texts]


def test_kappa_is_cohens_and_its_interval_takes_a_question_as_one_unit():
    rng = np.random.default_rng(1)
    right, accepted = rng.random(300) < 0.4, rng.random(300) < 0.5
    accepted[:200] = right[:200]
    alone = figures(labelled(range(300), right), accepted.tolist(), 0)
    assert alone.kappa == pytest.approx(cohen_kappa_score(right, accepted), abs=1e-4)
    assert alone.kappa_low < alone.kappa < alone.kappa_high
    # Every row ten times says no more than each row once.
    copied = figures(labelled(np.repeat(range(300), 10), np.repeat(right, 10)), np.repeat(accepted, 10).tolist(), 0)
    assert (copied.kappa, copied.kappa_low, copied.kappa_high) == (alone.kappa, alone.kappa_low, alone.kappa_high)
    treated = figures(labelled(range(3000), np.repeat(right, 10)), np.repeat(accepted, 10).tolist(), 0)
    assert treated.kappa_high - treated.kappa_low < 0.5 * (copied.kappa_high - copied.kappa_low)
    assert alone.false_accepts == (accepted & ~right).sum() and alone.false_rejects == (~accepted & right).sum()


def test_the_interval_covers_the_truth():
    """One verdict and one label per question, which its rows share: 95 % of the intervals hold the true kappa."""
    rng, covered = np.random.default_rng(7), 0
    for _ in range(100):
        label = rng.random(80) < 0.5
        verdict = np.where(rng.random(80) < 0.8, label, ~label)
        found = figures(labelled(np.repeat(range(80), 3), np.repeat(label, 3)), np.repeat(verdict, 3).tolist(), 1)
        covered += found.kappa_low <= 0.6 <= found.kappa_high
    assert 90 <= covered <= 99


def test_thresholds_come_from_other_questions():
    """A question whose scores are all different from the others' cannot choose its own threshold."""
    questions = [f"q{i // 4}" for i in range(40)]
    right = np.tile([True, True, False, False], 10)
    scores = np.tile([0.8, 0.9, 0.2, 0.3], 10)
    scores[:4] = [0.1, 0.15, 0.01, 0.02]
    thresholds = cross_validated(scores, right, questions)
    assert thresholds[0] == best_threshold(scores[4:], right[4:]) == 0.55
    assert (thresholds[4:] >= thresholds[:4].min() - 0.06).all()
    order = np.random.default_rng(0).permutation(40)
    shuffled = cross_validated(scores[order], right[order], [questions[i] for i in order])
    assert (shuffled == thresholds[order]).all()
    with pytest.raises(UserError, match="one question only"):
        cross_validated(scores, right, ["q"] * 40)


@pytest.mark.parametrize(
    ("name", "answer", "reference", "score"),
    [
        ("exact", "The X-Ray.", "x ray", 1),
        ("exact", "It is an X-ray", "x ray", 0),
        ("substring", "It is an X-ray", "x ray", 1),
        ("substring", "Abnormal", "normal", 1),
        ("recall", "The mass is in the lung on the left.", "left lung", 1),
        ("recall", "Abnormal", "normal", 0),
        ("recall", "The left kidney", "left lung", 0.5),
        ("token_f1", "left lung mass", "left lung", 0.8),
        ("terms", "A tiny coin lesion of the left pulmonary field.", "left lung nodule", 1),
        ("terms", "There is no nodule.", "nodule", 0),
        ("recall", " ", "left lung", -1),
    ],
)
def test_peers(name, answer, reference, score):
    assert peer_scores(name, [answer], [[reference]], None) == [pytest.approx(score)]
    assert peer_scores(name, [answer, answer], [["other", reference], [reference]], None)[0] >= score


def test_peers_with_an_encoder_are_cross_validated(folder, monkeypatch):
    alike = peers.Peer("is alike", lambda pairs, encoder: [0.9 if a[0] == r[0] else 0.1 for a, r in pairs])
    monkeypatch.setitem(PEERS, "cosine", alike)
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps(row(f"Question {i}?", ["tin"], "tan" if i % 2 else "gold", i % 2)) + "\n" for i in range(20)
        ),
        encoding="utf-8",
    )
    result = command("rows.jsonl", "--judges", "cosine", "--out", "new")
    page = json.loads((folder / "new.json").read_text(encoding="utf-8"))
    assert page["judges"]["cosine"]["Ann"]["all"]["kappa"] == 1
    assert page["thresholds"]["cosine"] == {"all_rows": 0.5, "low": 0.5, "high": 0.5}
    assert "| 0.50 (0.50 to 0.50) |" in (folder / "new.md").read_text(encoding="utf-8")
    assert "line" not in result.stdout


def test_the_committed_figures_are_a_table(repository):
    text = (repository / "metrics/studies/judges_before.json").read_text(encoding="utf-8")
    found = TABLE.validate_json(text)
    assert {name: {by: groups["all"].n for by, groups in table.items()} for name, table in found.items()} == {
        name: {"gpt-4o GEval": 769, "one reader, blind, no physician": 196} for name in ("lexical", "semantic")
    }
    assert json.loads(text) == TABLE.dump_python(found)


def test_the_lexical_judge_agrees_on_real_rows_and_no_figure_has_their_texts(folder, real_data):
    rows = real_data / "real_predictions/calibration.jsonl"
    if not rows.is_file():
        pytest.skip("no real_predictions/ below RARL_DATA_ROOT")
    found = json.loads(command(rows, "--judges", "lexical,recall,terms", "--json", "--out", "new").stdout)
    model, reader = found["lexical"]["gpt-4o GEval"], found["lexical"]["one reader, blind, no physician"]
    assert (model["all"]["n"], reader["all"]["n"]) == (769, 196)
    assert model["all"]["kappa"] >= 0.65 and model["all"]["false_accepts"] <= 0.02 * 524
    assert reader["all"]["kappa"] >= 0.75 and reader["all"]["false_accepts"] <= 0.02 * 148
    assert reader["yes_no"]["kappa"] >= 0.75 and reader["yes_no"]["false_accepts"] <= 1
    assert reader["choice"]["kappa"] >= 0.75
    assert found["recall"]["gpt-4o GEval"]["all"]["kappa"] == pytest.approx(0.60, abs=0.01)
    page = (folder / "new.json").read_text(encoding="utf-8") + (folder / "new.md").read_text(encoding="utf-8")
    for one in read_rows(rows):
        assert one.question not in page and (len(one.prediction) < 12 or one.prediction not in page)
