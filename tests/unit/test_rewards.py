"""Rewards that need no encoder; those with BERTScore are tested in tests/tiny/test_bertscore.py."""

import doctest

import pytest

from stages import answers
from stages.judges import lexical
from stages.params import Rewards
from stages.rewards import accuracy, completions, length, reasoning, reward_functions
from stages.rewards import format as format_family
from stages.rewards.accuracy import make_accuracy_reward
from stages.rewards.completions import texts
from stages.rewards.format import format_reward
from stages.rewards.length import length_reward
from stages.rewards.reasoning import make_reasoning_reward

T, A = "<think>a spot</think>", "<answer>Yes</answer>"


class NoEncoder:
    """Where a reward must be exact, it must not ask the encoder."""

    def f1(self, pairs):
        raise AssertionError(f"asked to compare {pairs}")


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (f"{T} {A}", 1.0),
        (f"{T}{A}", 1.0),
        (f"\n {T}\n\n{A} \n", 1.0),
        ("<think>\nline\nline\n</think>\n<answer>\nYes\n</answer>", 1.0),
        ("<think>pressure < 5 mm</think> <answer>x > y</answer>", 1.0),
        (f"{A} {T}", 0.1),
        (f"{T} {T} {A}", 0.1),
        (f"{T} {A} {A}", 0.1),
        (f"Well. {T} {A}", 0.1),
        (f"{T} {A} That is all.", 0.1),
        (f"{T} so {A}", 0.1),
        (f"<think>a <think>b</think></think> {A}", 0.1),
        (f"<think>a {A}</think>", 0.1),
        (f"<think>a {A}", 0.1),
        (f"a</think> {A}", 0.1),
        (f"{T} <answer>Yes", 0.1),
        (f"{T} Yes</answer>", 0.1),
        (T, 0.1),
        (A, 0.1),
        ("<think>", 0.1),
        ("</answer>", 0.1),
        ("Yes", 0.0),
        ("", 0.0),
        ("think answer", 0.0),
        ("<b>Yes</b>", 0.0),
        ("< think >a</ think >", 0.0),
    ],
)
def test_format(completion, reward):
    assert format_reward([completion]) == [reward]
    assert format_reward([[{"role": "assistant", "content": completion}]]) == [reward]


def test_length_counts_tokens_up_to_a_cap():
    ids = [[], [5], [5] * 250, [5] * 1000, [5] * 5000]
    assert length_reward(["x"] * 5, completion_ids=ids) == [0.0, 0.001, 0.25, 1.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "answers", "kind", "choices", "reward"),
    [
        (f"{T} {A}", ["yes"], "yes_no", [], 1.0),
        (f"{T} {A}", ["No"], "yes_no", [], 0.0),
        ("Yes, there is.", ["yes"], "yes_no", [], 1.0),
        (f"{T} <answer>yes and no</answer>", ["yes"], "yes_no", [], 0.0),
        (f"{T} <answer>B) 0</answer>", ["(B)"], "choice", ["2", "0"], 1.0),
        (f"{T} <answer>2</answer>", ["(B)"], "choice", ["2", "0"], 0.0),
        (f"{T} <answer>the lung</answer>", ["Lung"], "choice", None, 1.0),
        (f"{T} <answer>three</answer>", ["3"], "number", [], 1.0),
        (f"{T} <answer>4</answer>", ["3"], "number", [], 0.0),
        (f"{T} <answer>Edema and Mass</answer>", ["Mass, Edema"], "open", [], 1.0),
        (f"{T} <answer></answer>", ["None"], "open", [], 0.0),
        (T, ["Nodule"], "open", [], 0.0),
        ("", ["yes"], "yes_no", [], 0.0),
    ],
)
def test_accuracy_without_the_encoder(completion, answers, kind, choices, reward):
    accuracy = make_accuracy_reward(NoEncoder())
    assert accuracy([completion], answers=[answers], kind=[kind], choices=[choices]) == [reward]


def test_accuracy_works_without_a_choices_column():
    accuracy = make_accuracy_reward(NoEncoder())
    assert accuracy([A, A], answers=[["yes"], ["no"]], kind=["yes_no"] * 2) == [1.0, 0.0]


def test_reasoning_leaves_out_rows_without_annotation():
    reward = make_reasoning_reward(NoEncoder())
    completions = [f"{T} {A}", f"{T} {A}", "Yes", "<think>not closed", f"<think> </think>{A}"]
    annotations = [None, "", "A spot.", "A spot.", "A spot."]
    assert reward(completions, reasoning=annotations) == [None, None, 0.0, 0.0, 0.0]


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
    assert [function.__name__ for function in functions] == [
        "format",
        "length",
        "accuracy",
        "reasoning",
    ]
    assert weights == [1.0, 0.5, 2.0, 3.0]
    assert len(made) == 1

    functions, weights = reward_functions(Rewards(accuracy=0.0, length=0.0), factory)
    assert ([function.__name__ for function in functions], weights) == (["format"], [1.0])
    assert len(made) == 1, "the encoder was loaded for a reward that does not need it"


@pytest.mark.parametrize(
    "module", [answers, accuracy, completions, format_family, length, lexical, reasoning]
)
def test_the_worked_examples_in_the_docstrings(module):
    examples = doctest.DocTestFinder().find(module)
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    inner = getattr(module, "make_" + module.__name__.rpartition(".")[2] + "_reward", None)
    if inner is not None:  # the reward itself is made inside a function
        for example in doctest.DocTestFinder().find(inner(None), globs=vars(module)):
            runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0
