"""Calibration of the semantic judge's thresholds: labelled pairs of texts, and the curve over their cosines.

Labels are made by rule, so that no test row and no annotator is needed, and the same rows give the same labels. A pair
is a text and its reference; `right` is whether the text means the same.

Answers are those of open questions; a text that equals its reference makes no pair. As in the semantic judge, the
encoder does not decide about a text that is right by its words (`by_words`), which is accepted at every
threshold, or that contradicts its reference (`semantic.contradicts`), which is rejected at every one: such pairs have
no weight. Other words, answers and terms are tried both alone and in a sentence.

| kind | label | text |
|---|---|---|
| `sentence` | right | the reference in a sentence |
| `other words` | right | the reference with a clinical term in another wording of `rewards/lexicon.yaml` |
| `another answer` | wrong | a different answer to the same question |
| `another term` | wrong | the reference with a clinical term replaced by another of its group |
| `too many or few` | wrong | the reference and a different answer to the same question; a list without its last item |
| `denied` | wrong | the reference denied |

Reasoning texts are the annotated ones.

| kind | label | text |
|---|---|---|
| `reordered` | right | the annotation's sentences, last first |
| `other words` | right | the annotation with every known term in another wording |
| `another answer` | wrong | the annotation of a question of the same wording that has a different answer |
| `another picture` | wrong | the annotation of another modality's image |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarl.answers.completion import read_completion
from rarl.answers.exact import equals
from rarl.answers.matching import is_right
from rarl.answers.spelling import list_items, normalise
from rarl.judges.semantic import CONTRADICTED, by_synonyms, similarity
from rarl.records import Sample
from rarl.reporting.page import template
from rarl.rewards.terms import RIVALS, TERMS
from rarl.studies.judges import Labelled
from rarl.studies.peers import GRID, best_threshold, cross_validated, kappa

SENTENCES = ("The picture shows {}.", "There is {} in this image.")
DENIALS = ("There is no {}.", "No {} is seen in this image.")
#: Wordings tried for each term, and wrong texts for each reference.
MOST = 3
#: The "cosine" of a text that is right by its words: above every threshold.
BY_WORDS = 2.0
RESAMPLES = 1000
WORDINGS = {
    term: [wording.strip() for wording in others.split(",")][:MOST]
    for group in ("organ", "sign", "diagnosis", "tone", "size", "shape", "modality")
    for term, others in TERMS[group].items()
    if others
}
#: Term -> the others of its group, of which a finding or a place can be only one.
OTHERS = {term: [other for other in TERMS[group] if other != term] for group in RIVALS for term in TERMS[group]}


@dataclass(frozen=True)
class Pair:
    """A text, its reference, and whether both mean the same."""

    row: str
    """Id of the development row, the unit of the bootstrap."""
    kind: str
    right: bool
    text: str
    reference: str
    question: str = ""


def reworded(text: str, turn: int = 0, by: dict[str, list[str]] = WORDINGS) -> str | None:
    """Return the text with every term of the lexicon in another wording, or replaced `by` others; None if it has none.

    >>> reworded("Brain tumor"), reworded("Nothing")
    ('cerebral tumour', None)
    >>> reworded("Left lung", by={"left": ["right"]})
    'right lung'
    """
    terms = "|".join(map(re.escape, sorted(by, key=len, reverse=True)))

    def other(found: re.Match) -> str:
        wordings = by[found.group().lower()]
        return wordings[turn % len(wordings)]

    new = re.sub(rf"(?<!\w)(?:{terms})(?!\w)", other, text, flags=re.IGNORECASE)
    return new if new.casefold() != text.casefold() else None


def answer_pairs(samples: Sequence[Sample]) -> list[Pair]:
    """Return labelled pairs of the open questions' answers."""
    rows = [s for s in samples if s.kind == "open" and normalise(s.answers[0]) not in ("", "none")]
    by_question: dict[str, dict[str, str]] = {}
    for sample in rows:
        answers = by_question.setdefault(normalise(sample.question), {})
        answers.setdefault(normalise(sample.answers[0]), sample.answers[0])
    pairs = []
    for number, sample in enumerate(rows):
        answers = [other for _, other in sorted(by_question[normalise(sample.question)].items())]
        pairs += [
            Pair(sample.id, kind, right, text, sample.answers[0], sample.question)
            for kind, right, text in _answer_texts(sample.answers[0], answers, number)
            if not equals(text, sample.answers, sample.kind, sample.choices)
        ]
    return pairs


