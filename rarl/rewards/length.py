"""Length reward (section 2.2.2 of the paper): longer completions, up to 1,000 tokens."""

from collections.abc import Callable


def make_length_reward(per_token: float = 0.001, cap: float = 1.0) -> Callable[..., list[float]]:
    """The length reward with `per_token` for each token and `cap` at most (the paper's by default)."""

    def length(completions, completion_ids, **kwargs) -> list[float]:
        """`min(per_token x token count, cap)`: `min(0.001 x token count, 1.0)` in section 2.2.2.

        Args:
            completions: strings or conversations, one a row (not read).
            completion_ids: the token ids that were sampled, one list a row, without padding; TRL's
                `completion_ids`, in which the end token counts.

        Returns:
            One reward a row, in [0, cap].

        >>> reward = make_length_reward()
        >>> reward(["Yes"] * 3, completion_ids=[[7] * 40, [7] * 1000, [7] * 3000])
        [0.04, 1.0, 1.0]
        >>> make_length_reward(0.01, 0.5)(["Yes"] * 2, completion_ids=[[7] * 40, [7] * 60])
        [0.4, 0.5]
        """
        return [min(per_token * len(ids), cap) for ids in completion_ids]

    return length
