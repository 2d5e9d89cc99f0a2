"""Format reward (section 2.2.2 of the paper): the tags, and nothing but the tags."""

import re

from rarl.rewards.completions import texts

_BODY = r"(?:(?!(?i:</?(?:think|answer)>)).)*"
_EXACT = re.compile(rf"\s*<think>{_BODY}</think>\s*<answer>{_BODY}</answer>\s*", re.DOTALL)
_ANY_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)

#: Reward of a completion with some tag but not the exact form.
PARTIAL = 0.1


def reward(completions, **kwargs) -> list[float]:
    """Return 1.0 for exactly `<think>...</think> <answer>...</answer>`, 0.1 for any tag, 0.0 for none.

    The whole completion must match: each of the four tags once, in this order and in lower case, and only white space
    around the two parts. Anything else with a tag is partial. Section 2.2.2: "a full reward (1.0) is given if the
    output matches the exact format", "a small bonus reward (0.1)" for partial tagging. Empty parts count as
    well-formed unless the guard `empty_answer` is on.

    >>> reward(["<think>An opacity.</think> <answer>Yes</answer>", "<answer>Yes", "Yes"])
    [1.0, 0.1, 0.0]
    """
    return [
        1.0 if _EXACT.fullmatch(text) else PARTIAL if _ANY_TAG.search(text) else 0.0 for text in texts(completions)
    ]
