"""Answers: reading them out of a completion, and comparing them with the references.

The one place for it: the accuracy reward, the lexical and semantic judges and the development score
all go through these functions, so that training and evaluation agree on what a right answer is.
(The `truth` judge has a reader of its own on purpose: it is there to check this one.)

Nothing here scores by likeness. An answer equals a reference after normalisation, or it does not.
"""

import re
import unicodedata
from collections.abc import Sequence

from rarl.records import Kind

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(r"<think>((?:(?!</?think>).)*)</think>", re.DOTALL | re.IGNORECASE)
_OPEN_THINK = re.compile(r"<think>.*", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)

#: "The answer is", the last time it is said, and what a short sentence begins with.
_LEAD_IN = re.compile(
    r"(?:(?:.*\banswer|(?:the\s+)?(?:\w+\s+)?(?:option|choice))(?:\s+to\s+(?:the|this)\s+question)?"
    r"[*_]*\s*(?:is\b\s*:?|:)|(?:it|this|there)\s+(?:is|are)\b|it's\b)\s*",
    re.DOTALL,
)
#: Marks and articles before an answer; a sign or a point before a digit belongs to it.
_LEADING = re.compile(r"(?:[\s,;:!?\"'`*_#]|[-.](?!\.?\d)|(?:the|an|a)\s+(?=\S))+")
_END_MARKS = " .,;:!?\"'`*_#-"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_HYPHEN_IN_WORD = re.compile(r"(?<=[^\W\d_]) ?- ?(?=\w)|(?<=\w) ?- ?(?=[^\W\d_])")
_HYPHEN_IN_RANGE = re.compile(r"(?<=\d) ?- ?(?=\d)")
_BLANK = re.compile(r" (?!\d)|(?<!\d) ")
_TYPOGRAPHIC = str.maketrans(
    dict.fromkeys("‘’‚", "'")
    | dict.fromkeys("“”„", '"')
    | dict.fromkeys("‐‑‒–−", "-")
    | {"—": " - ", "。": ".", "、": ",", "•": "*"}
    | dict.fromkeys("\u00ad\u200b\u2060\ufeff")  # not to be seen
)

_LIST_MARK = re.compile(r"[,;&\n]|\band\b")
_ITEM_NUMBER = re.compile(r"\A\s*\d+[.)]\s")
#: "Yes it is", but not "yes no"; "no" by itself or before a statement, but not "no gear".
_YES_NO = re.compile(
    r"[\W_]*(?:(yes)(?!-?[^\W_])(?!\s+no\b)|(no)(?=\W*$|_|\s*[^\w\s-]|\s*-\s|\s+-"
    r"|\s+(?:it|this|that|there|the|these|they|i|because)\b))"
)
_YES_NO_ALONE = re.compile(r"(?<![^\W_])(yes|no)(?=\s*(?:$|[^\w\s-]|_|-\s))")

#: An option's letter: "a" before a word, or before an option's text (read as "|"), is an article, "it's" and "i.e."
#: hold no letters.
_LETTER = re.compile(
    r"(?<![\w'.-])(?!(?<!option )(?<!choice )(?<!answer )a\s+(?:(?!(?:and|or|is|because|since)\b)\w|[\"'*_]*\|))"
    r"([a-z])(?![\w'-]|\.\w)"
)
_SENTENCE_END = re.compile(r"(?<!\b[a-z])[.!?;]\s+|\n")
#: What names an option or a number without choosing it.
_HEDGE = re.compile(
    r"\b(?:not|cannot|no|nor|neither|or|either|than|except|without|rather|instead|unlike|between|"
    r"at (?:least|most)|up to)\b|n't\b|[<>≤≥]"
)

_ONES = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    "sixteen|seventeen|eighteen|nineteen"
)
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_NUMBER_WORDS = {word: float(value) for value, word in enumerate(_ONES.split("|"))} | {
    f"{ten} {one}".strip(): 10.0 * tens + ones
    for tens, ten in enumerate(_TENS.split("|"), 2)
    for ones, one in enumerate(["", *_ONES.split("|")[1:10]])
}
_NUMERAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+")
#: A number that stands by itself: not "T2", "2-3", "3/4", "3rd", "5%".
_NUMBER = re.compile(
    rf"(?<![^\s(\[\"'*_:=])(?:{_NUMERAL.pattern}|{'|'.join(sorted(_NUMBER_WORDS, key=len, reverse=True))})"
    r"(?=[.,;:!?)\]\"'*_]*(?:\s|$))"
)
_NOUGHT = re.compile(r"(?:none|there (?:is|are) no(?:ne)?|no (?:\w+ )?\w+s)\b")


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
    text = _hyphens(" ".join(_unify(text).split()))
    before = None
    while before != text:
        before = text
        text = text.rstrip(_END_MARKS)
        if leading := _LEADING.match(text):
            text = text[leading.end() :]
        if len(text) > 1 and _BRACKETS.get(text[0]) == text[-1] and text[0] not in text[1:]:
            text = text[1:-1].strip()
    return text


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


