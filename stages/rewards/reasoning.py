"""Reasoning reward (section 2.2.2 of the paper): does the thinking say what the physician wrote?"""

from collections.abc import Callable

from stages.answers import read_completion
from stages.rewards.completions import texts


def make_reasoning_reward(scorer) -> Callable[..., list[float | None]]:
    """The reasoning reward with the given BERTScorer.

    Args:
        scorer: has `f1(pairs) -> list[float]`, see `stages.rewards.bertscore.BertScorer`.
    """

    def reasoning(completions, reasoning, **kwargs) -> list[float | None]:
        """BERTScore F1 between the `<think>` text and the annotated reasoning (section 2.2.2).

        The paper names the reward and its place and gives no formula; BERTScore F1 is taken from
        its accuracy reward. None, which TRL leaves out of the sum, for a row without annotation:
        section 3.3 rewards "only the final answer" there. 0 where no think text was closed.

        Args:
            completions: strings or conversations, one a row.
            reasoning: the annotated explanation or None, one a row.

        Returns:
            One reward a row, in [0, 1], or None.

        >>> class Half:
        ...     def f1(self, pairs): return [0.5 for _ in pairs]
        >>> reward = make_reasoning_reward(Half())
        >>> said = "<think>A dark round spot.</think> <answer>Nodule</answer>"
        >>> reward([said, said, "Nodule"], reasoning=["A round spot.", None, "A round spot."])
        [0.5, None, 0.0]
        """
        thoughts = [read_completion(text)[0] for text in texts(completions)]
        rewards = [0.0 if annotation else None for annotation in reasoning]
        rows = [
            index
            for index, (thought, annotation) in enumerate(zip(thoughts, reasoning, strict=True))
            if thought and annotation
        ]
        pairs = [(thoughts[row], reasoning[row]) for row in rows]
        for row, f1 in zip(rows, scorer.f1(pairs) if pairs else [], strict=True):
            rewards[row] = min(f1, 1.0)
        return rewards

    return reasoning
