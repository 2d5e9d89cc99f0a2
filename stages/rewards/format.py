"""Format reward (section 2.2.2 of the paper): the tags, and nothing but the tags."""

import re

from stages.rewards.completions import texts

_BODY = r"(?:(?!</?(?:think|answer)>).)*"
_EXACT = re.compile(rf"\s*<think>{_BODY}</think>\s*<answer>{_BODY}</answer>\s*", re.DOTALL)
_ANY_TAG = re.compile(r"</?(?:think|answer)>")


def format_reward(completions, **kwargs) -> list[float]:
    """1.0 for exactly `<think>...</think> <answer>...</answer>`, 0.1 for any tag, 0.0 for none.

    "Exactly" is the whole completion with each of the four tags once and in this order; white space
    may stand before, between and after the two parts. Section 2.2.2: "a full reward (1.0) is given
    if the output matches the exact format", "a small bonus reward (0.1)" for partial tagging.

    Args:
        completions: strings or conversations, one a row.

    Returns:
        One reward a row.

    >>> format_reward(["<think>An opacity.</think> <answer>Yes</answer>", "<answer>Yes", "Yes"])
    [1.0, 0.1, 0.0]
    """
    return [
        1.0 if _EXACT.fullmatch(text) else 0.1 if _ANY_TAG.search(text) else 0.0
        for text in texts(completions)
    ]


format_reward.__name__ = "format"
