"""Reading and comparing answers: the hard cases, one a row."""

import csv
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rarl.answers.completion import read_completion
from rarl.answers.exact import kind_of
from rarl.answers.matching import is_right, matches
from rarl.answers.spelling import list_items, normalise
from rarl.judges.lexical import rate_answer
from rarl.records import Kind, Prediction, Sample
from rarl.rewards import accuracy

READ = [
    # completion, think, answer
    ("<think>a spot</think> <answer>Yes</answer>", "a spot", "Yes"),
    ("<think>\na\nspot\n</think>\n\n<answer>\nYes\n</answer>\n", "a\nspot", "Yes"),
    ("Yes.", None, "Yes."),
    ("", None, ""),
    ("   \n", None, ""),
    ("<think>only thinking", None, ""),
    ("<think>only thinking</think>", "only thinking", ""),
    ("<think>done</think> Pneumonia", "done", "Pneumonia"),
    ("Pneumonia <think>and then I wondered", None, "Pneumonia"),
    ("<answer>No</answer> <answer>Yes</answer>", None, "Yes"),
    ("<answer>No</answer> <answer>Yes", None, "No"),
    ("<answer>No <answer>Yes</answer>", None, "Yes"),
    ("<answer>a <answer>b</answer> c</answer>", None, "b"),
    ("<think>x</think> <answer></answer>", "x", ""),
    ("<think>x</think> <answer> Yes", "x", "Yes"),
    ("<think>x</think> Yes</answer>", "x", "Yes"),
    ("<answer>Yes</answer> <think>late</think>", "late", "Yes"),
    ("<think>a <think>b</think> c</think> <answer>Yes</answer>", "b", "Yes"),
    ("<think>is it <answer>no</answer>?</think> <answer>yes</answer>", "is it <answer>no</answer>?", "yes"),
    ("<THINK>x</THINK><Answer>Yes</Answer>", "x", "Yes"),
    ("The lesion is <5 mm", None, "The lesion is <5 mm"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "think", "answer"), READ)
def test_reading_a_completion(completion, think, answer):
    assert read_completion(completion) == (think, answer)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  YES. ", "yes"),
        ("The X‑Ray", "x ray"),
        ("x ray", "x ray"),
        ("Normal", "normal"),
        ("None", "none"),
        ("A", "a"),
        ("An opacity", "opacity"),
        ("“Mass”", "mass"),
        ("(B)", "b"),
        ("aml (angiomyolipoma)", "aml (angiomyolipoma)"),
        ("L2-3", "l2-3"),
        ("T2-weighted", "t2 weighted"),
        ("2-3", "2-3"),
        ("5%", "5%"),
        ("ﬁbrosis", "fibrosis"),
        ("**Edema**", "edema"),
        ("...", ""),
        ("theatre", "theatre"),
        ("brain  \t edema\n", "brain edema"),
    ],
)
def test_normalising(text, plain):
    assert normalise(text) == plain
    assert normalise(plain) == plain


@pytest.mark.parametrize(
    ("answer", "question", "choices", "kind"),
    [
        ("Yes", "", (), "yes_no"),
        ("NO", "", (), "yes_no"),
        (" yes. ", "", (), "yes_no"),
        ("Yes", "Yes or no?", ("Yes", "No"), "yes_no"),
        ("None", "What disease is shown?", (), "open"),
        ("Normal", "Is it normal or abnormal?", (), "choice"),
        ("Normal", "What is seen?", (), "open"),
        ("Not seen", "", (), "open"),
        ("(B)", "How many?", ("2", "0"), "choice"),
        ("2", "How many?", ("2", "0"), "choice"),
        ("3", "How many?", (), "number"),
        ("three", "How many?", (), "number"),
        ("3.0", "", (), "number"),
        ("T2", "", (), "open"),
        ("5 cm", "", (), "open"),
        ("4th and 5th", "", (), "open"),
        ("Lung", "Which organ is abnormal, heart or lung?", (), "choice"),
        ("Both", "Which organ is abnormal, heart or lung?", (), "choice"),
        ("Lung", "Which organ is abnormal?", (), "open"),
        ("head CT", "What test or procedure helps?", (), "open"),
    ],
)
def test_the_kind_of_an_answer(answer, question, choices, kind):
    assert kind_of(answer, question, choices) == kind


