"""The lexical judge: compares words strictly. Deterministic on every machine.

Final answer: `answers.matches`. For an open answer, and for a choice whose options are not listed, a sentence that
contains the reference also counts ("The picture shows pneumonia." for "Pneumonia"), if

* it has as many items as the reference ("A and B" is two), so that listing everything does not pay,
* each item contains its reference item as a phrase of whole words ("abnormal" is not "normal"),
* no word around the phrase denies it or names an alternative ("no", "non-enhancing", "or"),
* and at most `MOST_EXTRA_WORDS` words are around the phrase.

An answer more specific than the reference is accepted ("Pulmonary Mass" for "Mass"), a less specific one is not, nor
are synonyms, which the semantic judge handles.

Reasoning: recall of the reference reasoning's content words in the think text. A word in a clause with a negation
differs from the same word without one ("no opacity", "opacity").
"""

import re
from collections.abc import Sequence

from rarl.answers import list_items, matches
from rarl.judges.failures import infrastructure_failure, model_failure
from rarl.records import Prediction, Sample, Verdict

MOST_EXTRA_WORDS = 8
#: Recall from which a reasoning counts as the reference's, if params set no threshold.
REASONING_THRESHOLD = 0.7

_WORD = re.compile(r"[^\W_]+")
NEGATIONS = frozenset(
    _WORD.findall("""
    no not non none nor neither never without absent absence negative free cannot isn aren doesn don wasn hasn
""")
)
ALTERNATIVES = frozenset(_WORD.findall("or versus vs maybe either except unlike"))
#: Words that carry no finding: function words, and what any sentence about an image says.
GENERIC = frozenset(
    _WORD.findall("""
    a an the this that these those it its there here is are was were be been being am has have had do does did can
    could may might will would should of in on at to from by with for as and or but so because therefore thus which
    who what where when how than then we i you he she they his her their our my also very more most some any such
    both each other into about over under between image picture scan photo show seen see look appear observe suggest
    mean indicate present visible shown shows showing looks appears suggests means indicates indicating suggesting
    consistent likely evidence patient finding question answer case
""")
)
_CLAUSE = re.compile(r"[.,;:!?\n]+|\b(?:but|so|because|while|which|although|however|therefore)\b")


def judge(samples: Sequence[Sample], predictions: Sequence[Prediction], settings, **_) -> list[Verdict]:
    """Rate each prediction by the words of its answer and its reasoning.

    Of `settings` (`params.Judge`) only `reasoning_threshold` is used.
    """
    threshold = settings.reasoning_threshold
    threshold = REASONING_THRESHOLD if threshold is None else threshold
    return [
        infrastructure_failure(prediction) or _verdict(sample, prediction, threshold)
        for sample, prediction in zip(samples, predictions, strict=True)
    ]


def _verdict(sample: Sample, prediction: Prediction, threshold: float) -> Verdict:
    right, why = rate_answer(sample, prediction)
    reasoning_score = None
    if sample.reasoning:
        share = recalled(sample.reasoning, prediction.think or "")
        reasoning_score = int(share >= threshold)
        why += f" The reasoning has {share:.0%} of the reference's content words."
    return Verdict(id=sample.id, evaluation=why, reasoning_score=reasoning_score, prediction_score=int(right))


def rate_answer(sample: Sample, prediction: Prediction) -> tuple[bool, str]:
    """Whether the final answer is right, and a sentence with the reason."""
    if fault := model_failure(prediction, prediction.answer):
        return False, f"Wrong, because {fault}."
    answer, references = quoted(prediction.answer), quoted(" / ".join(sample.answers))
    if matches(prediction.answer, sample.answers, sample.kind, sample.choices):
        return True, f"Right: {answer} is the reference {references}."
    worded = sample.kind == "open" or (sample.kind == "choice" and not sample.choices)
    if worded and any(says(prediction.answer, reference) for reference in sample.answers):
        return True, f"Right: {answer} says the reference {references}."
    return False, f"Wrong: {answer} is not the reference {references}."


def says(answer: str, reference: str) -> bool:
    """Whether an answer contains the reference in a longer wording, item by item.

    >>> says("The picture shows pneumonia.", "Pneumonia"), says("No pneumonia.", "Pneumonia")
    (True, False)
    >>> says("Pneumonia or effusion", "Pneumonia"), says("Effusion, pneumonia", "Pneumonia")
    (False, False)
    """
    given = [_WORD.findall(item) for item in list_items(answer)]
    wanted = [_WORD.findall(item) for item in list_items(reference)]
    if not wanted or len(given) != len(wanted):
        return False
    # Longest first, so that "brain tumor" takes its own item before "tumor" does.
    for item in sorted(wanted, key=len, reverse=True):
        holder = next((words for words in given if _holds(words, item)), None)
        if holder is None:
            return False
        given.remove(holder)
    return True


def _holds(words: list[str], phrase: list[str]) -> bool:
    for start in range(len(words) - len(phrase) + 1):
        if words[start : start + len(phrase)] == phrase:
            around = words[:start] + words[start + len(phrase) :]
            return len(around) <= MOST_EXTRA_WORDS and not (NEGATIONS | ALTERNATIVES) & {*around}
    return False


def recalled(reference: str, text: str) -> float:
    """Share of the reference's content words that are in the text, in [0, 1].

    >>> recalled("A dark spot in the left lung.", "The left lung has a spot.")
    0.75
    """
    wanted = content_words(reference)
    return len(wanted & content_words(text)) / len(wanted) if wanted else 0.0


def content_words(text: str) -> set[tuple[str, bool]]:
    """(word, whether its clause has a negation) for each word that is not generic."""
    found = set()
    for clause in _CLAUSE.split(text.casefold()):
        words = _WORD.findall(clause)
        denied = bool(NEGATIONS & {*words})
        found |= {
            (_singular(word), denied)
            for word in words
            if word not in GENERIC and word not in NEGATIONS and _singular(word) not in GENERIC
        }
    return found


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def quoted(text: str, limit: int = 120) -> str:
    """A text as one quoted line of at most `limit` characters."""
    line = " ".join(text.split())
    return f"'{line if len(line) <= limit else line[: limit - 1] + '…'}'"
