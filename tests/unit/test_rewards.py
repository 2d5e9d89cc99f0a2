"""Rewards that need no encoder; those with BERTScore are tested in tests/tiny/test_bertscore.py."""

import pytest

from rarl.params import Guards, Reward, Rewards
from rarl.rewards import accuracy, length, reasoning, reward_functions, terms
from rarl.rewards import format as format_family
from rarl.rewards.completions import texts
from rarl.rewards.reasoning import score_reasoning

T, A = "<think>a spot</think>", "<answer>Yes</answer>"


class NoEncoder:
    """Where a reward must be exact, it must not ask the encoder."""

    def f1(self, pairs):
        raise AssertionError(f"asked to compare {pairs}")


class Overlap:
    """Stands in for BERTScore: F1 of the words' sets."""

    def f1(self, pairs):
        scores = []
        for left, right in pairs:
            left, right = set(left.lower().split()), set(right.lower().split())
            scores.append(2 * len(left & right) / (len(left) + len(right)))
        return scores


FORMAT = [
    # exact, with white space where it is free
    (f"{T} {A}", 1.0),
    (f"{T}{A}", 1.0),
    (f"\n {T}\n\n{A} \n", 1.0),
    (f"\t{T}\r\n{A}\t", 1.0),
    ("<think>\nline\nline\n</think>\n<answer>\nYes\n</answer>", 1.0),
    ("<think>first\n\nsecond</think> <answer>Yes,\nthere is.</answer>", 1.0),
    # bodies may hold other marks, also nothing: that is what a guard is for
    ("<think>pressure < 5 mm</think> <answer>x > y</answer>", 1.0),
    ("<think><b>bright</b></think> <answer>Yes</answer>", 1.0),
    ("<think>no < answer here</think> <answer>No</answer>", 1.0),
    ("<think></think><answer></answer>", 1.0),
    ("<think> \n</think> <answer>.</answer>", 1.0),
    # reordered, repeated
    (f"{A} {T}", 0.1),
    (f"{T} {T} {A}", 0.1),
    (f"{T} {A} {A}", 0.1),
    (f"{T} {A} {T} {A}", 0.1),
    ("<think><think>a</think></think>" + A, 0.1),
    # text around and between
    (f"Well. {T} {A}", 0.1),
    (f"{T} {A} That is all.", 0.1),
    (f"{T} so {A}", 0.1),
    (f"{T}, {A}", 0.1),
    (f"{T} {A}.", 0.1),
    # nested
    (f"<think>a <think>b</think></think> {A}", 0.1),
    (f"<think>a {A}</think>", 0.1),
    (f"<answer>{T} Yes</answer>", 0.1),
    (f"{T} <answer>Yes <think>or no</think></answer>", 0.1),
    (f"<think>a </answer> b</think> {A}", 0.1),
    (f"<think>a <ANSWER>No</ANSWER></think> {A}", 0.1),
    # unclosed, unopened
    (f"<think>a {A}", 0.1),
    (f"a</think> {A}", 0.1),
    (f"{T} <answer>Yes", 0.1),
    (f"{T} Yes</answer>", 0.1),
    (f"</think>a<think> {A}", 0.1),
    (T, 0.1),
    (A, 0.1),
    ("<think>", 0.1),
    ("</answer>", 0.1),
    # upper case tags are tags, not the exact form
    ("<THINK>a</THINK> <ANSWER>Yes</ANSWER>", 0.1),
    ("<Think>a</Think> <answer>Yes</answer>", 0.1),
    (f"{T} <answer>Yes</Answer>", 0.1),
    # no tag at all
    ("Yes", 0.0),
    ("", 0.0),
    (" \n", 0.0),
    ("think answer", 0.0),
    ("<b>Yes</b>", 0.0),
    ("< think >a</ think >", 0.0),
    ("<thinking>a</thinking> <answers>Yes</answers>", 0.0),
    ("[think]a[/think] (answer)Yes(/answer)", 0.0),
    ("&lt;think&gt;a&lt;/think&gt;", 0.0),
]


