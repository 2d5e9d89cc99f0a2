"""Parse answers from completions, and compare them with the references.

The accuracy reward, the lexical and semantic judges and the development score all use these functions, so that
training and evaluation agree on what a right answer is. (The `truth` judge has its own parser on purpose: it checks
this one.)

Nothing here scores by similarity: an answer equals a reference after normalisation, or it does not.
"""

import re
import unicodedata
from collections.abc import Sequence

from rarl.records import Kind

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(r"<think>((?:(?!</?think>).)*)</think>", re.DOTALL | re.IGNORECASE)
_OPEN_THINK = re.compile(r"<think>.*", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)

#: "The answer is" (the last one), and how a short sentence begins.
_LEAD_IN = re.compile(
    r"(?:(?:.*\banswer|(?:the\s+)?(?:\w+\s+)?(?:option|choice))(?:\s+to\s+(?:the|this)\s+question)?"
    r"[*_]*\s*(?:is\b\s*:?|:)|(?:it|this|there)\s+(?:is|are)\b|it's\b)\s*",
    re.DOTALL,
)
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
#: "Yes it is", but not "yes no"; "no" by itself or before a statement, but not "no gear".
_YES_NO = re.compile(
    r"[\W_]*(?:(yes)(?!-?[^\W_])(?!\s+no\b)|(no)(?=\W*$|_|\s*[^\w\s-]|\s*-\s|\s+-"
    r"|\s+(?:it|this|that|there|the|these|they|i|because)\b))"
)
_YES_NO_ALONE = re.compile(r"(?<![^\W_])(yes|no)(?=\s*(?:$|[^\w\s-]|_|-\s))")

#: An option's letter. "a" before a word, or before an option's text ("|"), is an article; "it's" and "i.e." have none.
_LETTER = re.compile(
    r"(?<![\w'.-])(?!(?<!option )(?<!choice )(?<!answer )a\s+(?:(?!(?:and|or|is|because|since)\b)\w|[\"'*_]*\|))"
    r"([a-z])(?![\w'-]|\.\w)"
)
_SENTENCE_END = re.compile(r"(?<!\b[a-z])[.!?;]\s+|\n")
#: Words with which a sentence names an option or a number without choosing it.
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
#: A number on its own: not "T2", "2-3", "3/4", "3rd", "5%".
_NUMBER = re.compile(
    rf"(?<![^\s(\[\"'*_:=])(?:{_NUMERAL.pattern}|{'|'.join(sorted(_NUMBER_WORDS, key=len, reverse=True))})"
    r"(?=[.,;:!?)\]\"'*_]*(?:\s|$))"
)
_NOUGHT = re.compile(r"(?:none|there (?:is|are) no(?:ne)?|no (?:\w+ )?\w+s)\b")


def read_completion(text: str) -> tuple[str | None, str]:
    """Split a completion into its think text (None without a closed pair of tags) and its answer.

    The answer is the text of the last complete `<answer>` pair. Without one it is the text outside `<think>`, with
    stray tags removed: the direct prompt asks for no tags. An unclosed `<think>` extends to the end.

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
    """Normalise spelling.

    Unicode compatibility forms, typographic quotes and dashes, case, white space, punctuation and brackets around the
    whole, a leading article, and the hyphen inside words ("X-Ray", "x ray"). Words are never cut: "normal" does not
    become "no", and "None" stays an answer.

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
    """How an answer is compared, given the reference answer, its question and its options.

    `choice` also covers a question that names its alternatives ("heart or lung?") if the answer is one of them, or
    "both" or "neither": the paper rewards such questions by an exact match.

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

    The text after "The answer is", wherever it is, has precedence. Then:

    * a reference "yes" or "no": the leading word. "No" counts on its own or before a statement ("No it is not"), not
      before a noun: "No disease" is a yes to "Is it healthy?". "Yes and no", or an answer that contradicts itself, is
      neither.
    * with `choices`: the options that the answer names, by letter ("(B)", "b)", "B is right"), by text or by both, are
      those of the reference. "(B) Heart" names two if (B) is the brain.
    * `number`: the only number in the answer, by value (3, three, 3.0, "There are 3 nodules").
    * else: equal after `normalise`, ignoring blanks and hyphens ("X-Ray", "xray"); comma lists are sets ("Edema,
      Tumor" is "tumor and edema"). Longer sentences are left to the judges.

    An option or a number in a sentence with "not", "or", "than" and similar words is not chosen.

    >>> matches("Yes, there is.", ["yes"], "yes_no"), matches("Yes and no", ["yes"], "yes_no")
    (True, False)
    >>> matches("B) Brain", ["(B)"], "choice", ["Heart", "Brain"])
    True
    """
    if not normalise(answer):
        return False
    return any(_equal(answer, reference, kind, choices) for reference in references)