def matches(answer: str, references: Sequence[str], kind: Kind, choices: Sequence[str] = ()) -> bool:
    """Whether an answer is one of the accepted references. An empty answer never is.

    "The answer is ..." is heeded first, wherever it stands. Then:

    * a reference "yes" or "no": the leading word. "No" counts by itself or before a statement ("No
      it is not"), not before a noun: "No disease" is a yes to "Is it healthy?". A "yes and no", or
      an answer that takes itself back, is neither.
    * with `choices`: the options that are named, by letter ("(B)", "b)", "B is right"), by text or by
      both, are those of the reference. "(B) Heart" names two where (B) is the brain.
    * `number`: the one number that stands in it, by value (3, three, 3.0, "There are 3 nodules").
    * else: equal after `normalise`, blanks and hyphens apart ("X-Ray", "xray"); comma lists are sets
      ("Edema, Tumor" is "tumor and edema"). A longer sentence is for the judges.

    An option or a number in a sentence with "not", "or", "than" and the like is not chosen.

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
    parts = (_ITEM_NUMBER.sub("", part, count=1) for part in _LIST_MARK.split(_unify(text)))
    return [item for part in parts if (item := normalise(part))]


def _equal(answer: str, reference: str, kind: Kind, choices: Sequence[str]) -> bool:
    plain = normalise(reference)
    if not plain:
        return False
    if choices and (expected := _first(_chosen, reference, choices)) is not None:
        return _first(_chosen, answer, choices) == expected
    if plain in ("yes", "no"):
        return _first(_yes_or_no, answer) == plain
    if kind == "number" and (expected := _number(reference)) is not None:
        return _first(_count, answer) == expected
    wanted = {_compact(item) for item in list_items(reference)}
    return any(
        _compact(normalise(part)) == _compact(plain)
        or {_compact(item) for item in list_items(part)} == wanted != set()
        for part in _parts(answer)
    )


def _unify(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHIC).casefold()


def _hyphens(text: str) -> str:
    return _HYPHEN_IN_WORD.sub(" ", _HYPHEN_IN_RANGE.sub("-", text))


def _compact(plain: str) -> str:
    """Without the blanks between words, so that "x ray" is "xray" and "5 cm" is "5cm"."""
    return _BLANK.sub("", plain)


def _parts(text: str) -> list[str]:
    """What follows "the answer is", if that is said, and the whole; line breaks and marks stay."""
    whole = _unify(text).strip().lstrip("\"'`*_# ")
    lead_in = _LEAD_IN.match(whole)
    return [whole[lead_in.end() :], whole] if lead_in else [whole]


def _first(read, text: str, *arguments):
    """What `read` finds in the first of the text's parts in which it finds something, else None."""
    found = (read(part, *arguments) for part in _parts(text))
    return next((value for value in found if value is not None), None)


def _yes_or_no(part: str) -> str | None:
    first = _YES_NO.match(part)
    if first is None:
        return None
    word = first.group(1) or first.group(2)
    later = {alone.group(1) for alone in _YES_NO_ALONE.finditer(part, first.end())}
    return word if later <= {word} else None


def _chosen(part: str, choices: Sequence[str]) -> frozenset[int] | None:
    """The indices of the options that the text names; None where it names none, or denies one."""
    options = [_spelt(normalise(choice)) for choice in choices]
    plain = _spelt(normalise(part))
    if plain in options:
        return frozenset([options.index(plain)])
    if (word := _yes_or_no(part)) in options:
        return frozenset([options.index(word)])
    chosen = set()
    for sentence in _SENTENCE_END.split(part):
        named, rest = set(), _spelt(_hyphens(sentence))
        # Longest first, so that "left lung" does not name "lung" too.
        for option in sorted(filter(None, options), key=len, reverse=True):
            # "No disease" does not choose "no".
            end = r"\s*(?:$|[^\w\s-])" if option in ("yes", "no") else r"$|[^\w%.-]|\.(?!\d)"
            rest, count = re.subn(rf"(?<![\w.-]){re.escape(option)}(?={end})", "|", rest)
            if count:
                named.add(options.index(option))
        letters = {ord(letter) - ord("a") for letter in _LETTER.findall(rest)}
        named |= {index for index in letters if index < len(options)}
        if len(options) == 2 and re.search(r"\bboth\b", rest):
            named |= {0, 1}
        if named and _HEDGE.search(rest):
            return None
        chosen |= named
    if not chosen and "0.0" in options and _NOUGHT.match(part):
        chosen = {options.index("0.0")}
    return frozenset(chosen) or None


def _spelt(text: str) -> str:
    """Every number in one spelling."""
    return _NUMBER.sub(lambda number: repr(_value(number.group())), text)


def _value(number: str) -> float:
    return _NUMBER_WORDS[number] if number in _NUMBER_WORDS else float(number.replace(",", ""))


def _number(text: str) -> float | None:
    """The value of a bare number in digits or words; None for anything else ("T2", "5 cm", "3-4")."""
    plain = normalise(text)
    return _value(plain) if plain in _NUMBER_WORDS or _NUMERAL.fullmatch(plain) else None


def _count(part: str) -> float | None:
    """The one number in an answer to "how many", in whatever words; "none" and "no nodules" are 0."""
    if (bare := _number(part)) is not None:
        return bare
    values = set()
    for sentence in _SENTENCE_END.split(_hyphens(part)):
        found = {_value(number) for number in _NUMBER.findall(sentence)}
        if found and _HEDGE.search(sentence):
            return None
        values |= found
    if not values:
        return 0.0 if _NOUGHT.match(part) else None
    return values.pop() if len(values) == 1 else None


def _offers(question: str, plain_answer: str) -> bool:
    words = re.findall(r"\w+", normalise(question))
    if "or" not in words:
        return False
    sentence = f" {' '.join(words)} "
    answer = " ".join(re.findall(r"\w+", plain_answer))
    return answer in ("both", "neither") or (bool(answer) and f" {answer} " in sentence)
