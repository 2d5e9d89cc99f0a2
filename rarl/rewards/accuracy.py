"""Accuracy reward (section 2.2.2 of the paper): is the final answer right?"""

from collections.abc import Callable

from rarl.answers import matches, read_completion
from rarl.rewards.completions import texts


def make_accuracy_reward(scorer) -> Callable[..., list[float]]:
    """The accuracy reward with the given BERTScorer for open answers.

    Args:
        scorer: has `f1(pairs) -> list[float]`, see `rarl.rewards.bertscore.BertScorer`.
    """

    def accuracy(completions, answers, kind, choices=None, **kwargs) -> list[float]:
        """Section 2.2.2: 1 or 0 for yes/no and multiple choice, BERTScore F1 for open answers.

        The answer is read by `answers.read_completion`. Numbers are exact too: an encoder finds 2
        and 3 much alike. An open answer gets the best F1 over the accepted references, and 1 where
        it equals one of them as a list in another order. An empty answer gets 0.

        Args:
            completions: strings or conversations, one a row.
            answers: the accepted references, one list a row.
            kind: how to compare, one a row (`rarl.records.Kind`).
            choices: the options, one list a row (empty or None where there are none).

        Returns:
            One reward a row, in [0, 1].

        >>> class Half:
        ...     def f1(self, pairs): return [0.5 for _ in pairs]
        >>> reward = make_accuracy_reward(Half())
        >>> reward(["<answer>Yes.</answer>", "<answer>Mass</answer>", "<answer>A</answer>"],
        ...        answers=[["yes"], ["Nodule"], ["(B)"]], kind=["yes_no", "open", "choice"],
        ...        choices=[[], [], ["Heart", "Lung"]])
        [1.0, 0.5, 0.0]
        """
        rows = list(zip(completions, answers, kind, choices or [None] * len(completions), strict=True))
        given = [read_completion(text)[1] for text in texts(completions)]
        rewards = [
            float(matches(answer, references, row_kind, options or ()))
            for answer, (_, references, row_kind, options) in zip(given, rows, strict=True)
        ]
        open_rows = [
            index
            for index, (_, _, row_kind, _) in enumerate(rows)
            if row_kind == "open" and rewards[index] < 1 and given[index]
        ]
        pairs = [(given[row], reference) for row in open_rows for reference in rows[row][1]]
        owners = [row for row in open_rows for _ in rows[row][1]]
        for row, f1 in zip(owners, scorer.f1(pairs) if pairs else [], strict=True):
            rewards[row] = max(rewards[row], min(f1, 1.0))
        return rewards

    return accuracy