def list_items(text: str) -> list[str]:
    """The items of a comma or "and" list, each normalised, in order; one item if it is not a list.

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
    """Remove the blanks between words, so that "x ray" is "xray" and "5 cm" is "5cm"."""
    return _BLANK.sub("", plain)


def _parts(text: str) -> list[str]:
    """The text after "the answer is", if there is such a text, and the whole; line breaks and punctuation are kept.

    >>> _parts("The answer is: (B)")
    ['(b)', 'the answer is: (b)']
    """
    whole = _unify(text).strip().lstrip("\"'`*_# ")
    lead_in = _LEAD_IN.match(whole)
    return [whole[lead_in.end() :], whole] if lead_in else [whole]


def _first(read, text: str, *arguments):
    """The first result of `read` over the text's parts that is not None."""
    found = (read(part, *arguments) for part in _parts(text))
    return next((value for value in found if value is not None), None)


def _yes_or_no(part: str) -> str | None:
    """The leading "yes" or "no"; None without one, or if the other follows.

    >>> _yes_or_no("no, it is not"), _yes_or_no("no disease"), _yes_or_no("yes. no.")
    ('no', None, None)
    """
    first = _YES_NO.match(part)
    if first is None:
        return None
    word = first.group(1) or first.group(2)
    later = {alone.group(1) for alone in _YES_NO_ALONE.finditer(part, first.end())}
    return word if later <= {word} else None


def _chosen(part: str, choices: Sequence[str]) -> frozenset[int] | None:
    """The indices of the options that an answer chooses; None if it chooses none, or hedges.

    >>> _chosen("b) brain.", ["heart", "brain"]), _chosen("not the heart", ["heart", "brain"])
    (frozenset({1}), None)
    """
    options = [_spelt(normalise(choice)) for choice in choices]
    for whole in (_spelt(normalise(part)), _yes_or_no(part)):
        if whole in options:
            return frozenset([options.index(whole)])
    chosen = set()
    for sentence in _SENTENCE_END.split(part):
        named, rest = _named_by_text(_spelt(_hyphens(sentence)), options)
        named |= _named_by_letter(rest, len(options))
        if named and _HEDGE.search(rest):
            return None
        chosen |= named
    if not chosen and "0.0" in options and _NOUGHT.match(part):
        chosen = {options.index("0.0")}
    return frozenset(chosen) or None


def _named_by_text(sentence: str, options: Sequence[str]) -> tuple[set[int], str]:
    """The indices of the options whose text is in a sentence, and the sentence with "|" instead of each text.

    >>> _named_by_text("left lung, or a mass", ["lung", "left lung"])
    ({1}, '|, or a mass')
    >>> _named_by_text("no disease", ["yes", "no"])
    (set(), 'no disease')
    """
    named = set()
    # Longest first, so that "left lung" does not name "lung" too.
    for option in sorted(filter(None, options), key=len, reverse=True):
        # "No disease" does not choose "no".
        end = r"\s*(?:$|[^\w\s-])" if option in ("yes", "no") else r"$|[^\w%.-]|\.(?!\d)"
        sentence, count = re.subn(rf"(?<![\w.-]){re.escape(option)}(?={end})", "|", sentence)
        if count:
            named.add(options.index(option))
    return named, sentence


def _named_by_letter(rest: str, count: int) -> set[int]:
    """The indices of the options (`count` of them) that a sentence names by letter, or both of two by "both".

    >>> _named_by_letter("(b) is right", 2), _named_by_letter("it is a |", 2), _named_by_letter("both", 2)
    ({1}, set(), {0, 1})
    """
    if count == 2 and re.search(r"\bboth\b", rest):
        return {0, 1}
    return {index for letter in _LETTER.findall(rest) if (index := ord(letter) - ord("a")) < count}


def _spelt(text: str) -> str:
    """Write every number in one spelling.

    >>> _spelt("two of 3, not t2")
    '2.0 of 3.0, not t2'
    """
    return _NUMBER.sub(lambda number: repr(_value(number.group())), text)


def _value(number: str) -> float:
    return _NUMBER_WORDS[number] if number in _NUMBER_WORDS else float(number.replace(",", ""))


def _number(text: str) -> float | None:
    """The value of a bare number in digits or words; None for anything else ("T2", "5 cm", "3-4")."""
    plain = normalise(text)
    return _value(plain) if plain in _NUMBER_WORDS or _NUMERAL.fullmatch(plain) else None


def _count(part: str) -> float | None:
    """The only number in an answer to "how many"; "none" and "no nodules" are 0.

    >>> _count("there are three nodules"), _count("no nodules"), _count("2 or 3")
    (3.0, 0.0, None)
    """
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
    """Whether a question names alternatives, and the answer is one of them, or "both" or "neither"."""
    words, answer = (re.findall(r"\w+", text) for text in (normalise(question), plain_answer))
    if "or" not in words:
        return False
    return answer in (["both"], ["neither"]) or (bool(answer) and f" {' '.join(answer)} " in f" {' '.join(words)} ")
