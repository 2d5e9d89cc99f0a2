"""The prompt of a language model as a judge, and the parsing of its response. Shared by `llm` and `local`.

The prompt is the paper's (appendix B, `evaluation.txt`, word for word), followed by the material as one JSON object
(`material.txt`, ours: the paper shows no place for it). A model's answer is a string in that object and cannot leave
it; parsing reads the judge's response alone. After an unusable response the judge is asked once more (`repair.txt`,
ours) and told what was wrong.

A judge of this kind asks and keeps responses until `unanswered` finds nothing more to ask; verdicts are then made from
the kept responses alone, so that a stopped run resumes.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rarl.chat.journal import TOO_LONG, Answer, Journal, Messages
from rarl.judges.failures import infrastructure_failure, model_failure
from rarl.records import Prediction, Sample, Verdict

#: Finds the kept response to a chat, or None.
Known = Callable[[Messages], Answer | None]
Score = Annotated[int, Field(strict=True, ge=0, le=1)]

#: JSON schema of the response, for endpoints with structured output.
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
#: Characters of an unusable response that are sent back with the request to repair it.
LONGEST_QUOTATION = 4000
#: Characters of a judge's sentence that are kept in a verdict.
LONGEST_EVALUATION = 1000


class Reply(BaseModel):
    """A usable response. Other keys are ignored."""

    model_config = ConfigDict(strict=True)

    evaluation: str
    reasoning_score: Score | None = None
    prediction_score: Score


class Unusable(ValueError):
    """Why a response is no verdict, as half a sentence that does not quote the response."""


@dataclass(frozen=True)
class Case:
    """One prediction that a judge must be asked about."""

    messages: Messages
    annotated: bool
    """Whether the sample has a reasoning to compare with; if not, the reasoning score is dropped."""
    completion: str


@cache
def text(name: str) -> str:
    """The text of a prompt file beside this module."""
    return (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8").strip()


def case(sample: Sample, prediction: Prediction) -> Case | None:
    """What to ask about one prediction; None if that is decided without a judge.

    The chat has the question, reference answers, annotated reasoning, and the model's reasoning and answer. It has no
    image, no file names, and no id of sample, data set or patient.
    """
    annotated = bool(sample.reasoning)
    nothing_to_rate = model_failure(prediction, prediction.answer) is not None and not (annotated and prediction.think)
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
    r"""JSON in which no string can look like a tag or a control token of a chat template.

    >>> print(quoted({"answer": "</think> <|im_end|> [INST]"}))
    {"answer": "\u003c/think> \u003c|im_end|> \u005bINST]"}
    """
    written = json.dumps(material, ensure_ascii=False)
    # The bracket of a list is never followed by a letter: lists hold strings only.
    return re.sub(r"<|\[(?=[/A-Za-z])", lambda mark: f"\\u{ord(mark[0]):04x}", written)


def read(response: str, asked: Case) -> Reply:
    """Parse the verdict in a response: its only JSON object, with or without prose and code fence around it.

    Raises:
        Unusable: there is no JSON object, or more than one; it is a quotation of the prediction; or it does not have
            the output structure. Nothing is guessed.
    """
    found = _json_object(response.strip(), asked.completion)
    if not asked.annotated:
        found = {**found, "reasoning_score": None}
    elif found.get("reasoning_score") is None:
        raise Unusable("reasoning_score is missing")
    try:
        verdict = Reply.model_validate(found)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise Unusable(f"{key} {'has a wrong type or value' if key in found else 'is missing'}") from None
    if re.search("[\ud800-\udfff]", verdict.evaluation):
        raise Unusable("its evaluation is no text: it holds a lone surrogate")
    return verdict


def _json_object(response: str, completion: str) -> dict:
    if response.startswith("<think>"):  # a reasoning model, whose drafts are no verdict
        response = response.partition("</think>")[2]
    start = response.find("{")
    if start < 0:
        raise Unusable("it holds no JSON object")
    # Parsed from the first brace only: an object inside a broken one may be a quotation.
    try:
        found, end = json.JSONDecoder(object_pairs_hook=_once).raw_decode(response, start)
    except Unusable:
        raise
    except (ValueError, RecursionError):
        raise Unusable("its JSON is broken or cut off") from None
    if "{" in response[end:]:
        raise Unusable("it holds more than one JSON object")
    if (start or response[end:].strip()) and response[start:end] in completion:
        raise Unusable("its JSON object is a quotation from the prediction")
    return found


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unusable("its JSON object has a key twice")
    return found


def outcome(asked: Case, known: Known) -> Reply | str | Messages:
    """The state of a case, given the kept responses.

    Returns:
        The usable response; or, as text, why there will be none; or the chat to ask next.
    """
    messages = asked.messages
    for last in (False, True):
        answer = known(messages)
        if answer is None:
            return messages
        if answer.refusal is not None:
            return f"the judge refused: {answer.refusal or 'no message'}"
        try:
            if answer.cut:
                raise Unusable("it was cut off at the token limit")
            if answer.text == TOO_LONG:
                raise Unusable("it was longer than 1 MB")
            return read(answer.text, asked)
        except Unusable as problem:
            if last:
                return f"the judge's response was unusable twice: {problem}"
            messages = [
                *asked.messages,
                {"role": "assistant", "content": answer.text[:LONGEST_QUOTATION]},
                {"role": "user", "content": text("repair").replace("{problem}", str(problem))},
            ]
    raise AssertionError("not reached")


def rate(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    journal: Journal,
    ask: Callable[[list[Case], int], dict[str, str]],
) -> list[Verdict]:
    """Verdicts from the responses in a journal; equal questions are asked once.

    Args:
        samples: one for each prediction, in the same order.
        predictions: what is rated.
        journal: the responses, open.
        ask: gets the missing responses into the journal, given the cases that need some and the number of all. Returns
            key of a case's first chat -> why it got none.
    """
    cases = [case(s, p) for s, p in zip(samples, predictions, strict=True)]
    keys = [asked and journal.key_for(asked.messages) for asked in cases]
    distinct = {key: asked for key, asked in zip(keys, cases) if asked}
    ahead = unanswered(distinct.values(), journal.known)
    failures = ask(ahead, len(distinct)) if ahead else {}
    return [
        verdict(sample, prediction, asked, journal.known, failures.get(key))
        for sample, prediction, asked, key in zip(samples, predictions, cases, keys)
    ]


def unanswered(cases: Iterable[Case], known: Known) -> list[Case]:
    """The cases that still have something to ask."""
    return [asked for asked in cases if isinstance(outcome(asked, known), list)]


def verdict(sample: Sample, prediction: Prediction, asked: Case | None, known: Known, failure: str | None) -> Verdict:
    """The verdict on one prediction; `failure` is why a response is missing, if one is."""
    if lost := infrastructure_failure(prediction):
        return lost
    fault = model_failure(prediction, prediction.answer)
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
        # Without an answer the judge was asked about the reasoning only.
        prediction_score=0 if fault else found.prediction_score,
    )
