"""Gold in, full marks out: every accepted answer of every row of every release is right.

On the complete question files of the real releases, where RARL_DATA_ROOT names their folder, and on
made-up rows with the quirks that those have. Pictures are not looked at.
"""

import json
import random
from collections import Counter

import pytest

from rarl.answers.completion import read_completion
from rarl.answers.exact import kind_of
from rarl.answers.matching import matches
from rarl.answers.spelling import list_items, normalise
from rarl.data.adapters import cv_bench, path_vqa, slake, vqa_med, vqa_rad
from rarl.data.release import MissingRelease, Refused, find_release, fold

RELEASES = [
    (slake, "train"),
    (slake, "validate"),
    (slake, "test"),
    (vqa_rad, "train"),
    (vqa_rad, "test"),
    (vqa_med, "train"),
    (vqa_med, "validate"),
    (vqa_med, "test"),
    (path_vqa, "test"),
    (cv_bench, "test"),
]
FORMS = [
    "{}",
    " {}.\n",
    "**{}**",
    "The answer is {}.",
    "<think>x</think> <answer>{}</answer>",
    "<think>Is it so?\nNo, wait.</think>\n<answer>\n{}\n</answer>",
]
MOST_ALIKE = 5


def gold(adapter, root, split):
    """(accepted answers, kind, choices) of every row that has a question and an answer."""
    folder = find_release(root, adapter.FOLDERS)
    if folder is None:
        pytest.skip(f"no {adapter.FOLDERS[0]} release")
    found = []
    try:
        for row in adapter.rows(folder, split, Counter()):
            if isinstance(row, Refused):
                continue
            question, answers = fold(row.question), [fold(answer) for answer in row.answers]
            if question and answers and all(answers):
                found.append((answers, kind_of(answers[0], question, row.choices), row.choices))
    except MissingRelease:
        pytest.skip(f"no {split} split of {adapter.FOLDERS[0]}")
    assert found
    return found


def misses(rows):
    """Every accepted answer, in every form and casing, that is not accepted."""
    distinct = {(tuple(answers), kind, tuple(choices)) for answers, kind, choices in rows}
    return [
        (completion, answers, kind, choices)
        for answers, kind, choices in sorted(distinct)
        for answer in answers
        for spelling in (answer, answer.lower(), answer.upper())
        for form in FORMS
        if not matches(read_completion(completion := form.format(spelling))[1], answers, kind, choices)
    ]


@pytest.mark.parametrize(("adapter", "split"), RELEASES, ids=lambda value: getattr(value, "__name__", value))
def test_every_accepted_answer_is_right(adapter, split, real_data):
    rows = gold(adapter, real_data, split)
    assert misses(rows) == []
    # Answers of other rows are right as often as chance and the most frequent answers allow.
    others = [answers[0] for answers, _, _ in rows]
    random.Random(0).shuffle(others)
    right = sum(matches(other, answers, kind, choices) for other, (answers, kind, choices) in zip(others, rows))
    assert right < 0.25 * len(rows)


@pytest.mark.parametrize("adapter", [slake, vqa_rad, vqa_med, path_vqa])
def test_no_two_answers_are_confused(adapter, real_data):
    """Of the answers that are spelt most alike: those that match differ by blanks, marks or order only."""
    splits = [split for known, split in RELEASES if known is adapter]
    answers = {
        answer
        for split in splits
        for row, kind, _ in gold(adapter, real_data, split)
        for answer in row
        if kind == "open" and kind_of(answer) == "open"
    }
    for key in (normalise, lambda answer: normalise(answer)[::-1]):
        ordered = sorted(answers, key=lambda answer: (key(answer), answer))
        for place, left in enumerate(ordered):
            for right in ordered[place + 1 : place + 1 + MOST_ALIKE]:
                if matches(left, [right], "open"):
                    assert bare(left) == bare(right)


def bare(answer):
    """Letters and digits of a list's items, in whatever order."""
    return {"".join(letter for letter in item if letter.isalnum()) for item in list_items(answer)}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")


def test_every_accepted_answer_of_made_up_rows_is_right(tmp_path):
    """The quirks that the real releases have, by name; each row is known to be read."""
    organs = "Which is worn, gizzard or antenna?"
    asked = {
        "Is the antenna bent?": ["Yes", "NO", " yes"],
        "What is worn?": ["None", "Gear, Axle", "Axle and Gear,Belt", "X-Ray", "L2-3", "5 cm", "4th axle"],
        organs: ["Gizzard", "antenna", "Both"],
        "How many gears?": [3, "three", "0", "-1", "1,000"],
    }  # fmt: skip
    pairs = [(question, answer) for question, answers in asked.items() for answer in answers]
    write(
        tmp_path / "slake/train.json",
        [
            {"qid": n, "img_name": "x/source.jpg", "q_lang": "en", "question": q, "answer": str(a)}
            for n, (q, a) in enumerate(pairs)
        ],
    )
    write(
        tmp_path / "vqa_rad" / vqa_rad.FILE,
        [
            {"qid": n, "image_name": "x.jpg", "phrase_type": "freeform", "question": q, "answer": a}
            for n, (q, a) in enumerate([*pairs, ("Where?", "left\twing")])
        ],
    )
    forms = ["(fine) crack#bend", "antenna w/wire (iv)", "yes", "worn (gear) axle", "gear (ga)#(worn) axle"]
    lines = [f"x{n}|abnormality|what is worn?|{answer}" for n, answer in enumerate(forms)]
    write(tmp_path / "vqa_med" / vqa_med.FILES["test"], "\n".join(lines))
    labels = [{"gears ": 1}, {"yes": 1}, {"no": 1}, {"worn gear": 1}, {"3": 1}]
    questions = ["what is present?", "is it bent ?", "is it bent?", "what is present ?", "how many?"]  # fmt: skip
    item = {"img_id": "x", "sentf": {"pvqa": questions}, "labelf": {"pvqa": labels}}
    write(tmp_path / "path_vqa" / path_vqa.FILES["test"], [item])
    options = [["3", "2"], ["table lamp", "lamp"], ["above", "below"], ["2", "0", "3", "1", "12", "13"]]  # fmt: skip
    lines = [
        json.dumps({"filename": "img/x.png", "prompt": "Which?", "choices": c, "answer": f"({g})"})
        for c in options
        for g in "ABCDEF"[: len(c)]
    ]
    write(tmp_path / "cv_bench/test_2d.jsonl", "\n".join(lines))

    counts = {slake: 18, vqa_rad: 19, vqa_med: 5, path_vqa: 5, cv_bench: 12}
    for adapter, count in counts.items():
        split = "train" if adapter in (slake, vqa_rad) else "test"
        rows = gold(adapter, tmp_path, split)
        assert len(rows) == count
        assert misses(rows) == []
    accepted = [answers for answers, _, _ in gold(path_vqa, tmp_path, "test")]
    assert {"yes", "no"} == set(accepted[1]) == set(accepted[2])
    # Of the options, only the right one is right.
    for answers, kind, choices in gold(cv_bench, tmp_path, "test"):
        right = [choice for choice in choices if matches(choice, answers, kind, choices)]
        assert right == answers[:1]
