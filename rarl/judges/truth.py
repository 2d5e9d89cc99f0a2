"""The truth judge: rates phantoms against what was drawn, and knows nothing of the references.

A third rater that shares no code with the rewards or with `rarl/answers.py`: it reads a completion
and finds words in it by itself, so that a flaw in the shared answer handling shows as disagreement.

It reads `data/truth.jsonl`, one line for each picture and question:

    {"image_sha256": "...", "question": "...", "modality": "xray",
     "findings": [{"name": "Nodule", "organ": "lung", "side": "left", "level": "upper"}],
     "expect": {"yes": true}}

`expect` is `{"yes": bool}`, `{"any_of": [...]}` (the answer is one of these, but for filling words)
or `{"all_of": [...]}` (it names these diseases and no other; `[]`: it says that there is none). A
picture or question that is not there (real data) is unscored.

Reasoning, where the sample has one: it names every disease that was drawn and no other, or says that
nothing is wrong where nothing was drawn. A disease in a clause with a negation is not named.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rarl.errors import UserError
from rarl.judges.faults import machinery_fault, model_fault
from rarl.records import Prediction, Sample, Verdict

NO_TRUTH = "no drawing known for this image and question"

_DENIALS = {"no", "not", "without", "never", "neither", "nor", "none", "absent", "free", "cannot"}
_WELL = {"normal", "healthy", "clear", "unremarkable"}
_ILL = {"abnormal", "unhealthy", "diseased"}
#: With a denial: a statement that nothing is wrong.
_SOMETHING_WRONG = {
    "abnormality", "abnormalities", "abnormal", "disease", "diseases", "finding", "findings", "lesion",
    "lesions", "spot", "spots", "area", "areas", "bar", "opacity", "opacities",
}  # fmt: skip
_FILLING = {
    "a", "an", "the", "it", "is", "are", "there", "this", "that", "in", "on", "of", "at", "answer", "image",
    "picture", "scan", "shows", "shown", "seen", "side", "plane", "view", "abnormal", "option", "was", "s",
}  # fmt: skip
_AFTER_NO = {"it", "there", "this", "that", "the", "i", "they", "these"}


def judge(
    samples: Sequence[Sample], predictions: Sequence[Prediction], settings, *, truth_file: Path, **_
) -> list[Verdict]:
    """Rate each prediction whose picture and question were drawn.

    Args:
        samples, predictions: one for one, in the same order.
        settings: not read; this judge has no knobs.
        truth_file: the lines above.

    Raises:
        UserError: the truth file is missing, or a line of it is not such a line.
    """
    truths = read_truth(truth_file)
    diseases = {finding["name"]: finding["organ"] for truth in truths.values() for finding in truth["findings"]}
    for truth in truths.values():
        for name in truth["expect"].get("all_of", []):
            diseases.setdefault(name, name.split()[0].lower())
    verdicts = []
    for sample, prediction in zip(samples, predictions, strict=True):
        truth = truths.get((sample.image_sha256, _folded(sample.question)))
        if truth is None and prediction.error is None:
            verdict = Verdict(id=sample.id, evaluation=f"Not scored: {NO_TRUTH}.", unscored=NO_TRUTH)
        else:
            verdict = machinery_fault(prediction) or _verdict(sample, prediction, truth, diseases)
        verdicts.append(verdict)
    return verdicts


def read_truth(path: str | Path) -> dict[tuple[str, str], dict]:
    """(image hash, question with folded white space) -> truth line."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            str(path),
            "no such file",
            "what was drawn on the phantoms",
            "run `dvc repro truth`, or take `truth` out of `judges`",
        )
    truths = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                truth = json.loads(line)
                expect = truth["expect"]
                if (
                    not isinstance(truth["findings"], list)
                    or len(expect) != 1
                    or not expect.keys() <= {"yes", "any_of", "all_of"}
                ):
                    raise ValueError
                truths[truth["image_sha256"], _folded(truth["question"])] = truth
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{path}, line {number}",
                    line.strip()[:120],
                    'a line with image_sha256, question, findings and expect ("yes", "any_of" or "all_of")',
                    "make the file again with `dvc repro truth`",
                ) from None
    return truths


