"""What each guard sees, and what it must let pass."""

import pytest

from rarl.rewards import guards

THINK = "<think>A small bright round spot in the lower right lung suggests a nodule.</think>"


@pytest.mark.parametrize(
    ("text", "fires"),
    [
        (f"{THINK} <answer></answer>", True),
        (f"{THINK} <answer> \n </answer>", True),
        (f"{THINK} <answer>.</answer>", True),
        (f"{THINK} <answer>- ? …</answer>", True),
        (f"{THINK} <answer>__</answer>", True),
        ("<think></think> <answer>Yes</answer>", True),
        ("<think>...</think> <answer>Yes</answer>", True),
        ("<THINK>!</THINK> <answer>Yes</answer>", True),
        (f"{THINK} <answer>Yes</answer> <answer></answer>", True),
        (f"{THINK} <answer>No</answer>", False),
        (f"{THINK} <answer>3</answer>", False),
        (f"{THINK} <answer>肺</answer>", False),
        (f"{THINK} <answer>", False),
        ("<think>", False),
        ("", False),
        ("...", False),
    ],
)
def test_empty_answer(text, fires):
    assert guards.empty_answer(text) is fires


@pytest.mark.parametrize(
    ("text", "fires"),
    [
        ("<answer>Yes</answer> No", True),
        ("<answer>Yes</answer>.", True),
        ("<answer>Yes</answer>\n\n<think>wait</think>", True),
        ("<answer>Yes</answer><answer>No", True),
        ("<answer>Yes</ANSWER> No", True),
        ("<answer>Yes</answer>", False),
        ("<answer>Yes</answer> \n\t", False),
        ("<answer>Yes</answer> or <answer>No</answer>", False),
        ("Yes. No.", False),
        ("<answer>Yes", False),
        ("", False),
    ],
)
def test_text_after_answer(text, fires):
    assert guards.text_after_answer(text) is fires


SENTENCE = "The left lung has a small bright round spot that suggests a nodule. "


@pytest.mark.parametrize(
    ("text", "fires"),
    [
        (f"<think>{SENTENCE * 2}</think> <answer>Nodule</answer>", True),
        (f"<think>{SENTENCE * 3}</think> <answer>Nodule</answer>", True),
        (f"<think>{SENTENCE}{SENTENCE.upper()}{SENTENCE}</think>", True),
        ("nodule " * 20, True),
        ("yes no " * 10, True),
        (f"{THINK} <answer>{'Nodule, ' * 12}</answer>", True),
        (f"<think>{SENTENCE}</think> <answer>Nodule</answer>", False),
        # an answer that says the thinking again
        (f"<think>{SENTENCE}</think> <answer>{SENTENCE}</answer>", False),
        ("The left lung has a nodule. The right lung has a mass.", False),
        (
            "There is no nodule in the left lung. There is no nodule in the right lung, "
            "and the heart is of normal size and shape.",
            False,
        ),
        ("nodule nodule nodule nodule", False),
        ("", False),
    ],
)
def test_repetition(text, fires):
    assert guards.repetition(text) is fires


