"""The rewards of section 2.2.2, one family a file, in TRL's convention.

A reward is a function `reward(completions, **columns) -> list[float | None]`: the completions, the
data set's columns (one value a row) and TRL's own keywords such as `completion_ids`. None leaves a
row out of the sum. TRL logs a reward under its function's `__name__`, which is set to its name in `rarl/registry.py`.

CONTRIBUTING.md shows how to add one: `rarl/rewards/<name>.py` defines `reward` itself or, where it reads settings or
needs the BERTScorer, `make_reward(settings, get_scorer)`, which returns it.

To guard a reward, add a predicate to `guards.py`, a switch to `Guards` and a line to `_guards`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from rarl.params import Reward
from rarl.rewards import guards
from rarl.rewards.format import PARTIAL

if TYPE_CHECKING:
    from rarl.params import Guards, Rewards
    from rarl.rewards.bertscore import BertScorer


def reward_functions(
    rewards: Rewards,
    scorer_factory: Callable[[], BertScorer],
    settings: Reward | None = None,
    grade: Callable | None = None,
) -> tuple[list[Callable], list[float]]:
    """Return the reward functions with a weight above 0, and their weights, in the order of the registry.

    Args:
        rewards: weights of one method.
        scorer_factory: makes the BERTScorer; called at most once, and only if a reward needs it.
        settings: how each reward is computed; None for the paper's formulas.
        grade: the judge of `settings.reasoning = judge`, a `rarl.training.judged.Grader`.

    >>> from rarl.params import Rewards
    >>> functions, weights = reward_functions(Rewards(accuracy=0), lambda: None)
    >>> [function.__name__ for function in functions], weights
    (['format', 'length'], [1.0, 1.0])
    """
    settings = settings or Reward()
    weights = {name: weight for name, weight in rewards.model_dump().items() if weight > 0}
    get_scorer = cache(scorer_factory)
    functions = {}
    for name in weights:
        module = import_module(f"{__name__}.{name}")
        by_judge = name == "reasoning" and settings.reasoning == "judge"
        makes = hasattr(module, "make_reward")
        scorer = (lambda: grade) if by_judge else get_scorer
        functions[name] = module.make_reward(settings, scorer) if makes else module.reward
        functions[name].__name__ = name
    for name, guard, limit in _guards(settings.guards):
        if name in functions:
            functions[name] = guards.guarded(functions[name], guard, limit)
    return list(functions.values()), list(weights.values())


def _guards(on: Guards) -> list[tuple[str, Callable[..., bool], float]]:
    """Return (reward, guard, cap of the reward) of each guard that is on."""
    table = [
        (on.empty_answer, "format", guards.empty_answer, PARTIAL),
        (on.text_after_answer, "accuracy", guards.text_after_answer, 0.0),
        (on.repetition, "length", guards.repetition, 0.0),
        (on.repetition, "reasoning", guards.repetition, 0.0),
        (on.many_answers, "accuracy", guards.many_answers, 0.0),
    ]
    return [(name, guard, limit) for switched_on, name, guard, limit in table if switched_on]