def _verdict(sample: Sample, prediction: Prediction, truth: dict, diseases: dict[str, str]) -> Verdict:
    think, answer = split_completion(prediction.completion)
    if fault := model_fault(prediction, answer):
        right, why = False, f"Wrong, because {fault}."
    else:
        right = _meets(answer, truth["expect"], diseases)
        kind, value = next(iter(truth["expect"].items()))
        wanted = {
            "yes": lambda: "yes" if value else "no",
            "any_of": lambda: f"'{value[0]}'",
            "all_of": lambda: ", ".join(value) or "no disease",
        }[kind]()
        why = f"{'Right' if right else 'Wrong'}: the drawing asks for {wanted}."
    reasoning_score = None
    if sample.reasoning:
        drawn = {finding["name"] for finding in truth["findings"]}
        named = diseases_named(think, diseases)
        unharmed = not named and says_nothing_wrong(think) and not _contradicts_itself(think)
        sound = named == drawn if drawn else unharmed
        reasoning_score = int(sound)
        why += (
            f" The reasoning names {', '.join(sorted(named)) or 'no disease'}; "
            f"drawn: {', '.join(sorted(drawn)) or 'nothing'}."
        )
    return Verdict(id=sample.id, evaluation=why, reasoning_score=reasoning_score, prediction_score=int(right))


def split_completion(completion: str) -> tuple[str, str]:
    """The think text (empty where it is not closed) and the final answer, read from the end."""
    think = ""
    opened = completion.find("<think>")
    closed = completion.find("</think>", opened + 1) if opened >= 0 else -1
    if closed >= 0:
        think = completion[opened + len("<think>") : closed]
    end = completion.rfind("</answer>")
    while end >= 0:
        start = completion.rfind("<answer>", 0, end)
        if start < 0:
            break
        if "</answer>" not in completion[start:end]:
            return think.strip(), completion[start + len("<answer>") : end].strip()
        end = completion.rfind("</answer>", 0, end)
    rest = completion
    while (start := rest.find("<think>")) >= 0:
        stop = rest.find("</think>", start)
        rest = rest[:start] + (" " + rest[stop + len("</think>") :] if stop >= 0 else "")
    for tag in ("</think>", "<answer>", "</answer>"):
        rest = rest.replace(tag, " ")
    return think.strip(), rest.strip()


def diseases_named(text: str, diseases: dict[str, str]) -> set[str]:
    """Which of the diseases (name -> organ) the text says are there.

    A disease is named by its own word ("tumor"), or, where two diseases share that word, by it and
    the organ in one clause ("cancer of the liver"). An enlarged heart is cardiomegaly.
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
    """Whether some clause says that all is well ("the lung is clear") or that something is not there."""
    for words in _clauses(text):
        denied = bool(words & _DENIALS)
        if (words & _WELL and not denied) or (words & _SOMETHING_WRONG and denied):
            return True
    return False


def _contradicts_itself(text: str) -> bool:
    """Some clause says that something is wrong without naming it ("not normal", "abnormal")."""
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
    while words and words[0] in _FILLING:
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
    """The words are the phrase, with nothing but filling words around it."""
    if not phrase:
        return False
    for start in range(len(words) - len(phrase) + 1):
        if words[start : start + len(phrase)] == phrase:
            around = words[:start] + words[start + len(phrase) :]
            if all(word in _FILLING for word in around):
                return True
    return False


def _clauses(text: str) -> list[set[str]]:
    parts = re.split(r"[.,;:!?\n]|\b(?:but|so|because|while|which|however)\b", text.lower())
    return [set(words) for part in parts if (words := _words(part))]


def _words(text: str) -> list[str]:
    """Lower-case words; an option's letter ("(A)", "A." or "a:") is no article: `option_a`."""
    text = re.sub(r"(?<!\S)\(?([a-z])[).:]+(?!\S)", r"option_\1", text.lower())
    return re.findall(r"[a-z0-9_]+", text.replace("n't", " not"))


def _folded(question: str) -> str:
    return " ".join(question.split())