def hard_cases():
    """The rows of the table; `\\n` and `\\u00a0` stand in it for what cannot be seen."""
    with Path(__file__).with_name("answers_hard_cases.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            unseen = re.sub(r"\\n", "\n", row["completion"])
            completion = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), unseen)
            references, choices = row["references"].split("|"), row["choices"].split("|")
            yield pytest.param(
                completion,
                references,
                row["kind"],
                choices if row["choices"] else [],
                {"0": False, "1": True}[row["expected"]],
                id=f"{row['completion']}-{row['references']}-{row['why']}",
            )


HARD_CASES = list(hard_cases())


@pytest.mark.parametrize(("completion", "references", "kind", "choices", "right"), HARD_CASES)
def test_hard_cases(completion, references, kind, choices, right):
    """Each as a fair person would grade it; `why` in the table says what is hard about it."""
    assert matches(read_completion(completion)[1], references, kind, choices) is right


def test_the_table_of_hard_cases_is_large_and_says_both():
    right = sum(case.values[-1] for case in HARD_CASES)
    assert len(HARD_CASES) >= 450 and 200 <= right <= len(HARD_CASES) - 200
    assert len({str(case.values[:-1]) for case in HARD_CASES}) == len(HARD_CASES)


def test_the_reward_and_the_lexical_judge_agree_on_the_hard_cases():
    """Where they are exact (all but answers in free words), and on every right answer."""
    reward = accuracy.make_reward(None, lambda: SimpleNamespace(f1=lambda pairs: [0.5 for _ in pairs]))
    for case in HARD_CASES:
        completion, references, kind, choices, right = case.values
        think, answer = read_completion(completion)
        sample = Sample(
            id="x", dataset="x", split="test", image="x", image_sha256="x", question="?",
            answers=references, kind=kind, choices=choices,
        )  # fmt: skip
        prediction = Prediction(id="x", completion=completion, think=think, answer=answer)
        [points] = reward([completion], [references], [kind], [choices])
        assert (points == 1) is right, case.id
        if right or not (kind == "open" or (kind == "choice" and not choices)):
            assert rate_answer(sample, prediction)[0] is right, case.id


def in_sentences():
    """The rows of the table of statements; `\\n` stands for a line break."""
    with Path(__file__).with_name("answers_in_sentences.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            row["completion"] = row["completion"].replace("\\n", "\n")
            row["choices"] = row["choices"].split("|") if row["choices"] else []
            case = f"{row['question']}-{row['completion']}-{row['reference']}-{row['why']}"
            yield pytest.param(row, id=case)


IN_SENTENCES = list(in_sentences())


@pytest.mark.parametrize("row", IN_SENTENCES)
def test_what_a_sentence_answers(row):
    """`reward` is what the accuracy reward pays in full, `judge` what the lexical judge accepts."""
    asked = ([row["reference"]], row["kind"], row["choices"], row["question"])
    assert matches(row["completion"], *asked) is (row["reward"] == "1"), row["why"]
    assert is_right(row["completion"], *asked) is (row["judge"] == "1"), row["why"]


def test_the_table_of_statements_says_both_and_pays_nothing_that_the_judge_rejects():
    rows = [case.values[0] for case in IN_SENTENCES]
    accepted = [row for row in rows if row["judge"] == "1"]
    assert len(rows) >= 100 and 40 <= len(accepted) <= len(rows) - 40
    assert not any(row["reward"] > row["judge"] for row in rows)


@pytest.mark.parametrize("row", [case for case in IN_SENTENCES if case.values[0]["judge"] == "0"])
def test_the_accuracy_reward_pays_nothing_for_hedges_lists_and_repeated_questions(row):
    """With the similarity of open answers left out, which is the paper's."""
    reward = accuracy.make_reward(None, lambda: SimpleNamespace(f1=lambda pairs: [0.0 for _ in pairs]))
    columns = {"answers": [[row["reference"]]], "kind": [row["kind"]], "choices": [row["choices"]]}
    assert reward([f"<answer>{row['completion']}</answer>"], question=[row["question"]], **columns) == [0.0]


@pytest.mark.parametrize("references", [[], [""], ["..."]])
def test_nothing_matches_an_empty_reference(references):
    assert not any(
        matches(answer, references, kind)
        for answer in ("anything", "", "...", "and", "the answer is", "yes", "0")
        for kind in KINDS
    )


def test_list_items_keep_their_order():
    assert list_items("Small Bowel,Rectum; the Colon & spleen") == ["small bowel", "rectum", "colon", "spleen"]


# Any text ----------------------------------------------------------------------------------------------

KINDS = get_args(Kind)
WORDS = st.sampled_from(
    [
        "gizzard",
        "antenna",
        "Gear",
        "axle",
        "x-ray",
        "T2",
        "5",
        "three",
        "2-3",
        "(iv)",
        "w/wire",
        "non-bent",
        "yes",
        "no",
        "None",
        "normal",
        "left",
    ]
)
PHRASES = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
CHOICES = st.sampled_from([[], ["Gear", "Axle"], ["2", "0", "3"], ["Yes", "No"], ["left", "left gear"]])
SPELLINGS = st.sampled_from([str, str.upper, str.lower, str.title])
AROUND = st.sampled_from(
    ["{}", " {} ", "{}.", "{}!", "**{}**", "\n{}\n", '"{}"', "\u00a0{}\u3002", "<answer>{}</answer>"]
)


@settings(max_examples=60, deadline=None)
@given(PHRASES, st.sampled_from(KINDS), CHOICES, SPELLINGS, AROUND)
def test_an_answer_matches_itself_however_it_is_written(text, kind, choices, spelling, around):
    _, answer = read_completion(around.format(spelling(text)))
    assert matches(answer, [text], kind, choices)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.sampled_from(KINDS), CHOICES)
