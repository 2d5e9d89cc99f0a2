"""Reading and comparing answers: the hard cases, one a row."""

import json

import pytest

from stages.answers import kind_of, list_items, matches, normalise, read_completion

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


HEART_OR_BRAIN = ("Heart", "Brain")
COUNTS = ("2", "0", "3", "1")
MATCHES = [
    # answer, references, kind, choices, right
    ("Yes", ["yes"], "yes_no", (), True),
    ("YES!", ["Yes"], "yes_no", (), True),
    ("yes, there is", ["Yes"], "yes_no", (), True),
    ("Yes. The lung is abnormal.", ["Yes"], "yes_no", (), True),
    ("Yes\nThe lung is abnormal", ["Yes"], "yes_no", (), True),
    ("**Yes**, it is", ["Yes"], "yes_no", (), True),
    ("Yes - on the left", ["Yes"], "yes_no", (), True),
    ("The answer is yes.", ["Yes"], "yes_no", (), True),
    ("Answer: No", ["no"], "yes_no", (), True),
    ("No, yes", ["No"], "yes_no", (), False),
    ("yes and no", ["Yes"], "yes_no", (), False),
    ("Yes, and no.", ["Yes"], "yes_no", (), False),
    ("Yes/No", ["Yes"], "yes_no", (), False),
    ("yes or no", ["No"], "yes_no", (), False),
    ("Yes. No effusion is seen.", ["Yes"], "yes_no", (), True),
    ("normal", ["No"], "yes_no", (), False),
    ("None", ["No"], "yes_no", (), False),
    ("Not seen", ["No"], "yes_no", (), False),
    ("No abnormality", ["No"], "yes_no", (), False),
    ("yesterday", ["Yes"], "yes_no", (), False),
    ("no", ["Yes"], "yes_no", (), False),
    ("", ["Yes"], "yes_no", (), False),
    ("...", ["No"], "yes_no", (), False),
    ("(B)", ["Brain"], "choice", HEART_OR_BRAIN, True),
    ("B", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("b)", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("B.", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("B) Brain", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("(B) the brain.", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("B: Brain", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("the brain", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("The answer is (B).", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("Option B", ["(B)"], "choice", HEART_OR_BRAIN, True),
    ("B) Heart", ["(B)"], "choice", HEART_OR_BRAIN, False),
    ("A brain", ["(B)"], "choice", HEART_OR_BRAIN, True),  # an article, not a letter
    ("A", ["(B)"], "choice", HEART_OR_BRAIN, False),
    ("C", ["(B)"], "choice", HEART_OR_BRAIN, False),
    ("A, B", ["(B)"], "choice", HEART_OR_BRAIN, False),
    ("A or B", ["(B)"], "choice", HEART_OR_BRAIN, False),
    ("Because it is large", ["(B)"], "choice", HEART_OR_BRAIN, False),
    ("Brain and heart", ["(B)"], "choice", HEART_OR_BRAIN, False),
    ("Both", ["Both"], "choice", HEART_OR_BRAIN, True),
    ("", ["(A)"], "choice", HEART_OR_BRAIN, False),
    ("3", ["(C)"], "choice", COUNTS, True),
    ("three", ["(C)"], "choice", COUNTS, True),
    ("(C) 3", ["(C)"], "choice", COUNTS, True),
    ("(C) 2", ["(C)"], "choice", COUNTS, False),
    ("0", ["(A)"], "choice", COUNTS, False),
    ("Lung.", ["Lung"], "choice", (), True),
    ("the lung", ["Lung"], "choice", (), True),
    ("Heart", ["Lung"], "choice", (), False),
    ("heart and lung", ["Both", "lung and heart"], "choice", (), True),
    ("3", ["3"], "number", (), True),
    ("three", ["3"], "number", (), True),
    ("3.0", ["three"], "number", (), True),
    ("There are 3 nodules.", ["3"], "number", (), True),
    ("2 lungs", ["2"], "number", (), True),
    ("1,000", ["1000"], "number", (), True),
    ("None", ["0"], "number", (), True),
    ("-3", ["3"], "number", (), False),
    ("3 or 4", ["3"], "number", (), False),
    ("13", ["3"], "number", (), False),
    ("3-4", ["3"], "number", (), False),
    ("T2", ["2"], "number", (), False),
    ("several", ["3"], "number", (), False),
    ("Pneumonia.", ["pneumonia"], "open", (), True),
    ("x-ray", ["X Ray"], "open", (), True),
    ("None", ["None"], "open", (), True),
    ("none.", ["None"], "open", (), True),
    ("No", ["None"], "open", (), False),
    ("", ["None"], "open", (), False),
    ("abnormal", ["normal"], "open", (), False),
    ("Edema, Tumor", ["Tumor, Edema"], "open", (), True),
    ("tumor and the edema", ["Edema, Tumor"], "open", (), True),
    ("Edema", ["Edema, Tumor"], "open", (), False),
    ("Edema, Tumor, Mass", ["Edema, Tumor"], "open", (), False),
    ("Brain Enhancing Tumor", ["Brain Non-enhancing Tumor"], "open", (), False),
    ("neoplasm", ["complex mass", "neoplasm"], "open", (), True),
    ("Left Lung", ["Right Lung"], "open", (), False),
    ("5%", ["5"], "open", (), False),
    ("The picture shows pneumonia", ["Pneumonia"], "open", (), False),
    ("anything", [], "open", (), False),
    ("anything", [""], "open", (), False),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "references", "kind", "choices", "right"), MATCHES)
def test_matching(answer, references, kind, choices, right):
    assert matches(answer, references, kind, choices) is right


def test_list_items_keep_their_order():
    assert list_items("Small Bowel,Rectum; the Colon & spleen") == [
        "small bowel",
        "rectum",
        "colon",
        "spleen",
    ]


def test_every_real_answer_matches_itself_and_few_others(real_data):
    """Gold in, full marks out, on SLAKE; and no two of its abnormality answers are confused."""
    rows = json.loads((real_data / "slake" / "train.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if row["q_lang"] == "en" and row["answer"].strip()]
    for row in rows:
        kind = kind_of(row["answer"], row["question"])
        assert matches(row["answer"], [row["answer"]], kind), row
    answers = {row["answer"] for row in rows if row["content_type"] == "Abnormality"}
    confused = {
        frozenset((left, right))
        for left in answers
        for right in answers
        if left != right and matches(left, [right], kind_of(right))
    }
    assert all(
        sorted(left.lower().split(", ")) == sorted(right.lower().split(", "))
        for left, right in map(tuple, confused)
    )
