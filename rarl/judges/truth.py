"""The truth judge: rates answers about phantoms against the phantom's findings, without the references.

A third rater that shares no code with the rewards or with `rarl/answers/`: it parses completions on its own, so
that a bug in the shared answer handling shows as disagreement.

It reads `data/truth.jsonl`, one line for each image and question:

    {"image_sha256": "...", "question": "...", "modality": "xray",
     "findings": [{"name": "Nodule", "organ": "lung", "side": "left", "level": "upper"}],
     "expect": {"yes": true}}

`expect` is `{"yes": bool}`, `{"any_of": [...]}` (the answer is one of these, but for filler words) or
`{"all_of": [...]}` (it names these diseases and no other; `[]`: it says that there is none). An image or question
without a line (real data) is unscored.

Reasoning, if the sample has one, must name every disease of the phantom and no other, or say that nothing is wrong
with a healthy phantom. A disease in a clause with a negation does not count as named.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from rarl.judges.failures import infrastructure_failure, model_failure
from rarl.records import Prediction, Sample, Verdict, read_records

NO_TRUTH = "no phantom known for this image and question"

_WORD = re.compile(r"[a-z0-9_]+")
_DENIALS = {"no", "not", "without", "never", "neither", "nor", "none", "absent", "free", "cannot"}
_WELL = {"normal", "healthy", "clear", "unremarkable"}
_ILL = {"abnormal", "unhealthy", "diseased"}
#: With a negation: a statement that nothing is wrong.
_SOMETHING_WRONG = set(
    _WORD.findall("""
    abnormality abnormalities abnormal disease diseases finding findings lesion lesions spot spots area areas bar
    opacity opacities
""")
)
_FILLERS = set(
    _WORD.findall("""
    a an the it is are there this that in on of at answer image picture scan shows shown seen side plane view abnormal
    option was s
