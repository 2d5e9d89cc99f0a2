"""Guards against reward hacking: switches (`reward.guards`), off in the paper profile.

A guard is a predicate on one completion. `guarded` wraps a reward and caps it on the rows where the predicate is true,
so that the rewards themselves stay the paper's formulas.

| guard | detects | effect |
|---|---|---|
| `empty_answer` | a think or answer part without a word | format at most 0.1 |
| `text_after_answer` | anything after the last `</answer>` | accuracy 0 |
| `repetition` | more than `MOST_REPEATED` of the 4-grams repeat | length and reasoning 0 |
| `many_answers` | more answers than the reference has | accuracy 0 |
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence

from rarl.answers.completion import read_completion
from rarl.answers.exact import without_comparison
from rarl.answers.spelling import list_items, normalise
from rarl.rewards.completions import texts

#: Share of repeated word 4-grams above which a text counts as repetitive. Ours: a text written twice has nearly 0.5,
#: and the study's sound texts are far below (`metrics/studies/reasoning_reward.md`).
MOST_REPEATED = 0.3
WORDS = 4
#: A word that is in an answer this often, and at least twice more often than in any reference, marks variants of one
#: answer.
VARIANTS = 3

_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_PART = re.compile(r"<(think|answer)>((?:(?!</?(?:think|answer)>).)*)</\1>", re.DOTALL | re.I)
_WORD = re.compile(r"[^\W_]+")
_BETWEEN = re.compile(r"[/|]|\b(?:or|versus|vs|maybe|perhaps|alternatively)\b", re.IGNORECASE)
_VERDICT = re.compile(r"\b(yes|no)\b(?=\W*(?:$|\b(?:and|or|but|maybe|yes|no)\b)|\s*[.,;:!?/|)])", re.IGNORECASE)
_LETTER = re.compile(r"(?<![^\W_])\(?([A-Z])[).:]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def guarded(reward: Callable, guard: Callable[..., bool], limit: float = 0.0) -> Callable:
    """Wrap a reward so that it is at most `limit` on rows where the guard is true. None stays None.

    Args:
        reward: in TRL's convention; its name is kept.
        guard: takes a completion's text and, by name, the row's `answers`, `kind` and `choices`.
        limit: the cap.

    >>> def always(completions, **columns): return [1.0 for _ in completions]
    >>> held = guarded(always, text_after_answer)
    >>> held(["<answer>Yes</answer>", "<answer>Yes</answer> and no"]), held.__name__
    ([1.0, 0.0], 'always')
    """

    @functools.wraps(reward)
    def held(completions, **columns):
        known = {name: columns[name] for name in ("answers", "kind", "choices") if columns.get(name)}
        rewards = reward(completions=completions, **columns)
        for row, text in enumerate(texts(completions)):
            held_down = rewards[row] is not None and rewards[row] > limit
            if held_down and guard(text, **{name: values[row] for name, values in known.items()}):
                rewards[row] = limit
        return rewards

    return held


def empty_answer(text: str, **row) -> bool:
    """Whether a think or answer part has no letter or digit.

    >>> [empty_answer(f"<think>{body}</think> <answer>No</answer>") for body in ("", " ... ", "Ok")]
    [True, True, False]
    >>> empty_answer("<think>A spot.</think> <answer>?</answer>"), empty_answer("Yes")
    (True, False)
    """
    return any(not _WORD.search(body) for _, body in _PART.findall(text))


def text_after_answer(text: str, **row) -> bool:
    r"""Whether anything but white space follows the last `</answer>`.

    >>> text_after_answer("<answer>Yes</answer> Or no."), text_after_answer("<answer>Yes</answer>\n")
    (True, False)
    """
    _, tag, after = text.lower().rpartition("</answer>")
    return bool(tag and after.strip())


def repetition(text: str, **row) -> bool:
    """Whether more than `MOST_REPEATED` of the word 4-grams are repetitions.

    Each part between tags is counted on its own: an answer may repeat the thinking once.

    >>> repetition("A small spot in the left lung. " * 3), repetition("A small spot in the left lung.")
    (True, False)
    """
    total = distinct = 0
    for part in _TAG.split(text):
        words = _WORD.findall(part.casefold())
        grams = [tuple(words[at : at + WORDS]) for at in range(len(words) - WORDS + 1)]
        total += len(grams)
        distinct += len(set(grams))
    return total > 0 and 1 - distinct / total > MOST_REPEATED


def many_answers(
    text: str, answers: Sequence[str] = (), kind: str = "open", choices: Sequence[str] = (), **row
) -> bool:
    """Whether there are more answers than the reference has, so that the one that is meant cannot be told.

    * `yes_no`: both words as verdicts ("Yes, there is no fluid" is one verdict).
    * `choice` with options: more than one option, by letter or text; what an option is compared with does not count.
    * `number`: more than one number.
    * Otherwise: more list items ("A, B or C") than any accepted reference, or one word in many variants ("nodule lung
      nodule nodules", see `VARIANTS`). A sentence with commas counts as a list, too.

    >>> many_answers("<answer>Mass, nodule or cyst</answer>", answers=["Nodule"])
    True
    >>> many_answers("<answer>Edema and tumor</answer>", answers=["Tumor, Edema"])
    False
    >>> many_answers("<answer>Yes. No.</answer>", kind="yes_no")
    True
    >>> many_answers("<answer>A) Heart B) Lung</answer>", kind="choice", choices=["Heart", "Lung"])
    True
    """
    answer = read_completion(text)[1]
    if kind == "yes_no":
        return len({word.lower() for word in _VERDICT.findall(answer)}) > 1
    if kind == "choice" and choices:
        return len(_options(without_comparison(answer), choices)) > 1
    if kind == "number":
        return len({float(number) for number in _NUMBER.findall(answer)}) > 1
    most = max((len(_items(reference)) for reference in answers), default=1)
    if len(_items(answer)) > max(most, 1):
        return True
    usual = [_counts(reference) for reference in answers]
    return any(
        count - max((counts[word] for counts in usual), default=0) >= VARIANTS - 1
        for word, count in _counts(answer).items()
        if count >= VARIANTS
    )


def _items(text: str) -> list[str]:
    return list_items(_BETWEEN.sub(",", text))


def _counts(text: str) -> Counter:
    """Count the words of at least four letters, plural or not."""
    words = (word.removesuffix("s") for word in _WORD.findall(text.casefold()))
    return Counter(word for word in words if len(word) > 3)


def _options(answer: str, choices: Sequence[str]) -> set[int]:
    """Return the indices of the options that the answer names, by bracketed letter or by whole words."""
    letters = {ord(letter) - ord("A") for letter in _LETTER.findall(answer)}
    named = {index for index in letters if index < len(choices)}
    rest = f" {' '.join(_WORD.findall(answer.casefold()))} "
    plain = {index: " ".join(_WORD.findall(normalise(choice))) for index, choice in enumerate(choices)}
    # Longest first, so that "left lung" does not also match "lung".
    for index, option in sorted(plain.items(), key=lambda item: -len(item[1])):
        letter = len(option) == 1 and option.isalpha()  # counts with a bracket only
        if option and not letter and f" {option} " in rest:
            named.add(index)
            rest = rest.replace(f" {option} ", "  ")
    return named
