"""Peers: simple ways to compare an answer with its reference, which a judge must beat (`rarl study judges`).

Each peer gives an answer the score of its best reference and accepts it from a threshold. A threshold that is not
fixed is cross-validated: each fifth of the questions is judged with the threshold that has the highest kappa on the
other four. No peer reads the options of a multiple-choice question, or guards against negation, sides or sizes.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rarl.answers.spelling import normalise
from rarl.errors import UserError
from rarl.rewards.terms import term_score

FOLDS = 5
GRID = np.round(np.arange(0, 1.001, 0.01), 2)
Pairs = Sequence[tuple[str, str]]
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = {"a", "an", "the"}


def words(text: str) -> list[str]:
    """Return the words in lower case, without articles and punctuation.

    >>> words("The X-ray shows a mass.")
    ['x', 'ray', 'shows', 'mass']
    """
    return [word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES]


def exact(answer: str, reference: str) -> float:
    """1 if both are equal after normalisation."""
    return float(normalise(answer) == normalise(reference))


def substring(answer: str, reference: str) -> float:
    """1 if the reference is in the answer, also inside a word."""
    return float(bool(normalise(reference)) and normalise(reference) in normalise(answer))


def recall(answer: str, reference: str) -> float:
    """Share of the reference's words that are in the answer (LLaVA-Med's measure of open answers).

    >>> recall("The mass is in the left lung.", "left lung mass"), recall("Left.", "left lung")
    (1.0, 0.5)
    """
    found, wanted = words(answer), words(reference)
    return sum(word in found for word in wanted) / len(wanted) if wanted else 0.0


def token_f1(answer: str, reference: str) -> float:
    """F1 over the words of both, as in SQuAD's evaluation.

    >>> round(token_f1("The left lung.", "right lung"), 2), token_f1("Lung", "the lung")
    (0.5, 1.0)
    """
    found, wanted = Counter(words(answer)), Counter(words(reference))
    return 2 * (found & wanted).total() / max(1, found.total() + wanted.total())


def bertscore(pairs: Pairs, encoder) -> list[float]:
    """BERTScore F1 of each (answer, reference), by the rewards' encoder."""
    from rarl.rewards.bertscore import BertScorer

    return BertScorer(encoder.source, encoder.num_layers, device="cpu").f1(pairs)


def cosine(pairs: Pairs, encoder) -> list[float]:
    """Cosine of the two sentence embeddings of each (answer, reference), without the semantic judge's guards."""
    from rarl.judges.semantic import embed

    vectors = embed(sorted({text for pair in pairs for text in pair}), encoder.source)
    return [float(vectors[answer] @ vectors[reference]) for answer, reference in pairs]


def _each(score: Callable[[str, str], float]) -> Callable[..., list[float]]:
    return lambda pairs, encoder: [score(*pair) for pair in pairs]


@dataclass(frozen=True)
class Peer:
    """A comparison of texts.

    Attributes:
        how: completes "This peer ...".
        scores: returns the score of each (answer, reference); higher is more alike.
        threshold: the lowest score that is accepted; None if it is cross-validated.
    """

    how: str
    scores: Callable[..., list[float]]
    threshold: float | None = None


PEERS = {
    "exact": Peer("accepts an answer that equals the reference after normalisation", _each(exact), 1.0),
    "substring": Peer("accepts an answer that contains the reference", _each(substring), 1.0),
    "recall": Peer("accepts an answer that has all words of the reference", _each(recall), 1.0),
    "token_f1": Peer("compares the words of both by F1", _each(token_f1)),
    "bertscore": Peer("compares token embeddings of both (BERTScore F1, the encoder of the rewards)", bertscore),
    "cosine": Peer("compares sentence embeddings of both, without the guards of the semantic judge", cosine),
    "terms": Peer(
        "accepts an answer that states all clinical terms of the reference and contradicts none",
        _each(term_score),
        1.0,
    ),
}


def peer_scores(name: str, answers: Sequence[str], references: Sequence[Sequence[str]], encoder) -> list[float]:
    """Return each answer's score: the highest over its references, and -1 for an empty answer.

    Args:
        name: of the peer in `PEERS`.
        answers: parsed answers.
        references: the accepted references of each answer.
        encoder: `params.Encoder`, for `bertscore` and `cosine`.
    """
    pairs = dict.fromkeys((a, r) for a, some in zip(answers, references, strict=True) for r in some if a.strip())
    scores = dict(zip(pairs, PEERS[name].scores(list(pairs), encoder), strict=True))
    return [
        max((scores[a, r] for r in some), default=-1.0) if a.strip() else -1.0 for a, some in zip(answers, references)
    ]


def kappa(cells: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa of verdicts and labels; NaN where there is only one label.

    Args:
        cells: numbers of rows [..., 4]: right accepted, wrong accepted, right rejected, wrong rejected.

    >>> kappa(np.array([[20, 5, 10, 15], [3, 0, 1, 0]])).round(2).tolist()
    [0.4, nan]
    """
    a, b, c, d = np.moveaxis(np.asarray(cells, float), -1, 0)
    below = np.where((a + c) * (b + d) > 0, (a + b) * (b + d) + (a + c) * (c + d), np.nan)
    return 2 * (a * d - b * c) / below


def best_threshold(scores: np.ndarray, right: np.ndarray) -> float:
    """Return the threshold of `GRID` with the highest kappa; of several, the middle one.

    >>> best_threshold(np.array([0.2, 0.3, 0.7, 0.9]), np.array([False, False, True, True]))
    0.5
    """
    above = scores >= GRID[:, None]  # [grid, rows]
    taken = np.stack([(above & right).sum(1), (above & ~right).sum(1)], axis=1)
    cells = np.hstack([taken, [right.sum(), (~right).sum()] - taken])
    found = np.nan_to_num(kappa(cells))
    best = np.flatnonzero(np.isclose(found, found.max()))
    return float(GRID[best[(len(best) - 1) // 2]])


def cross_validated(scores: np.ndarray, right: np.ndarray, questions: Sequence[str]) -> np.ndarray:
    """Return the threshold of each row: the best one on the rows of the other folds.

    Args:
        scores: float array [rows].
        right: bool array [rows], the labels.
        questions: the group of each row; rows of one question are in one fold.

    Raises:
        UserError: all rows have the same question.
    """
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(set(questions)))
    if folds < 2:
        peers = ", ".join(name for name, peer in PEERS.items() if peer.threshold is None)
        raise UserError(
            "--judges",
            "a threshold to cross-validate, and rows of one question only",
            "rows of at least two questions",
            f"add rows, or leave these out: {peers}",
        )
    thresholds = np.empty(len(scores))
    for others, fold in GroupKFold(folds).split(scores, groups=np.asarray(questions)):
        thresholds[fold] = best_threshold(scores[others], right[others])
    return thresholds