@pytest.mark.parametrize(("completion", "reward"), FORMAT)
def test_format(completion, reward):
    assert format_family.reward([completion]) == [reward]
    assert format_family.reward([[{"role": "assistant", "content": completion}]]) == [reward]


@pytest.mark.parametrize(
    ("tokens", "per_token", "cap", "reward"),
    [
        (0, 0.001, 1.0, 0.0),
        (1, 0.001, 1.0, 0.001),
        (250, 0.001, 1.0, 0.25),
        (999, 0.001, 1.0, 0.999),
        (1000, 0.001, 1.0, 1.0),
        (1001, 0.001, 1.0, 1.0),
        (100_000, 0.001, 1.0, 1.0),
        (30, 0.01, 1.0, 0.3),
        (30, 0.01, 0.2, 0.2),
        (30, 0.0, 1.0, 0.0),
        (30, 0.001, 0.0, 0.0),
        (5000, 0.001, 2.0, 2.0),
    ],
)
def test_length_counts_tokens_up_to_a_cap(tokens, per_token, cap, reward):
    function = length.make_reward(Reward(length_per_token=per_token, length_cap=cap))
    assert function(["x"], completion_ids=[[5] * tokens]) == [pytest.approx(reward)]
    if (per_token, cap) == (0.001, 1.0):
        assert length.make_reward(Reward())(["x"], completion_ids=[[5] * tokens]) == [reward]


ACCURACY = [
    # (answer, accepted, kind, options, reward): exact kinds
    ("Yes", ["yes"], "yes_no", [], 1.0),
    ("YES.", ["yes"], "yes_no", [], 1.0),
    ("Yes, there is.", ["yes"], "yes_no", [], 1.0),
    ("\nNo\n", ["No"], "yes_no", [], 1.0),
    ("Yes", ["No"], "yes_no", [], 0.0),
    ("yes and no", ["yes"], "yes_no", [], 0.0),
    ("normal", ["no"], "yes_no", [], 0.0),
    ("Not at all", ["no"], "yes_no", [], 0.0),
    ("There is none", ["no"], "yes_no", [], 0.0),
    ("B) 0", ["(B)"], "choice", ["2", "0"], 1.0),
    ("(B)", ["(B)"], "choice", ["2", "0"], 1.0),
    ("b", ["(B)"], "choice", ["Heart", "Lung"], 1.0),
    ("The answer is B.", ["(B)"], "choice", ["Heart", "Lung"], 1.0),
    ("lung", ["(B)"], "choice", ["Heart", "Lung"], 1.0),
    ("A) Lung", ["(B)"], "choice", ["Heart", "Lung"], 0.0),
    ("Heart or lung", ["(B)"], "choice", ["Heart", "Lung"], 0.0),
    ("(C)", ["(B)"], "choice", ["Heart", "Lung"], 0.0),
    ("2", ["(B)"], "choice", ["2", "0"], 0.0),
    ("the lung", ["Lung"], "choice", None, 1.0),
    ("lungs", ["Lung"], "choice", None, 0.0),
    ("3", ["3"], "number", [], 1.0),
    ("three", ["3"], "number", [], 1.0),
    ("3 nodules", ["3"], "number", [], 1.0),
    ("3.0", ["3"], "number", [], 1.0),
    ("4", ["3"], "number", [], 0.0),
    ("3-4", ["3"], "number", [], 0.0),
    ("none", ["0"], "number", [], 1.0),
    # open: equal without the encoder
    ("Edema and Mass", ["Mass, Edema"], "open", [], 1.0),
    ("x ray", ["X-Ray"], "open", [], 1.0),
    ("none", ["None"], "open", [], 1.0),
    ("Mass", ["Nodule", "mass"], "open", [], 1.0),
    # nothing to compare: no encoder either
    ("", ["None"], "open", [], 0.0),
    (" \n", ["Nodule"], "open", [], 0.0),
    ("", ["yes"], "yes_no", [], 0.0),
    ("", ["(A)"], "choice", ["Heart", "Lung"], 0.0),
]


