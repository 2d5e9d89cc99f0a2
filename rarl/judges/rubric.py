"""What a language model is asked as a judge, and how its reply is read. Shared by `llm` and `local`.

The question is the paper's prompt (appendix B, `evaluation.txt`, word for word), followed by the
material as one JSON object (`material.txt`, ours: the paper prints no place for it). A model's answer
is a string in that object and cannot get out of it; what it says is for the judge to weigh, while
parsing reads the judge's reply alone. A reply that cannot be used is asked for once more
(`repair.txt`, ours), with what was wrong with it.

A judge of this kind asks and keeps replies until `unanswered` finds nothing more to ask; verdicts are
then made from the kept replies alone, so that a run that was stopped goes on where it was.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rarl.judges.faults import machinery_fault, model_fault
from rarl.judges.journal import TOO_LONG, Answer
from rarl.records import Prediction, Sample, Verdict

#: A chat: `{"role": "user" or "assistant", "content": text}` of each turn.
Messages = list[dict[str, str]]
#: The reply to a chat that was kept, or None.
Known = Callable[[Messages], Answer | None]
Score = Annotated[int, Field(strict=True, ge=0, le=1)]

#: The reply as a JSON schema, for endpoints that can hold a model to one.
SCHEMA = {
    "type": "object",
    "properties": {
        "evaluation": {"type": "string", "description": "one concise sentence"},
        "reasoning_score": {"type": "integer", "description": "0 or 1"},
        "prediction_score": {"type": "integer", "description": "0 or 1"},
    },
    "required": ["evaluation", "reasoning_score", "prediction_score"],
    "additionalProperties": False,
}
#: Characters of an unusable reply that are sent back with the request to repair it.
LONGEST_QUOTATION = 4000
#: Characters of a judge's sentence that are kept in a verdict.
LONGEST_EVALUATION = 1000


class Reply(BaseModel):
    """A usable reply. Keys besides these are left out."""

    model_config = ConfigDict(strict=True)

    evaluation: str
    reasoning_score: Score | None = None
    prediction_score: Score


class Unusable(ValueError):
    """Why a reply is no verdict, as the half of a sentence and without the reply's own words."""


@dataclass(frozen=True)
class Case:
    """One prediction that a judge must be asked about."""

    messages: Messages
    annotated: bool
    """Whether the sample has a reasoning to compare with; if not, the reply's reasoning score is dropped."""
    completion: str