def _answer_texts(reference: str, answers: list[str], number: int) -> list[tuple[str, bool, str]]:
    """Return (kind, right, text) for one reference.

    Args:
        reference: the answer to the question.
        answers: all answers to questions of this wording.
        number: of the row, which varies the choice of wrong texts.
    """
    others = [other for other in answers if not {*list_items(other)} & {*list_items(reference)}]
    others = (others[number % len(others) :] + others)[:MOST] if others else []
    wordings = dict.fromkeys(filter(None, (reworded(reference, turn) for turn in range(MOST))))
    replaced = dict.fromkeys(filter(None, (reworded(reference, number + turn, OTHERS) for turn in range(MOST))))
    sentence = SENTENCES[0].format
    texts = [("sentence", True, pattern.format(reference.lower())) for pattern in SENTENCES]
    texts += [("other words", True, text) for text in (*wordings, *map(sentence, wordings))]
    texts += [("another answer", False, text) for text in (*others, *(sentence(other.lower()) for other in others))]
    texts += [("another term", False, text) for text in (*replaced, *map(sentence, replaced))]
    texts += [("too many or few", False, f"{reference}, {other}") for other in others]
    if len(items := reference.split(",")) > 1:
        texts.append(("too many or few", False, ",".join(items[:-1])))
    return texts + [("denied", False, pattern.format(reference.lower())) for pattern in DENIALS]


def reasoning_pairs(samples: Sequence[Sample]) -> list[Pair]:
    """Return labelled pairs of the annotated reasoning texts."""
    rows = [sample for sample in samples if sample.reasoning]
    pairs = []
    for number, sample in enumerate(rows):
        after = rows[number + 1 :] + rows[:number]
        question, answer = normalise(sample.question), normalise(sample.answers[0])
        same_question = [s for s in after if normalise(s.question) == question]
        different = [s.reasoning for s in same_question if normalise(s.answers[0]) != answer]
        elsewhere = [s.reasoning for s in after if s.modality != sample.modality]
        sentences = re.split(r"(?<=[.!?])\s+", sample.reasoning.strip())
        texts = [("other words", True, w) for w in [reworded(sample.reasoning, number)] if w]
        if len(sentences) > 1:
            texts.append(("reordered", True, " ".join(reversed(sentences))))
        texts += [("another answer", False, text) for text in different[:1]]
        texts += [("another picture", False, text) for text in elsewhere[:1]]
        pairs += [Pair(sample.id, kind, right, text, sample.reasoning) for kind, right, text in texts]
    return pairs


def calibrate(pairs: Sequence[Pair], cosines: Sequence[float], seed: int = 0) -> dict | None:
    """Return the curve over the thresholds and the one with the highest balanced accuracy; None without both labels.

    Every kind of pair has the same weight within its label, however many the rules made; a pair that is decided
    without the encoder has none. `chosen` is the middle of the thresholds that share the highest value; `low` and
    `high` are its 95 % bootstrap percentiles over the development rows, all pairs of a row together. `curve` has, for
    each threshold, the share of right and of wrong pairs that it accepts; `auc` is the area under that curve (ROC).
    """
    from sklearn.metrics import roc_auc_score

    cosines, right = np.asarray(cosines, float), np.array([pair.right for pair in pairs], bool)
    if not right.any() or right.all():
        return None
    kind = np.array([pair.kind for pair in pairs])
    rows = {row: i for i, row in enumerate(dict.fromkeys(pair.row for pair in pairs))}
    at = np.array([rows[pair.row] for pair in pairs])
    draws = np.random.default_rng(seed).multinomial(len(rows), [1 / len(rows)] * len(rows), RESAMPLES)
    above = (cosines[None, :] >= GRID[:, None]).astype(float)  # [grid, pairs]
    undecided = ((cosines > CONTRADICTED) & (cosines < BY_WORDS)).astype(float)
    taken, refused = _rates(above, right, _by_kind(kind, undecided))
    chosen = middle(taken, refused)
    found = [middle(*_rates(above, right, _by_kind(kind, undecided * draw[at]))) for draw in draws]
    auc = roc_auc_score(right, cosines, sample_weight=_by_kind(kind, undecided))
    return {
        "pairs": len(pairs),
        "rows": len(rows),
        "right": int(right.sum()),
        "wrong": int((~right).sum()),
        "auc": round(float(auc), 3),
        "chosen": chosen,
        "low": float(np.percentile(found, 2.5)),
        "high": float(np.percentile(found, 97.5)),
        "balanced_accuracy": round(float((taken + 1 - refused).max() / 2), 3),
        "kinds": {
            str(name): {
                "right": bool(right[kind == name][0]),
                "n": int((kind == name).sum()),
                "curve": [round(float(x), 3) for x in above[:, kind == name].mean(1)],
            }
            for name in dict.fromkeys(kind)
        },
        "curve": [[float(t), round(float(a), 4), round(float(b), 4)] for t, a, b in zip(GRID, taken, refused)],
    }