@pytest.mark.parametrize(("answer", "accepted", "kind", "choices", "reward"), ACCURACY)
def test_accuracy_without_the_encoder(answer, accepted, kind, choices, reward):
    function = accuracy.make_reward(Reward(), NoEncoder)
    completion = f"{T} <answer>{answer}</answer>"
    assert function([completion], answers=[accepted], kind=[kind], choices=[choices]) == [reward]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (A, 1.0),
        ("Yes, there is.", 1.0),
        (f"{T} Yes", 1.0),
        (f"<answer>No</answer> {A}", 1.0),
        (f"{A} <answer>No</answer>", 0.0),
        ("<ANSWER>Yes</ANSWER>", 1.0),
        (T, 0.0),
        ("<think>Yes", 0.0),
        ("", 0.0),
    ],
)
def test_accuracy_reads_the_last_closed_answer_or_what_stands_outside_think(completion, reward):
    function = accuracy.make_reward(Reward(), NoEncoder)
    assert function([completion], answers=[["yes"]], kind=["yes_no"]) == [reward]


@pytest.mark.parametrize(
    ("answer", "accepted", "reward"),
    [
        ("lung mass", ["lung nodule"], 0.5),
        ("lung mass", ["liver", "lung nodule"], 0.5),
        ("lung mass", ["lung nodule", "liver"], 0.5),
        ("lung mass", ["liver"], 0.0),
        ("None", ["Lung mass"], 0.0),
        ("lung mass", ["None"], 0.0),
    ],
)
def test_accuracy_of_an_open_answer_is_the_best_f1(answer, accepted, reward):
    function = accuracy.make_reward(Reward(), Overlap)
    assert function([answer], answers=[accepted], kind=["open"]) == [reward]


def test_accuracy_of_many_rows_keeps_their_order():
    function = accuracy.make_reward(Reward(), Overlap)
    rows = [("lung mass", ["lung nodule"], "open"), ("yes", ["yes"], "yes_no"), ("", ["x"], "open")]
    given, accepted, kinds = (list(column) for column in zip(*rows, strict=True))
    assert function(given * 2, answers=accepted * 2, kind=kinds * 2) == [0.5, 1.0, 0.0] * 2


