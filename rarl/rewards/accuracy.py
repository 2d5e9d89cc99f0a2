"""Accuracy reward (section 2.2.2 of the paper): is the final answer right?"""

from collections.abc import Callable

from rarl.answers.completion import read_completion
from rarl.answers.matching import matches
from rarl.rewards.completions import texts


def make_reward(settings, get_scorer) -> Callable[..., list[float]]:
    """Make the accuracy reward: 1 or 0 for exact kinds, BERTScore F1 for open answers (section 2.2.2).

    `answers.read_completion` reads the answer. Yes/no, multiple choice and numbers are compared exactly: for an
    encoder 2 and 3 are similar. An open answer gets the best F1 over the accepted references, and 1 if it equals one
    of them as a list in another order. An empty answer gets 0.

    Args:
        settings: not read.
        get_scorer: returns what compares open answers: `f1(pairs) -> list[float]` as in
            `rarl.rewards.bertscore.BertScorer`.

    Returns:
        The reward, with values in [0, 1]. It reads the columns `answers` (accepted references), `kind`
        (`rarl.records.Kind`), `choices` (the options; empty, None or absent if there are none) and `question` (with it
        "There is no mass" is a no; may be absent).

    >>> class Half:
    ...     def f1(self, pairs): return [0.5 for _ in pairs]
    >>> reward = make_reward(None, Half)
    >>> reward(["<answer>Yes.</answer>", "<answer>Mass</answer>", "<answer>A</answer>"],
    ...        answers=[["yes"], ["Nodule"], ["(B)"]], kind=["yes_no", "open", "choice"],
    ...        choices=[[], [], ["Heart", "Lung"]])
    [1.0, 0.5, 0.0]
    """
    scorer = get_scorer()

    def reward(completions, answers, kind, choices=None, question=None, **kwargs) -> list[float]:
        given = [read_completion(text)[1] for text in texts(completions)]
        choices, question = choices or [None] * len(given), question or [""] * len(given)
        rewards = [
            float(matches(answer, references, row_kind, options or (), asked))
            for answer, references, row_kind, options, asked in zip(
                given, answers, kind, choices, question, strict=True
            )
        ]
        compared = [
            (row, reference)
            for row, answer in enumerate(given)
            if answer and kind[row] == "open" and rewards[row] < 1
            for reference in answers[row]
        ]
        scores = scorer.f1([(given[row], reference) for row, reference in compared]) if compared else []
        for (row, _), f1 in zip(compared, scores, strict=True):
            rewards[row] = max(rewards[row], min(f1, 1.0))
        return rewards

    return reward
