"""The rewards of section 2.2.2, one family a file, in TRL's convention.

A reward is a function `reward(completions, **columns) -> list[float | None]`: the completions, the
data set's columns (one value a row) and TRL's own keywords such as `completion_ids`. None leaves a
row out of the sum. TRL logs a reward under the function's `__name__`.

To add a reward:

1. `rarl/rewards/<name>.py` with such a function, a `make_...` around it where it needs settings or
   the BERTScorer, and the `__name__` that logs and metrics are to show.
2. A line in `reward_functions` below, and a weight in `Rewards` (`rarl/params.py`) and under each
   method in `params.yaml`. What there is to set goes into `Reward` and `reward:`.
3. A table of hard cases in `tests/unit/test_rewards.py`: what a policy could write to please it.

To guard a reward, add a predicate to `guards.py`, a switch to `Guards` and a line to `_guards`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rarl.params import Reward
from rarl.rewards import guards
from rarl.rewards.accuracy import make_accuracy_reward
from rarl.rewards.format import PARTIAL, format_reward
from rarl.rewards.length import make_length_reward
from rarl.rewards.reasoning import make_reasoning_reward

if TYPE_CHECKING:
    from rarl.params import Guards, Rewards
    from rarl.rewards.bertscore import BertScorer


def reward_functions(
    rewards: Rewards, scorer_factory: Callable[[], BertScorer], settings: Reward | None = None
) -> tuple[list[Callable], list[float]]:
    """The reward functions whose weight is above 0, and their weights, in a fixed order.

    Args:
        rewards: the weights of one method.
        scorer_factory: makes the BERTScorer; called once, and only if a reward needs it.
        settings: how each reward is computed; None for the paper's formulas.
    """
    settings = settings or Reward()
    needs_scorer = rewards.accuracy > 0 or (rewards.reasoning > 0 and settings.reasoning != "terms")
    scorer = scorer_factory() if needs_scorer else None
    functions = {
        "format": format_reward,
        "length": make_length_reward(settings.length_per_token, settings.length_cap),
        "accuracy": make_accuracy_reward(scorer),
        "reasoning": make_reasoning_reward(scorer, settings.reasoning, settings.terms_share),
    }
    for name, guard, limit in _guards(settings.guards):
        functions[name] = guards.guarded(functions[name], guard, limit)
    weights = {name: weight for name, weight in rewards.model_dump().items() if weight > 0}
    return [functions[name] for name in weights], list(weights.values())


def _guards(on: Guards) -> list[tuple[str, Callable[..., bool], float]]:
    """(reward, guard, what the reward is held down to) of every guard that is switched on."""
    table = [
        (on.empty_answer, "format", guards.empty_answer, PARTIAL),
        (on.text_after_answer, "accuracy", guards.text_after_answer, 0.0),
        (on.repetition, "length", guards.repetition, 0.0),
        (on.repetition, "reasoning", guards.repetition, 0.0),
        (on.many_answers, "accuracy", guards.many_answers, 0.0),
    ]
    return [(name, guard, limit) for switched_on, name, guard, limit in table if switched_on]