def _by_kind(kind: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Scale the weights so that every kind has the same sum."""
    scaled = np.zeros(len(weight))
    for name in np.unique(kind):
        scaled[kind == name] = weight[kind == name] / max(1, weight[kind == name].sum())
    return scaled


def _rates(above: np.ndarray, right: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted share of the right and of the wrong pairs that each threshold accepts: two arrays [grid]."""
    taken, refused = (above[:, part] @ weight[part] / max(weight[part].sum(), 1e-9) for part in (right, ~right))
    return taken, refused


def middle(taken: np.ndarray, refused: np.ndarray) -> float:
    """Return the middle of the thresholds that separate right and wrong pairs best."""
    best = np.flatnonzero(np.isclose(taken - refused, (taken - refused).max()))
    return round(float(GRID[best].mean()), 2)


def study(samples: Sequence[Sample], source: str, seed: int) -> tuple[dict[str, dict], list[tuple]]:
    """Calibrate both thresholds with the text encoder `source`.

    Returns:
        The calibration of `answers` and of `reasoning` (those that have pairs), and every pair with its cosine: part,
        row, kind, right, cosine, text, reference.
    """
    from rarl.judges.semantic import embed

    parts, lines = {}, []
    for part, pairs in (("answers", answer_pairs(samples)), ("reasoning", reasoning_pairs(samples))):
        texts = sorted({text for pair in pairs for text in (pair.text, pair.reference)})
        vectors = embed(texts, source) if texts else {}
        cosines = [_score(vectors, pair, part) for pair in pairs]
        if found := calibrate(pairs, cosines, seed):
            parts[part] = found
            lines += [(part, p.row, p.kind, int(p.right), c, p.text, p.reference) for p, c in zip(pairs, cosines)]
    return parts, lines


def by_words(answer: str, references: Sequence[str], question: str) -> bool:
    """Return whether the semantic judge accepts an open answer without its encoder."""
    return is_right(answer, references, "open", (), question) or by_synonyms(answer, references, question)


def _score(vectors: dict, pair: Pair, part: str) -> float:
    if part == "answers" and by_words(pair.text, [pair.reference], pair.question):
        return BY_WORDS
    return similarity(vectors, pair.text, pair.reference, part == "answers")


def on_labelled_rows(rows: Sequence[Labelled], source: str) -> dict:
    """Calibrate the threshold of open answers on rows that people or a model have labelled, by kappa.

    `chosen` has the highest kappa on all open rows; `low` and `high` are the lowest and highest of the folds, and
    `kappa` is, for each labeller, that of the verdicts with the threshold that the other folds chose.
    """
    from rarl.judges.semantic import embed

    rows = [row for row in rows if row.kind == "open"]
    answers = [read_completion(row.prediction)[1] for row in rows]
    texts = {text for row, answer in zip(rows, answers) for text in (answer, *row.answers)}
    vectors = embed(sorted(texts), source)
    scores = np.full(len(rows), CONTRADICTED)
    for at, (row, answer) in enumerate(zip(rows, answers)):
        if by_words(answer, row.answers, row.question):
            scores[at] = BY_WORDS
        elif answer.strip():
            scores[at] = max(similarity(vectors, answer, reference, exact=True) for reference in row.answers)
    right = np.array([row.right for row in rows])
    thresholds = cross_validated(scores, right, [row.group for row in rows])
    accepted = scores >= thresholds
    agreement = {}
    for labeller in dict.fromkeys(row.judge for row in rows):
        theirs = np.array([row.judge == labeller for row in rows])
        yes, no = accepted & theirs, ~accepted & theirs
        cells = np.array([(yes & right).sum(), (yes & ~right).sum(), (no & right).sum(), (no & ~right).sum()])
        agreement[labeller] = {"n": int(theirs.sum()), "kappa": round(float(kappa(cells)), 3)}
    return {
        "rows": len(rows),
        "questions": len({row.group for row in rows}),
        "by_words": int((scores == BY_WORDS).sum()),
        "chosen": best_threshold(scores, right),
        "low": float(thresholds.min()),
        "high": float(thresholds.max()),
        "kappa": agreement,
    }


def as_markdown(study: dict, command: str) -> str:
    """Return the study for people; `command` makes it again."""
    lines = []
    for part, found in study["parts"].items():
        cells = (found["right"], found["wrong"], found["auc"], found["chosen"], found["low"], found["high"])
        pairs = "| {} | {} / {} | {} | {} | {:.2f} to {:.2f} | {} |"
        lines.append(pairs.format(part, *cells, found["balanced_accuracy"]))
    kinds = []
    for part, found in study["parts"].items():
        for kind, row in found["kinds"].items():
            label, share = "right" if row["right"] else "wrong", row["curve"][round(100 * found["chosen"])]
            kinds.append(f"| {part} | {kind} | {label} | {row['n']} | {100 * share:.0f} |")
    return template("threshold.md", Path(__file__).parent).render(**study, command=command, lines=lines, kinds=kinds)
