"""Format reward (section 2.2.2 of the paper): the tags, and nothing but the tags."""

import re

from rarl.rewards.completions import texts

_BODY = r"(?:(?!(?i:</?(?:think|answer)>)).)*"
_EXACT = re.compile(rf"\s*<think>{_BODY}</think>\s*<answer>{_BODY}</answer>\s*", re.DOTALL)
_ANY_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)

#: Reward of a completion with some tag but not the exact form.
PARTIAL = 0.1


def format_reward(completions, **kwargs) -> list[float]:
    """1.0 for exactly `<think>...</think> <answer>...</answer>`, 0.1 for any tag, 0.0 for none.

    "Exactly" is the whole completion with each of the four tags once and in this order; white space
    may stand before, between and after the two parts. Tags are lower case; others are partial, as
    are nested, repeated, reordered and unclosed ones. Section 2.2.2: "a full reward (1.0) is given if
    the output matches the exact format", "a small bonus reward (0.1)" for partial tagging. An empty
    part is no matter of form; `guards.empty_answer` can be switched on against it.

    Args:
        completions: strings or conversations, one a row.

    Returns:
        One reward a row.

    >>> format_reward(["<think>An opacity.</think> <answer>Yes</answer>", "<answer>Yes", "Yes"])
    [1.0, 0.1, 0.0]
    """
    return [
        1.0 if _EXACT.fullmatch(text) else PARTIAL if _ANY_TAG.search(text) else 0.0 for text in texts(completions)
    ]


format_reward.__name__ = "format"
