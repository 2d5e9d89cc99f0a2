"""Answers: reading them out of a completion, and comparing them with the references.

The one place for it: the accuracy reward, the lexical and semantic judges and the development score
all go through these functions, so that training and evaluation agree on what a right answer is.
(The `truth` judge has a reader of its own on purpose: it is there to check this one.)

Nothing here scores by likeness. An answer equals a reference after normalisation, or it does not.
"""

import re
import unicodedata
from collections.abc import Sequence

from stages.records import Kind

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(r"<think>((?:(?!</?think>).)*)</think>", re.DOTALL | re.IGNORECASE)
_OPEN_THINK = re.compile(r"<think>.*", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)

_LEAD_IN = re.compile(
    r"^(?:the\s+)?(?:(?:final|correct|best|right)\s+)?(?:answer|option|choice)\s*(?:is\b\s*:?|:)\s*"
)
_ARTICLE = re.compile(r"^(?:the|an|a)\s+(?=\S)")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=\w)|(?<=\d)-(?=[^\W\d_])")
_END_MARKS = " .,;:!?\"'`*_#-"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_TYPOGRAPHIC = str.maketrans("‘’‚“”„‐‑‒–—−", "'''\"\"\"------")

_LIST_MARK = re.compile(r"\s*(?:[,;&\n]|\band\b)\s*")
_YES_NO = re.compile(r"(yes|no)(?=$|\s*[.,;:!?()\"'*\n]|\s+-|-\s)")
_OTHER_YES_NO = re.compile(r"\W*(?:(?:and|or|but)\b\W*)?(yes|no)(?=$|\s*[.,;:!?()\"'*\n])")
_LETTER = re.compile(r"(?:(?:option|choice|answer)\s+)?[(\[]?([a-z])[)\].:]*", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(
    r"(?:(?:option|choice|answer)\s+)?[(\[]?([a-z])(?:[)\].,:]+\s*|\s+-?\s*)(\S.*)",
    re.IGNORECASE | re.DOTALL,
)

_UP_TO_TWENTY = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|"
    "fifteen|sixteen|seventeen|eighteen|nineteen|twenty"
)
_NUMBER_WORDS = {word: float(value) for value, word in enumerate(_UP_TO_TWENTY.split("|"))}
_NUMERAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+")
_COUNTED = re.compile(r"(?:there\s+(?:is|are)\s+)?(\S+)(?:\s+[^\W\d_]+)?")


def read_completion(text: str) -> tuple[str | None, str]:
    """Split a completion into its think text (None where there is no closed pair) and its answer.

    The answer is the text of the last complete `<answer>` pair. Without one it is the text outside
    `<think>`, with stray tags removed: the direct prompt asks for no tags. An unclosed `<think>`
    swallows what follows it.

    >>> read_completion("<think>An opacity.</think> <answer>Pneumonia</answer>")
    ('An opacity.', 'Pneumonia')
    >>> read_completion("Yes.")
    (None, 'Yes.')
    >>> read_completion("<think>I wonder")
    (None, '')
    """
    thought = _THINK.search(text)
    think = thought.group(1).strip() if thought else None
    pairs = _ANSWER.findall(text)
    if pairs:
        return think, pairs[-1].strip()
    outside = _OPEN_THINK.sub(" ", _THINK.sub(" ", text))
    return think, _TAG.sub(" ", outside).strip()


def normalise(text: str) -> str:
    """One spelling for what a reader would call the same words.

    Unicode compatibility forms, typographic quotes and dashes, case, white space, marks and
    brackets around the whole, a leading article, and the hyphen inside words ("X-Ray", "x ray").
    Words are never cut: "normal" does not become "no", and "None" stays an answer.

    >>> normalise(" The  X‑Ray. ")
    'x ray'
    """
    text = unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHIC).casefold()
    text = " ".join(text.split())
    before = None
    while before != text:
        before = text
        text = text.strip(_END_MARKS)
        if len(text) > 1 and _BRACKETS.get(text[0]) == text[-1] and text[0] not in text[1:]:
            text = text[1:-1]
    return " ".join(_ARTICLE.sub("", _HYPHEN.sub(" ", text)).split())


def kind_of(answer: str, question: str = "", choices: Sequence[str] = ()) -> Kind:
    """How an answer is to be compared, from the reference answer, its question and its options.

    `choice` also covers a question that names its alternatives ("heart or lung?") where the answer
    is one of them, or "both" or "neither": the paper rewards such questions by an exact match.

    >>> kind_of("YES "), kind_of("(B)", choices=["2", "0"]), kind_of("3"), kind_of("None")
    ('yes_no', 'choice', 'number', 'open')
    >>> kind_of("Lung", "Which organ is abnormal, heart or lung?")
    'choice'
    """
    plain = normalise(answer)
    if plain in ("yes", "no"):
        return "yes_no"
    if choices:
        return "choice"
    if plain and _offers(question, plain):
        return "choice"
    if _number(answer) is not None:
        return "number"
    return "open"