@pytest.mark.parametrize(
    ("answer", "accepted", "kind", "choices", "fires"),
    [
        # open: more items than any reference
        ("Nodule, mass", ["Nodule"], "open", [], True),
        ("Nodule or mass", ["Nodule"], "open", [], True),
        ("Nodule and mass", ["Nodule"], "open", [], True),
        ("Nodule / mass", ["Nodule"], "open", [], True),
        ("Nodule | mass", ["Nodule"], "open", [], True),
        ("Nodule\nMass", ["Nodule"], "open", [], True),
        ("Nodule; perhaps mass", ["Nodule"], "open", [], True),
        ("Nodule, nodules, a nodule", ["Nodule"], "open", [], True),
        ("Pneumonia, nodule, mass", ["Mass, Nodule"], "open", [], True),
        ("None, nodule", ["None"], "open", [], True),
        ("Nodule, mass", ["Nodule", "Mass"], "open", [], True),
        ("Nodule, mass", ["Nodule", "Mass, nodule"], "open", [], False),
        ("Mass and nodule", ["Nodule, Mass"], "open", [], False),
        ("Nodule", ["Mass, Nodule"], "open", [], False),
        ("A nodule.", ["Nodule"], "open", [], False),
        ("A small nodule in the right lung", ["Nodule"], "open", [], False),
        ("Portal vein", ["Nodule"], "open", [], False),
        ("", ["Nodule"], "open", [], False),
        ("None", ["None"], "open", [], False),
        # open: a sentence that lists
        ("It is a nodule, a mass and a cyst.", ["Nodule"], "open", [], True),
        ("The nodule is larger than before.", ["Nodule"], "open", [], False),
        ("There is no mass.", ["Nodule"], "open", [], False),
        # open: one answer in variants, without marks between
        ("nodule lung nodule pulmonary nodules", ["Nodule"], "open", [], True),
        ("nodule nodule nodule", ["Lung nodule"], "open", [], True),
        ("a nodule beside a nodule", ["Nodule"], "open", [], False),
        ("lung mass, lung nodule, lung cyst", ["lung nodule, lung mass, lung cyst"], "open", [], False),
        # yes or no
        ("Yes and no", ["yes"], "yes_no", [], True),
        ("Yes. No.", ["yes"], "yes_no", [], True),
        ("Yes/No", ["yes"], "yes_no", [], True),
        ("yes no yes no", ["yes"], "yes_no", [], True),
        ("Yes, or maybe no", ["yes"], "yes_no", [], True),
        ("Yes", ["yes"], "yes_no", [], False),
        ("Yes, there is no fluid", ["yes"], "yes_no", [], False),
        ("No, it is normal", ["no"], "yes_no", [], False),
        ("Yes, yes", ["yes"], "yes_no", [], False),
        ("There is no fluid.", ["no"], "yes_no", [], False),
        ("Is there fluid? Yes or no", ["yes"], "yes_no", [], True),
        # options
        ("A) Heart B) Lung", ["(B)"], "choice", ["Heart", "Lung"], True),
        ("(A) or (B)", ["(B)"], "choice", ["Heart", "Lung"], True),
        ("Heart, lung", ["(B)"], "choice", ["Heart", "Lung"], True),
        ("A) Lung", ["(B)"], "choice", ["Heart", "Lung"], True),
        ("2 or 0", ["(B)"], "choice", ["2", "0"], True),
        ("B) Lung", ["(B)"], "choice", ["Heart", "Lung"], False),
        ("left lung", ["(A)"], "choice", ["Left lung", "Lung"], False),
        ("a lung", ["(B)"], "choice", ["Heart", "Lung"], False),
        ("The lung is larger than the heart.", ["(B)"], "choice", ["Heart", "Lung"], False),
        ("The lung is larger or smaller than the heart.", ["larger"], "choice", ["larger", "smaller"], True),
        ("Neither", ["(B)"], "choice", ["Heart", "Lung"], False),
        ("heart, lung", ["Lung"], "choice", None, True),
        ("Both", ["Both", "heart and lung"], "choice", None, False),
        # numbers
        ("2 or 3", ["3"], "number", [], True),
        ("3, 3.0", ["3"], "number", [], False),
        ("3 nodules", ["3"], "number", [], False),
    ],
)  # fmt: skip
def test_many_answers(answer, accepted, kind, choices, fires):
    for text in (f"{THINK} <answer>{answer}</answer>", answer):
        assert guards.many_answers(text, answers=accepted, kind=kind, choices=choices) is fires


def test_a_guard_holds_down_its_rows_and_leaves_none_and_lower_rewards():
    def reward(completions, scores, **columns):
        return list(scores)

    held = guards.guarded(reward, lambda text, **row: text == "x", limit=0.1)
    assert held(["x", "x", "x", "y"], scores=[1.0, None, 0.05, 1.0]) == [0.1, None, 0.05, 1.0]
    assert held.__name__ == "reward"


def test_a_guard_is_given_its_row():
    seen = []

    def guard(text, **row):
        seen.append((text, row))
        return False

    def reward(completions, **columns):
        return [1.0] * len(completions)

    conversation = [{"role": "assistant", "content": "b"}]
    guards.guarded(reward, guard)(
        completions=["a", conversation], answers=[["1"], ["2"]], kind=["open", "number"],
        choices=None, trainer_state=object(), log_metric=print,
    )  # fmt: skip
    assert seen == [("a", {"answers": ["1"], "kind": "open"}), ("b", {"answers": ["2"], "kind": "number"})]
