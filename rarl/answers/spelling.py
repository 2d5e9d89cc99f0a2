"""One spelling for each text, number and list of items."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

#: Punctuation and articles before an answer; a sign or a point before a digit is part of the number.
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
    | dict.fromkeys("\u00ad\u200b\u2060\ufeff")  # invisible
)

_LIST_MARK = re.compile(r"[,;&\n]|\band\b")
_ITEM_NUMBER = re.compile(r"\A\s*\d+[.)]\s")
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
#: A number on its own: not "T2", "2-3", "3/4", "3rd", "5%".
NUMBER = re.compile(
    rf"(?<![^\s(\[\"'*_:=])(?:{_NUMERAL.pattern}|{'|'.join(sorted(_NUMBER_WORDS, key=len, reverse=True))})"
    r"(?=[.,;:!?)\]\"'*_]*(?:\s|$))"
)


@lru_cache(maxsize=1 << 14)
def normalise(text: str) -> str:
    """Normalise spelling.

    Unicode compatibility forms, typographic quotes and dashes, case, white space, punctuation and brackets around the
    whole, a leading article, and the hyphen inside words ("X-Ray", "x ray"). Words are never cut: "normal" does not
    become "no", and "None" stays an answer.

    >>> normalise(" The  X‑Ray. ")
    'x ray'
    """
    text = open_hyphens(" ".join(unify(text).split()))
    before = None
    while before != text:
        before = text
        text = text.rstrip(_END_MARKS)
        if leading := _LEADING.match(text):
            text = text[leading.end() :]
        if len(text) > 1 and _BRACKETS.get(text[0]) == text[-1] and text[0] not in text[1:]:
            text = text[1:-1].strip()
    return text


def list_items(text: str) -> list[str]:
    """The items of a comma or "and" list, each normalised, in order; one item if it is not a list.

    >>> list_items("Brain Edema, Brain Tumor and the Nodule.")
    ['brain edema', 'brain tumor', 'nodule']
    """
    return list(each_item(text))


def each_item(text: str) -> Iterator[str]:
    """Yield what `list_items` returns."""
    for part in _LIST_MARK.split(unify(text)):
        if item := normalise(_ITEM_NUMBER.sub("", part, count=1)):
            yield item


def unify(text: str) -> str:
    """Return a text in one case, with compatibility forms and typographic marks replaced."""
    return unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHIC).casefold()


def open_hyphens(text: str) -> str:
    """Replace the hyphen inside words by a blank, and close the blanks around one between numbers."""
    return _HYPHEN_IN_WORD.sub(" ", _HYPHEN_IN_RANGE.sub("-", text))


def compact(plain: str) -> str:
    """Remove the blanks between words, so that "x ray" is "xray" and "5 cm" is "5cm"."""
    return _BLANK.sub("", plain)


def spell_numbers(text: str) -> str:
    """Write every number in one spelling.

    >>> spell_numbers("two of 3, not t2")
    '2.0 of 3.0, not t2'
    """
    return NUMBER.sub(lambda number: repr(value_of(number.group())), text)


def value_of(number: str) -> float:
    """Return the value of a number in digits or words, as `NUMBER` finds it."""
    return _NUMBER_WORDS[number] if number in _NUMBER_WORDS else float(number.replace(",", ""))


def number_in(text: str) -> float | None:
    """The value of a bare number in digits or words; None for anything else ("T2", "5 cm", "3-4")."""
    plain = normalise(text)
    return value_of(plain) if plain in _NUMBER_WORDS or _NUMERAL.fullmatch(plain) else None
