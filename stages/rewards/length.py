"""Length reward (section 2.2.2 of the paper): longer completions, up to 1,000 tokens."""

PER_TOKEN = 0.001
CAP = 1.0


def length_reward(completions, completion_ids, **kwargs) -> list[float]:
    """`min(0.001 x token count, 1.0)`, section 2.2.2.

    Args:
        completions: strings or conversations, one a row (not read).
        completion_ids: the token ids that were sampled, one list a row, without padding; TRL's
            `completion_ids`, in which the end token counts.

    Returns:
        One reward a row.

    >>> length_reward(["Yes"] * 3, completion_ids=[[7] * 40, [7] * 1000, [7] * 3000])
    [0.04, 1.0, 1.0]
    """
    return [min(PER_TOKEN * len(ids), CAP) for ids in completion_ids]


length_reward.__name__ = "length"
