"""Reasoning reward (section 2.2.2 of the paper): does the think text say what the physician wrote?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rarl.answers.completion import read_completion
from rarl.rewards.completions import texts
from rarl.rewards.terms import term_score

if TYPE_CHECKING:
    from rarl.params import Reward


def make_reward(settings: Reward, get_scorer) -> Callable[..., list[float | None]]:
    """Make the reasoning reward: similarity of the `<think>` text and the annotated reasoning (section 2.2.2).

    A row without annotation gets None, which TRL leaves out of the sum: section 3.3 rewards "only the final answer"
    there. A completion without a closed `<think>` gets 0, and no judge is asked about it.

    Args:
        settings: `reasoning` (the measure) and `terms_share`, see `score_reasoning`.
        get_scorer: returns what has `f1(pairs) -> list[float]`, see `rarl.rewards.bertscore.BertScorer`; for `judge`
            a `rarl.training.judged.Grader`; not called for `terms`.

    Returns:
        The reward, with values in [0, 1] or None. It reads the column `reasoning` (the annotation or None), and for
        `judge` also `question` and `answers`.

    >>> from rarl.params import Reward
    >>> class Half:
    ...     def f1(self, pairs): return [0.5 for _ in pairs]
    >>> completion = "<think>A dark round spot.</think> <answer>Nodule</answer>"
    >>> annotations = ["A round spot.", None, "A round spot."]
    >>> make_reward(Reward(), Half)([completion, completion, "Nodule"], reasoning=annotations)
    [0.5, None, 0.0]
    >>> make_reward(Reward(reasoning="terms"), None)([completion, completion, "Nodule"], reasoning=annotations)
    [1.0, None, 0.0]
    """
    scorer = None if settings.reasoning == "terms" else get_scorer()

    def reward(completions, reasoning, **columns) -> list[float | None]:
        thoughts = [read_completion(text)[0] for text in texts(completions)]
        rewards = [0.0 if annotation else None for annotation in reasoning]
        rows = [row for row, thought in enumerate(thoughts) if thought and reasoning[row]]
        if settings.reasoning == "judge":
            scores = scorer(
                [(columns["question"][row], columns["answers"][row], reasoning[row], thoughts[row]) for row in rows]
            )
        else:
            pairs = [(thoughts[row], reasoning[row]) for row in rows]
            scores = score_reasoning(pairs, scorer, settings.reasoning, settings.terms_share)
        for row, score in zip(rows, scores, strict=True):
            rewards[row] = score
        return rewards

    return reward


def score_reasoning(pairs: Sequence[tuple[str, str]], scorer, measure: str, terms_share: float = 0.5) -> list[float]:
    """Return the similarity of each (text, annotation) pair, in [0, 1].

    Args:
        pairs: (text, annotation).
        scorer: has `f1(pairs) -> list[float]`; not used by `terms`.
        measure: `bertscore`: BERTScore F1, which the paper uses for open answers; `terms`: clinical
            terms recalled (`rarl.rewards.terms`); `mix`: both.
        terms_share: weight of the terms in the mix.
    """
    if not pairs:
        return []
    terms = [term_score(*pair) for pair in pairs] if measure != "bertscore" else None
    if measure == "terms":
        return terms
    f1 = [min(value, 1.0) for value in scorer.f1(pairs)]
    if measure == "bertscore":
        return f1
    return [terms_share * a + (1 - terms_share) * b for a, b in zip(terms, f1, strict=True)]
