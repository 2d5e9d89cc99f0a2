"""The rewards of section 2.2.2, one family a file, in TRL's convention.

A reward is a function `reward(completions, **columns) -> list[float | None]`: the completions, the
data set's columns (one value a row) and TRL's own keywords such as `completion_ids`. None leaves a
row out of the sum. TRL logs a reward under the function's `__name__`.

To add a reward: write `stages/rewards/<name>.py` with such a function (a `make_...` around it where
it needs the BERTScorer), give it the `__name__` that logs and metrics are to show, add a line to
`reward_functions` and a weight to `Rewards` in `stages/params.py` and to `params.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stages.rewards.accuracy import make_accuracy_reward
from stages.rewards.format import format_reward
from stages.rewards.length import length_reward
from stages.rewards.reasoning import make_reasoning_reward

if TYPE_CHECKING:
    from stages.params import Rewards
    from stages.rewards.bertscore import BertScorer


def reward_functions(
    rewards: Rewards, scorer_factory: Callable[[], BertScorer]
) -> tuple[list[Callable], list[float]]:
    """The reward functions whose weight is above 0, and their weights, in a fixed order.

    Args:
        rewards: the weights of one method.
        scorer_factory: makes the BERTScorer; called once, and only if a reward needs it.
    """
    functions, weights = [], []
    if rewards.format > 0:
        functions.append(format_reward)
        weights.append(rewards.format)
    if rewards.length > 0:
        functions.append(length_reward)
        weights.append(rewards.length)
    scorer = scorer_factory() if rewards.accuracy > 0 or rewards.reasoning > 0 else None
    if rewards.accuracy > 0:
        functions.append(make_accuracy_reward(scorer))
        weights.append(rewards.accuracy)
    if rewards.reasoning > 0:
        functions.append(make_reasoning_reward(scorer))
        weights.append(rewards.reasoning)
    return functions, weights
