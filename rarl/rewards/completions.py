"""What TRL hands to a reward function: completions as plain strings or as conversations."""

from collections.abc import Sequence


def texts(completions: Sequence[str | list[dict]]) -> list[str]:
    """The text of each completion.

    >>> texts(["Yes", [{"role": "assistant", "content": "No"}]])
    ['Yes', 'No']
    """
    return [
        completion if isinstance(completion, str) else "".join(message["content"] for message in completion)
        for completion in completions
    ]