@cache
def text(name: str) -> str:
    """The text of one of the prompt files beside this module."""
    return (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8").strip()


def case(sample: Sample, prediction: Prediction) -> Case | None:
    """What to ask about one prediction; None where that is decided without a judge.

    Goes out: question, reference answers, annotated reasoning, the model's reasoning and answer.
    Stays here: image, file names, and the ids of sample, data set and patient.
    """
    annotated = bool(sample.reasoning)
    nothing_to_rate = model_fault(prediction, prediction.answer) is not None and not (annotated and prediction.think)
    if prediction.error is not None or nothing_to_rate:
        return None
    material = {
        "question": sample.question,
        "ground_truth": {"answers": sample.answers, "reasoning": sample.reasoning or None},
        "prediction": {"reasoning": prediction.think, "answer": prediction.answer},
    }
    asked = f"{text('evaluation')}\n\n{text('material')}".replace("{material}", quoted(material))
    return Case([{"role": "user", "content": asked}], annotated, prediction.completion)


def quoted(material: dict) -> str:
    """JSON in which no string can look like a tag or a control token of a chat template.

    >>> quoted({"answer": "</think> <|im_end|> [INST]"})
    '{"answer": "\\\\u003c/think> \\\\u003c|im_end|> \\\\u005bINST]"}'
    """

    written = json.dumps(material, ensure_ascii=False)
    # A list's own bracket is never followed by a letter: all that it holds are strings.
    return re.sub(r"<|\[(?=[/A-Za-z])", lambda mark: f"\\u{ord(mark[0]):04x}", written)


def read(reply: str, asked: Case) -> Reply:
    """The verdict in a reply: its one JSON object, with or without prose and code fence around it.

    Raises:
        Unusable: there is no JSON object, or more than one; it is the predicted text's own; or it is
            not of the output structure. Nothing is guessed.
    """
    reply = reply.strip()
    if reply.startswith("<think>"):  # a model that thinks aloud; its drafts are no verdict
        reply = reply.partition("</think>")[2]
    start = reply.find("{")
    if start < 0:
        raise Unusable("it holds no JSON object")
    # From the first brace on only: an object inside a broken one may be a quotation.
    try:
        found, end = json.JSONDecoder(object_pairs_hook=_once).raw_decode(reply, start)
    except Unusable:
        raise
    except (ValueError, RecursionError):
        raise Unusable("its JSON is broken or cut off") from None
    if "{" in reply[end:]:
        raise Unusable("it holds more than one JSON object")
    if (start or reply[end:].strip()) and reply[start:end] in asked.completion:
        raise Unusable("its JSON object is a quotation from the prediction")
    if not asked.annotated:
        found = {**found, "reasoning_score": None}
    elif found.get("reasoning_score") is None:
        raise Unusable("reasoning_score is missing")
    try:
        verdict = Reply.model_validate(found)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        lack = "is missing" if key not in found else "has a wrong type or value"
        raise Unusable(f"{key} {lack}") from None
    if re.search("[\ud800-\udfff]", verdict.evaluation):
        raise Unusable("its evaluation is no text: it holds a lone surrogate")
    return verdict


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unusable("its JSON object has a key twice")
    return found


def outcome(asked: Case, known: Known) -> Reply | str | Messages:
    """Where a case stands by the replies that are kept.

    Returns:
        the usable reply; or, as text, why there will be none; or the chat to be answered next.
    """
    messages = asked.messages
    for last in (False, True):
        answer = known(messages)
        if answer is None:
            return messages
        if answer.refusal is not None:
            return f"the judge refused: {answer.refusal or 'no words'}"
        try:
            if answer.cut:
                raise Unusable("it was cut off at the token limit")
            if answer.text == TOO_LONG:
                raise Unusable("it was longer than 1 MB")
            return read(answer.text, asked)
        except Unusable as problem:
            if last:
                return f"the judge's reply was unusable twice: {problem}"
            messages = [
                *asked.messages,
                {"role": "assistant", "content": answer.text[:LONGEST_QUOTATION]},
                {"role": "user", "content": text("repair").replace("{problem}", str(problem))},
            ]
    raise AssertionError("not reached")


def unanswered(cases: Sequence[Case], known: Known) -> list[Case]:
    """The cases that something must still be asked for."""
    return [asked for asked in cases if isinstance(outcome(asked, known), list)]


def verdict(sample: Sample, prediction: Prediction, asked: Case | None, known: Known, failure: str | None) -> Verdict:
    """The verdict on one prediction.

    Args:
        failure: why the judge could not be asked to the end, where it could not.
    """
    if lost := machinery_fault(prediction):
        return lost
    fault = model_fault(prediction, prediction.answer)
    if asked is None:
        return Verdict(
            id=sample.id,
            evaluation=f"Wrong, because {fault}.",
            reasoning_score=0 if sample.reasoning else None,
            prediction_score=0,
        )
    found = outcome(asked, known)
    if not isinstance(found, Reply):
        why = found if isinstance(found, str) else failure or "the judge was not asked"
        return Verdict(id=sample.id, evaluation=f"Not scored: {why}.", unscored=why)
    return Verdict(
        id=sample.id,
        evaluation=found.evaluation[:LONGEST_EVALUATION],
        reasoning_score=found.reasoning_score,
        # There is no answer to be right; the judge was asked for the reasoning's sake.
        prediction_score=0 if fault else found.prediction_score,
    )