def test_any_text_matches_itself_unless_it_is_empty(text, kind, choices):
    assert matches(text, [text], kind, choices) is bool(normalise(text))


@settings(max_examples=60, deadline=None)
@given(st.text(" .,;:!?\"'`*_#-\n\t\u00a0\u2026", max_size=12), PHRASES, st.sampled_from(KINDS), CHOICES)
def test_marks_alone_are_no_answer(marks, reference, kind, choices):
    assert not matches(marks, [reference, marks], kind, choices)


@settings(max_examples=60, deadline=None)
@given(st.lists(PHRASES, min_size=1, max_size=5, unique=True), st.randoms(), st.sampled_from([", ", ",", "; ", "\n"]))
def test_the_order_of_a_list_does_not_matter(items, random, mark):
    reference = ", ".join(items)
    random.shuffle(items)
    assert matches(mark.join(items), [reference], "open")


@settings(max_examples=60, deadline=None)
@given(st.lists(PHRASES, min_size=1, max_size=4), st.text(max_size=20))
def test_a_text_that_is_no_item_makes_another_list(items, other):
    assume(items not in (["yes"], ["no"]))  # these are read by their first word
    more = ", ".join([*items, f"gizmo {other}"])
    assert not matches(more, [", ".join(items)], "open")
    assert not matches(", ".join(items), [more], "open")


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.sampled_from(KINDS), CHOICES)
def test_no_text_raises(text, other, kind, choices):
    _, answer = read_completion(text)
    assert answer == answer.strip() and isinstance(matches(answer, [other], kind, choices), bool)
    assert kind_of(text, other, choices) in KINDS
    assert normalise(normalise(text)) == normalise(text)
    assert all(list_items(text))


HOSTILE = [
    "<answer>", "<answer></answer>", "<think>", "<think", "</think>", "<", "(", ")", "([{", " ", "\n", "*", "_",
    "1", "1,", "1,000,", ".1", ".", "1 - ", "a-", "a ", '"a ', "the ", "no ", "yes. ", "and ", "and\n", "one ",
    "twenty ", "3 ", "not 3. ", "b ", "a. ", "option ", "it is ", "answer ", "the answer is ", "gear axle ",
    "no" + " " * 99, "answer" + " " * 99, "3" + ")" * 99, "." + " " * 99,
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_long_hostile_text_takes_no_time(unit):
    """A second of processor time for 100 kB is far off for what is linear, and near for what is not."""
    text = (unit * 50_000)[:50_000] + "x"
    calls = [
        lambda: read_completion(text),
        lambda: normalise(text),
        lambda: list_items(text),
        lambda: kind_of(text, text),
        lambda: matches(text, ["yes"], "yes_no"),
        lambda: matches(text, ["(B)"], "choice", ["Gear", "Axle"]),
        lambda: matches(text, ["3"], "number"),
        lambda: matches(text, ["gear, axle"], "open"),
    ]
    for call in calls:
        start = time.process_time()
        call()
        assert time.process_time() - start < 0.5