def matches(
    answer: str, references: Sequence[str], kind: Kind, choices: Sequence[str] = ()
) -> bool:
    """Whether an answer is one of the accepted references. An empty answer never is.

    * any kind: equal after `normalise`; comma lists are sets ("Edema, Tumor" is "tumor and edema").
    * `yes_no`: the leading word, where a mark, the end of the line or of the text follows it and
      the other word does not come next: "Yes, there is." but neither "yes and no" nor "normal".
    * `choice`: by letter ("(B)", "b)", "The answer is B") or by an option's text or by both, if
      both say the same.
    * `number`: by value (3, three, 3.0), alone or before one counted word ("3 nodules").

    >>> matches("Yes, there is.", ["yes"], "yes_no"), matches("Yes and no", ["yes"], "yes_no")
    (True, False)
    >>> matches("B) Brain", ["(B)"], "choice", ["Heart", "Brain"])
    True
    """
    if not normalise(answer):
        return False
    return any(_equal(answer, reference, kind, choices) for reference in references)


def list_items(text: str) -> list[str]:
    """The items of a comma or "and" list, each normalised, in order; one item where it is no list.

    >>> list_items("Brain Edema, Brain Tumor and the Nodule.")
    ['brain edema', 'brain tumor', 'nodule']
    """
    parts = _LIST_MARK.split(unicodedata.normalize("NFKC", text).casefold())
    return [item for part in parts if (item := normalise(part))]


def _equal(answer: str, reference: str, kind: Kind, choices: Sequence[str]) -> bool:
    if not normalise(reference):
        return False
    if kind == "yes_no" and (expected := _yes_or_no(reference)):
        return _yes_or_no(answer) == expected
    if kind == "choice" and choices and (expected := _chosen(reference, choices)) is not None:
        return _chosen(answer, choices) == expected
    if kind == "number" and (expected := _number(reference)) is not None:
        return _count(answer) == expected
    given = _LEAD_IN.sub("", _fold(answer))
    return normalise(given) == normalise(reference) or set(list_items(given)) == set(
        list_items(reference)
    )


def _fold(text: str) -> str:
    """Case, compatibility forms and outer blanks and emphasis; line breaks and marks stay."""
    folded = unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHIC).casefold()
    return folded.strip().lstrip("\"'`*_# ")


def _yes_or_no(text: str) -> str | None:
    folded = _LEAD_IN.sub("", _fold(text)).lstrip("\"'`*([ ")
    first = _YES_NO.match(folded)
    if first is None:
        return None
    second = _OTHER_YES_NO.match(folded, first.end())
    if second is not None and second.group(1) != first.group(1):
        return None
    return first.group(1)


def _chosen(text: str, choices: Sequence[str]) -> int | None:
    """The index of the option that the text names, or None where it names none or contradicts itself."""
    options = [normalise(choice) for choice in choices]
    given = _LEAD_IN.sub("", _fold(text)).strip().strip("\"'`*_ ")
    named = _option(given, options)
    if named is not None:
        return named
    if letter := _LETTER.fullmatch(given):
        return _index(letter.group(1), options)
    if both := _LETTER_AND_TEXT.fullmatch(given):
        named = _option(both.group(2), options)
        return named if named is not None and named == _index(both.group(1), options) else None
    return None


def _option(text: str, options: list[str]) -> int | None:
    plain = normalise(text)
    if plain in options:
        return options.index(plain)
    values = [_number(option) for option in options]
    value = _number(text)
    return values.index(value) if value is not None and value in values else None


def _index(letter: str, options: list[str]) -> int | None:
    index = ord(letter.lower()) - ord("a")
    return index if index < len(options) else None


def _number(text: str) -> float | None:
    """The value of a bare number in digits or words; None for anything else ("T2", "5 cm", "3-4")."""
    plain = _fold(text).strip().rstrip(".,;:!?\"'`*_ ").strip("()[]")
    if plain in _NUMBER_WORDS:
        return _NUMBER_WORDS[plain]
    return float(plain.replace(",", "")) if _NUMERAL.fullmatch(plain) else None


def _count(text: str) -> float | None:
    """A number as an answer to "how many": alone, or before one counted word; "none" is 0."""
    given = _LEAD_IN.sub("", _fold(text)).rstrip(".,;:!?\"'`*_ ")
    if normalise(given) == "none":
        return 0.0
    counted = _COUNTED.fullmatch(given)
    return _number(counted.group(1)) if counted else None


def _offers(question: str, plain_answer: str) -> bool:
    words = re.findall(r"\w+", normalise(question))
    if "or" not in words:
        return False
    sentence = f" {' '.join(words)} "
    answer = " ".join(re.findall(r"\w+", plain_answer))
    return answer in ("both", "neither") or (bool(answer) and f" {answer} " in sentence)