def test_accuracy_works_without_a_choices_column():
    function = accuracy.make_reward(Reward(), NoEncoder)
    assert function([A, A], answers=[["yes"], ["no"]], kind=["yes_no"] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("measure", ["bertscore", "terms", "mix"])
@pytest.mark.parametrize(
    ("completion", "annotation", "reward"),
    [
        (f"{T} {A}", None, None),
        (f"{T} {A}", "", None),
        ("", None, None),
        ("Yes", "A spot.", 0.0),
        ("", "A spot.", 0.0),
        ("<think>a spot", "A spot.", 0.0),
        (f"<think>a spot {A}", "A spot.", 0.0),
        (f"a spot</think> {A}", "A spot.", 0.0),
        (f"<think> </think>{A}", "A spot.", 0.0),
    ],
)
def test_reasoning_is_none_without_annotation_and_0_without_a_closed_think(measure, completion, annotation, reward):
    function = reasoning.make_reward(Reward(reasoning=measure), NoEncoder)
    assert function([completion], reasoning=[annotation]) == [reward]


def test_reasoning_by_each_measure():
    pairs = [("a nodule in the lung", "a nodule in the liver"), ("Nothing here", "A lung nodule")]
    assert score_reasoning(pairs, Overlap(), "bertscore") == [0.8, 0.0]
    by_terms = score_reasoning(pairs, NoEncoder(), "terms")
    assert by_terms == [terms.term_score(*pair) for pair in pairs] == [0.25, 0.0]
    assert score_reasoning(pairs, Overlap(), "mix", 0.25) == pytest.approx([0.6625, 0.0])
    assert score_reasoning([], NoEncoder(), "mix") == []


def test_reasoning_rows_without_annotation_do_not_shift_the_others():
    function = reasoning.make_reward(Reward(), Overlap)
    said = "<think>lung mass</think>"
    annotations = [None, "lung mass", None, "lung nodule"]
    assert function([said] * 4, reasoning=annotations) == [None, 1.0, None, 0.5]


def test_texts_joins_the_messages_of_a_conversation():
    message = {"role": "assistant", "content": "Yes"}
    assert texts(["No", [message], [message, message]]) == ["No", "Yes", "YesYes"]


def test_functions_and_weights_are_those_above_zero():
    made = []

    def factory():
        made.append(NoEncoder())
        return made[-1]

    everything = Rewards(format=1.0, length=0.5, accuracy=2.0, reasoning=3.0)
    functions, weights = reward_functions(everything, factory)
    assert [function.__name__ for function in functions] == ["format", "length", "accuracy", "reasoning"]
    assert weights == [1.0, 0.5, 2.0, 3.0]
    assert len(made) == 1

    functions, weights = reward_functions(Rewards(accuracy=0.0, length=0.0), factory)
    assert ([function.__name__ for function in functions], weights) == (["format"], [1.0])
    only_reasoning = Rewards(accuracy=0.0, reasoning=1.0)
    reward_functions(only_reasoning, factory, Reward(reasoning="terms"))
    assert len(made) == 1, "the encoder was loaded for a reward that does not need it"
    reward_functions(only_reasoning, factory, Reward(reasoning="mix"))
    assert len(made) == 2


COLUMNS = {
    "answers": [["yes"], ["yes"], ["Nodule"]],
    "kind": ["yes_no", "yes_no", "open"],
    "choices": [None, [], []],
    "reasoning": [None, "A nodule.", "A nodule."],
    "completion_ids": [[1] * 100] * 3,
    "prompts": ["?"] * 3,
}
#: An empty thought, a text after the answer, and a repeated thought with several answers.
EXPLOITS = [
    f"<think> ... </think> {A}",
    f"<think>A nodule.</think> {A} Or no.",
    f"<think>{'A nodule in the lung. ' * 5}</think> <answer>Nodule, mass</answer>",
]


def rewarded(**switches):
    settings = Reward(length_per_token=0.002, reasoning="terms", guards=Guards(**switches))
    functions, _ = reward_functions(Rewards(reasoning=1.0), Overlap, settings)
    return {function.__name__: function(completions=EXPLOITS, **COLUMNS) for function in functions}


def test_settings_and_guards_reach_their_rewards_and_no_other():
    plain = rewarded()
    assert plain == {
        "format": [1.0, 0.1, 1.0],
        "length": [0.2, 0.2, 0.2],
        "accuracy": [1.0, 1.0, 0.0],
        "reasoning": [None, 1.0, 1.0],
    }
    assert rewarded(empty_answer=True) == plain | {"format": [0.1, 0.1, 1.0]}
    assert rewarded(text_after_answer=True) == plain | {"accuracy": [1.0, 0.0, 0.0]}
    assert rewarded(repetition=True) == plain | {"length": [0.2, 0.2, 0.0], "reasoning": [None, 1.0, 0.0]}
    on = rewarded(empty_answer=True, text_after_answer=True, repetition=True, many_answers=True)
    assert on == {
        "format": [0.1, 0.1, 1.0],
        "length": [0.2, 0.2, 0.0],
        "accuracy": [1.0, 0.0, 0.0],
        "reasoning": [None, 1.0, 0.0],
    }


def test_many_answers_pay_without_the_guard():
    completions = ["lung nodule, lung mass"]
    columns = {"answers": [["lung nodule"]], "kind": ["open"]}
    for on, reward in ((False, 0.8), (True, 0.0)):
        settings = Reward(guards=Guards(many_answers=on))
        [function] = reward_functions(Rewards(format=0, length=0), Words, settings)[0]
        assert function(completions=completions, **columns) == [pytest.approx(reward)]


class Words(Overlap):
    def f1(self, pairs):
        return super().f1([(left.replace(",", ""), right) for left, right in pairs])


def test_the_papers_formula_is_the_default():
    assert Reward() == Reward(
        length_per_token=0.001,
        length_cap=1.0,
        reasoning="bertscore",
        guards=Guards(empty_answer=False, text_after_answer=False, repetition=False, many_answers=False),
    )
