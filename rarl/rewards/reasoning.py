"""Reasoning reward (section 2.2.2 of the paper): does the thinking say what the physician wrote?"""

from collections.abc import Callable, Sequence
from typing import Literal

from rarl.answers import read_completion
from rarl.rewards.completions import texts
from rarl.rewards.terms import term_score


def make_reasoning_reward(
    scorer, measure: Literal["bertscore", "terms", "mix"] = "bertscore", terms_share: float = 0.5
) -> Callable[..., list[float | None]]:
    """The reasoning reward by one measure.

    Args:
        scorer: has `f1(pairs) -> list[float]`, see `rarl.rewards.bertscore.BertScorer`; None will
            do for `terms`.
        measure, terms_share: see `score_reasoning`.
    """

    def reasoning(completions, reasoning, **kwargs) -> list[float | None]:
        """Likeness of the `<think>` text and the annotated reasoning (section 2.2.2).

        None, which TRL leaves out of the sum, for a row without annotation: section 3.3 rewards
        "only the final answer" there. 0 where no think text was closed.

        Args:
            completions: strings or conversations, one a row.
            reasoning: the annotated explanation or None, one a row.

        Returns:
            One reward a row, in [0, 1], or None.

        >>> class Half:
        ...     def f1(self, pairs): return [0.5 for _ in pairs]
        >>> said = "<think>A dark round spot.</think> <answer>Nodule</answer>"
        >>> annotations = ["A round spot.", None, "A round spot."]
        >>> make_reasoning_reward(Half())([said, said, "Nodule"], reasoning=annotations)
        [0.5, None, 0.0]
        >>> make_reasoning_reward(None, "terms")([said, said, "Nodule"], reasoning=annotations)
        [1.0, None, 0.0]
        """
        thoughts = [read_completion(text)[0] for text in texts(completions)]
        rewards = [0.0 if annotation else None for annotation in reasoning]
        rows = [
            index
            for index, (thought, annotation) in enumerate(zip(thoughts, reasoning, strict=True))
            if thought and annotation
        ]
        pairs = [(thoughts[row], reasoning[row]) for row in rows]
        for row, score in zip(rows, score_reasoning(pairs, scorer, measure, terms_share), strict=True):
            rewards[row] = score
        return rewards

    return reasoning


def score_reasoning(pairs: Sequence[tuple[str, str]], scorer, measure: str, terms_share: float = 0.5) -> list[float]:
    """Likeness of each (text, annotation) pair, in [0, 1].

    Args:
        measure: `bertscore`: BERTScore F1, which the paper uses for open answers; `terms`: clinical
            terms recalled (`rarl.rewards.terms`); `mix`: both, the terms with weight `terms_share`.
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
