"""Whether an answer is a reference exactly: the same word, option or number after normalisation."""

import re
from collections.abc import Sequence

from rarl.answers.spelling import (
    NUMBER,
    compact,
    each_item,
    list_items,
    normalise,
    number_in,
    open_hyphens,
    spell_numbers,
    unify,
    value_of,
)
from rarl.records import Kind

#: "The answer is" (the last one), and how a short sentence begins.
_LEAD_IN = re.compile(
    r"(?:(?:.*\banswer|(?:the\s+)?(?:\w+\s+)?(?:option|choice))(?:\s+to\s+(?:the|this)\s+question)?"
    r"[*_]*\s*(?:is\b\s*:?|:)|(?:it|this|there)\s+(?:is|are)\b|it's\b)\s*",
    re.DOTALL,
)
#: What something is compared with: it is not what a sentence is about.
_COMPARED = re.compile(
    r"\b(?:than|(?:as )?compared (?:to|with)|relative to|in contrast to|as opposed to|followed by)\b[^,;.]*",
    re.IGNORECASE,
)
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

_NOUGHT = re.compile(r"(?:none|there (?:is|are) no(?:ne)?|no (?:\w+ )?\w+s)\b")


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
    if number_in(answer) is not None:
        return "number"
    return "open"


def equals(answer: str, references: Sequence[str], kind: Kind, choices: Sequence[str] = ()) -> bool:
    """Return whether an answer is one of the accepted references. An empty answer never is.

    The text after "The answer is", wherever it is, has precedence. Then:

    * a reference "yes" or "no": the leading word. "No" counts on its own or before a statement ("No it is not"), not
      before a noun: "No disease" is a yes to "Is it healthy?". "Yes and no", or an answer that contradicts itself, is
      neither.
    * with `choices`: the options that the answer names, by letter ("(B)", "b)", "B is right"), by text or by both, are
      those of the reference. "(B) Heart" names two if (B) is the brain.
    * `number`: the only number in the answer, by value (3, three, 3.0, "There are 3 nodules").
    * else: equal after `normalise`, ignoring blanks and hyphens ("X-Ray", "xray"); comma lists are sets ("Edema,
      Tumor" is "tumor and edema").

    An option or a number in a sentence with "not", "or" and similar words is not chosen, nor is what something is
    compared with.

    >>> equals("Yes, there is.", ["yes"], "yes_no"), equals("Yes and no", ["yes"], "yes_no")
    (True, False)
    >>> equals("B) Brain", ["(B)"], "choice", ["Heart", "Brain"])
    True
    """
    if not normalise(answer):
        return False
    return any(_equal(answer, reference, kind, choices) for reference in references)


def has_yes_or_no(answer: str) -> bool:
    """Return whether an answer begins with the word "yes" or "no", perhaps after "the answer is"."""
    return any(_YES_NO.match(part) for part in _parts(answer))


def has_comparison(text: str) -> bool:
    """Return whether a text compares something with something else."""
    return bool(_COMPARED.search(text))


def without_comparison(text: str) -> str:
    """Remove what something is compared with from a text.

    >>> without_comparison("the liver is larger than the spleen, and darker")
    'the liver is larger , and darker'
    """
    return _COMPARED.sub("", text)


def _equal(answer: str, reference: str, kind: Kind, choices: Sequence[str]) -> bool:
    plain = normalise(reference)
    if not plain:
        return False
    if choices and (expected := _first(_chosen, reference, choices)) is not None:
        return _first(_chosen, answer, choices) == expected
    if plain in ("yes", "no"):
        return _first(_yes_or_no, answer) == plain
    if kind == "number" and (expected := number_in(reference)) is not None:
        return _first(_count, answer) == expected
    wanted = {compact(item) for item in list_items(reference)}
    return any(compact(normalise(part)) == compact(plain) or _same_items(part, wanted) for part in _parts(answer))


def _same_items(part: str, wanted: set[str]) -> bool:
    given = set()
    for item in map(compact, each_item(part)):
        if item not in wanted:
            return False
        given.add(item)
    return given == wanted != set()


def _parts(text: str) -> list[str]:
    r"""The line after "the answer is", all that follows it, and the whole; line breaks and punctuation are kept.

    >>> _parts("The answer is: (B)\nExplanation: not (A)")
    ['(b)', '(b)\nexplanation: not (a)', 'the answer is: (b)\nexplanation: not (a)']
    """
    whole = unify(text).strip().lstrip("\"'`*_# ")
    if not (lead_in := _LEAD_IN.match(whole)):
        return [whole]
    after = whole[lead_in.end() :]
    return [*dict.fromkeys([after.partition("\n")[0], after]), whole]


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
    options = [spell_numbers(normalise(choice)) for choice in choices]
    for whole in (spell_numbers(normalise(part)), _yes_or_no(part)):
        if whole in options:
            return frozenset([options.index(whole)])
    chosen = set()
    if not any(map(has_comparison, choices)):
        part = without_comparison(part)
    for sentence in _SENTENCE_END.split(part):
        named, rest = _named_by_text(spell_numbers(open_hyphens(sentence)), options)
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


def _count(part: str) -> float | None:
    """The only number in an answer to "how many"; "none" and "no nodules" are 0.

    >>> _count("there are three nodules"), _count("no nodules"), _count("2 or 3")
    (3.0, 0.0, None)
    """
    if (bare := number_in(part)) is not None:
        return bare
    values = set()
    for sentence in _SENTENCE_END.split(open_hyphens(part)):
        found = {value_of(number) for number in NUMBER.findall(sentence)}
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
