"""The lexical judge: compares words strictly. Deterministic on every machine.

Final answer: `answers.matching.is_right`. An answer more specific than the reference is accepted ("Pulmonary Mass" for
"Mass"), a less specific one is not, nor are synonyms, which the semantic judge handles.

Reasoning: recall of the reference reasoning's content words in the think text. A word in a clause with a negation
differs from the same word without one ("no opacity", "opacity").
"""

from collections.abc import Sequence

from rarl.answers.matching import is_right, matches
from rarl.answers.sentences import content_words
from rarl.judges.failures import infrastructure_failure, model_failure
from rarl.records import Prediction, Sample, Verdict

#: Recall from which a reasoning counts as the reference's, if params set no threshold.
REASONING_THRESHOLD = 0.7


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
    row = (prediction.answer, sample.answers, sample.kind, sample.choices, sample.question)
    if matches(*row):
        return True, f"Right: {answer} is the reference {references}."
    if is_right(*row):
        return True, f"Right: {answer} states the reference {references}."
    return False, f"Wrong: {answer} is not the reference {references}."


def recalled(reference: str, text: str) -> float:
    """Share of the reference's content words that are in the text, in [0, 1].

    >>> recalled("A dark spot in the left lung.", "The left lung has a spot.")
    0.75
    """
    wanted = content_words(reference)
    return len(wanted & content_words(text)) / len(wanted) if wanted else 0.0


def quoted(text: str, limit: int = 120) -> str:
    """A text as one quoted line of at most `limit` characters."""
    line = " ".join(text.split())
    return f"'{line if len(line) <= limit else line[: limit - 1] + '…'}'"