""")
)
_AFTER_NO = {"it", "there", "this", "that", "the", "i", "they", "these"}


class Finding(BaseModel):
    """A disease of a phantom."""

    name: str
    organ: str


class Truth(BaseModel):
    """A line of the truth file."""

    image_sha256: str
    question: str
    findings: list[Finding]
    expect: dict[Literal["yes", "any_of", "all_of"], bool | list[str]] = Field(min_length=1, max_length=1)


def judge(
    samples: Sequence[Sample], predictions: Sequence[Prediction], settings, *, truth_file: Path, **_
) -> list[Verdict]:
    """Rate each prediction whose image and question are in the truth file; `settings` are not used.

    Raises:
        UserError: the truth file is missing, or a line of it is malformed.
    """
    lines = read_records(truth_file, Truth)
    truths = {(truth.image_sha256, _folded(truth.question)): truth for truth in lines}
    diseases = {finding.name: finding.organ for truth in truths.values() for finding in truth.findings}
    for truth in truths.values():
        for name in truth.expect.get("all_of", []):
            diseases.setdefault(name, name.split()[0].lower())
    verdicts = []
    for sample, prediction in zip(samples, predictions, strict=True):
        truth = truths.get((sample.image_sha256, _folded(sample.question)))
        if truth is None and prediction.error is None:
            verdict = Verdict(id=sample.id, evaluation=f"Not scored: {NO_TRUTH}.", unscored=NO_TRUTH)
        else:
            verdict = infrastructure_failure(prediction) or _verdict(sample, prediction, truth, diseases)
        verdicts.append(verdict)
    return verdicts


def _verdict(sample: Sample, prediction: Prediction, truth: Truth, diseases: dict[str, str]) -> Verdict:
    think, answer = split_completion(prediction.completion)
    if fault := model_failure(prediction, answer):
        right, why = False, f"Wrong, because {fault}."
    else:
        right = _meets(answer, truth.expect, diseases)
        match truth.expect:
            case {"yes": value}:
                wanted = "yes" if value else "no"
            case {"any_of": phrases}:
                wanted = f"'{phrases[0]}'"
            case {"all_of": names}:
                wanted = ", ".join(names) or "no disease"
        why = f"{'Right' if right else 'Wrong'}: the phantom asks for {wanted}."
    reasoning_score = None
    if sample.reasoning:
        present = {finding.name for finding in truth.findings}
        named = diseases_named(think, diseases)
        healthy = not named and says_nothing_wrong(think) and not _contradicts_itself(think)
        reasoning_score = int(named == present if present else healthy)
        why += (
            f" The reasoning names {', '.join(sorted(named)) or 'no disease'}; "
            f"the phantom shows {', '.join(sorted(present)) or 'none'}."
        )
    return Verdict(id=sample.id, evaluation=why, reasoning_score=reasoning_score, prediction_score=int(right))


def split_completion(completion: str) -> tuple[str, str]:
    """The think text (empty if it is not closed) and the last complete answer, or else all text outside of tags.

    >>> split_completion("<think>A spot.</think> <answer>Nodule</answer>"), split_completion("Yes <think>hm")
    (('A spot.', 'Nodule'), ('', 'Yes'))
    """
    think = re.search(r"<think>(.*?)</think>", completion, re.DOTALL)
    answers = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", completion, re.DOTALL)
    outside = re.sub(r"<think>.*?(?:</think>|\Z)", " ", completion, flags=re.DOTALL)
    answer = answers[-1] if answers else re.sub(r"</think>|</?answer>", " ", outside)
    return think[1].strip() if think else "", answer.strip()


def diseases_named(text: str, diseases: dict[str, str]) -> set[str]:
    """Which of the diseases (name -> organ) the text says are present.

    A disease is named by its own word ("tumor"), or, if two diseases share that word, by it and the organ in one
    clause ("cancer of the liver"). An enlarged heart is cardiomegaly.
    """
    last_words = [name.lower().split()[-1] for name in diseases]
    named = set()
    for words in _clauses(text):
        if words & _DENIALS:
            continue
        for name, organ in diseases.items():
            kind = name.lower().split()[-1]
            has_kind = bool(words & {kind, kind + "s", kind + "es", kind.replace("tumor", "tumour")})
            if has_kind and (last_words.count(kind) == 1 or organ in words):
                named.add(name)
            if name == "Cardiomegaly" and "heart" in words and words & {"large", "enlarged"}:
                named.add(name)
    return named


def says_nothing_wrong(text: str) -> bool:
    """Whether a clause says that all is well ("the lung is clear") or that a finding is absent."""
    for words in _clauses(text):
        denied = bool(words & _DENIALS)
        if (words & _WELL and not denied) or (words & _SOMETHING_WRONG and denied):
            return True
    return False


def _contradicts_itself(text: str) -> bool:
    """Whether a clause says that something is wrong without naming it ("not normal", "abnormal")."""
    return any(
        (words & _WELL and words & _DENIALS) or (words & _ILL and not words & _DENIALS) for words in _clauses(text)
    )


def _meets(answer: str, expect: dict, diseases: dict[str, str]) -> bool:
    words = _words(answer)
    if "yes" in expect:
        return _reads_yes(words, answer) is expect["yes"]
    if "any_of" in expect:
        return any(_is_phrase(words, _words(phrase)) for phrase in expect["any_of"])
    wanted, named = set(expect["all_of"]), diseases_named(answer, diseases)
    if wanted:
        return named == wanted
    nothing = words in (["none"], ["nothing"], ["no"]) or says_nothing_wrong(answer)
    return nothing and not named and not _contradicts_itself(answer)


def _reads_yes(words: list[str], answer: str) -> bool | None:
    """True for yes, False for no, None for anything else ("yes and no", "no nodule")."""
    while words and words[0] in _FILLERS:
        words = words[1:]
    if not words or words[0] not in ("yes", "no"):
        return None
    other = {"yes": "no", "no": "yes"}[words[0]]
    if words[1:2] == [other] or (words[1:2] in (["and"], ["or"]) and words[2:3] == [other]):
        return None
    marked = re.search(rf"\b{words[0]}\b\s*(?:[^\w\s]|$)", answer, re.IGNORECASE)
    if len(words) > 1 and not marked and words[1] not in _AFTER_NO:
        return None
    return words[0] == "yes"


def _is_phrase(words: list[str], phrase: list[str]) -> bool:
    """Whether the words are the phrase, with nothing but filler words around it."""
    size = len(phrase)
    return bool(phrase) and any(
        words[start : start + size] == phrase and _FILLERS.issuperset(words[:start] + words[start + size :])
        for start in range(len(words) - size + 1)
    )


def _clauses(text: str) -> list[set[str]]:
    parts = re.split(r"[.,;:!?\n]|\b(?:but|so|because|while|which|however)\b", text.lower())
    return [set(words) for part in parts if (words := _words(part))]


def _words(text: str) -> list[str]:
    """Lower-case words; an option's letter ("(A)", "A." or "a:") becomes `option_a`, unlike an article."""
    text = re.sub(r"(?<!\S)\(?([a-z])[).:]+(?!\S)", r"option_\1", text.lower())
    return _WORD.findall(text.replace("n't", " not"))


def _folded(question: str) -> str:
    return " ".join(question.split())
