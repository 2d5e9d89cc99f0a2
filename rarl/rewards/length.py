"""Length reward (section 2.2.2 of the paper): longer completions, up to 1,000 tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rarl.params import Reward


def make_reward(settings: Reward, get_scorer=None) -> Callable[..., list[float]]:
    """Make the length reward: `min(0.001 x token count, 1.0)` in section 2.2.2.

    Args:
        settings: `length_per_token` and `length_cap`.
        get_scorer: not called.

    Returns:
        The reward, with values in [0, `length_cap`]. It counts the sampled tokens that TRL passes as `completion_ids`:
        one list a row, without padding, with the end token.

    >>> from rarl.params import Reward
    >>> reward = make_reward(Reward())
    >>> reward(["Yes"] * 3, completion_ids=[[7] * 40, [7] * 1000, [7] * 3000])
    [0.04, 1.0, 1.0]
    >>> make_reward(Reward(length_per_token=0.01, length_cap=0.5))(["Yes"] * 2, completion_ids=[[7] * 40, [7] * 60])
    [0.4, 0.5]
    """

    def reward(completions, completion_ids, **kwargs) -> list[float]:
        return [min(settings.length_per_token * len(ids), settings.length_cap) for ids in completion_ids]

    return reward
