"""Read what a sentence states: its clauses, what it denies, and the yes or no that it answers to a question.

These functions read the surface of English. Where a sentence hedges or leaves the question open, nothing is decided.
The scope of a negation is its clause: it denies what comes after it, and what comes before it if nothing but function
words come after it ("a mass is not seen").
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from rarl.answers.exact import has_comparison, without_comparison
from rarl.answers.spelling import list_items, open_hyphens, unify

_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|%")


def _set_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEGATIONS = _set_of(
    "no not non none nothing nor neither never without absent absence negative lack lacking exclude excluded unlikely "
    "cannot"
)
#: Words with which a sentence leaves open what is the case.
HEDGES = _set_of(
    "or versus vs either except unlike maybe perhaps possible possibly potential potentially may might could would "
    "should if whether unclear uncertain unable cannot difficult impossible suspected questionable"
)
#: Words that carry no finding: function words, and what any sentence about an image says.
GENERIC = _set_of(
    "a an the this that these those it its there here is are was were be been being am has have had do does did can "
    "could may might will would should of in on at to from by with for as and or but so because therefore thus which "
    "who what where when how than then we i you he she they his her their our my also very more most some any such "
    "both each other into about over under between image picture scan photo show seen see look appear observe suggest "
    "mean indicate present visible shown shows showing looks appears suggests means indicates indicating suggesting "
    "consistent likely evidence patient finding question answer case"
)
#: Further words without content in a question that asks for yes or no, and in its answer.
_FRAME = (
    GENERIC
    | NEGATIONS
    | _set_of(
        "sign represent demonstrate reveal contain display depict detect detected observed identified noted found "
        "evident appreciated apparent visualized seem given provided according based indication presence exist "
        "existing"
    )
)
#: After one of these stands what a question asks for ("is there a mass?"), before one of those ("is a mass seen?").
_EXISTENCE = _set_of("there any show see evidence have contain demonstrate reveal")
_SEEN = _set_of("seen present visible observed identified noted detected found visualized evident")
_AFFIRMED = _set_of("is are does do has have was were present visible seen shown positive correct true affirmative")
_VERBS = _set_of(
    "is are was were be has have had show shows shown showing appear appears look looks see seen seem contain "
    "demonstrate reveal depict display indicate indicates represent suggest suggests present exhibit occur belong "
    "located used taken identified there"
)
#: A question without its mark.
_ASKS = re.compile(
    r"(?:(?:is|are|was|were|does|do|did|can|could|has|have|had) (?:there|it|this|that|these|the|an?|any|you)|"
    r"what|which|where|who|how|why)\b"
)
_NORMAL = _set_of("normal normally healthy unremarkable")
_ABNORMAL = _set_of("abnormal abnormally abnormality unhealthy diseased pathologic pathological")
#: What is normal is none of these.
_CHANGED = _set_of("enlarged dilated widened thickened distended displaced deviated hyperinflated blunted fractured")
_LARGER, _SMALLER = _set_of("bigger larger greater higher brighter"), _set_of("smaller lower lesser darker")
#: What comes after one of these says where something else is.
_NEAR = _set_of("below beneath above under underneath behind beside near adjacent toward next displacing surrounding")
_PLACE_ASKED = _NEAR | _set_of("location located position")
#: The image itself rather than what it shows.
_IMAGE = _set_of(
    "image picture scan photo film study examination slice section everything x ray xray radiograph mri ct ultrasound"
)
#: Clauses that are an answer by themselves.
_REPLIES = {"yes": "yes", "correct": "yes", "true": "yes", "no": "no", "incorrect": "no", "false": "no"}
_SIDES = _set_of("left right")
_ARTICLES = _set_of("a an the")

_SENTENCE = re.compile(r"[^.!?\n]+(?:(?:\.(?=\S)|(?<=\b[a-z])\.(?=[ a-z])|(?<=\bvs)\.)[^.!?\n]*)*[.!?]*")
#: What comes after these words or marks in a sentence.
_CLAUSE = re.compile(
    r"([,;:()]|\b(?:but|although|though|however|while|whereas|which|who|because|since|therefore|so|as it)\b)"
)
#: With these begins what is beside the point of a sentence.
_ASIDES = _set_of("but although though however while whereas which who because since")
_IN_BRACKETS = re.compile(r"\([^()]*\)")
_CLAUSE_MARK = re.compile(r"[.,;:!?\n]+|\b(?:but|so|because|while|which|although|however|therefore)\b")


_REWORDED = [
    (re.compile(wording), word)
    for wording, word in (
        (r"\b(?:free|clear) (?=of\b|from\b)", "without "),
        (r"\bruled out\b", "excluded"),
        (r"\bwithin normal limits\b", "normal"),
    )
]


@lru_cache(maxsize=1 << 14)
def words_of(text: str) -> tuple[str, ...]:
    """Return the words and numbers of a text in one spelling: lower case, singular, "n't" as "not".

    >>> words_of("The lungs aren't enlarged: 5.5cm")
    ('the', 'lung', 'are', 'not', 'enlarged', '5.5', 'cm')
    """
    plain = open_hyphens(unify(text)).replace("can't", "cannot").replace("n't", " not")
    for wording, word in _REWORDED:
        plain = wording.sub(word, plain)
    return tuple(word if word in GENERIC else singular(word) for word in _WORD.findall(plain))


#: Plural ending -> ending of the singular, the first that fits; words of up to three letters have no plural.
_PLURALS = {
    "ies": "y", "sses": "ss", "xes": "x", "ches": "ch", "shes": "sh",
    "tases": "tasis", "noses": "nosis", "moses": "mosis", "yses": "ysis", "ae": "a", "i": "us",
    "ss": "ss", "us": "us", "is": "is", "s": "",
}  # fmt: skip


def singular(word: str) -> str:
    """Return a word without its plural ending.

    >>> [singular(word) for word in ("lungs", "opacities", "masses", "pelvis", "thrombi", "metastases")]
    ['lung', 'opacity', 'mass', 'pelvis', 'thrombus', 'metastasis']
    """
    if len(word) > 3:
        for plural, ending in _PLURALS.items():
            if word.endswith(plural):
                return word.removesuffix(plural) + ending
    return word


def sentences_of(text: str) -> list[str]:
    """Return the sentences that state something, in lower case: questions, headings of marks and blanks are left out.

    >>> sentences_of("Is it a mass? **It is.** It has 5.5 cm, vs. 4 before.")
    ['it is.', 'it has 5.5 cm, vs. 4 before.']
    """
    plain = re.sub(r",\s*\n", ", ", unify(text).replace("*", "").replace("_", " "))
    found = (sentence.strip() for sentence in _SENTENCE.findall(plain))
    return [s for s in found if _WORD.search(s) and not s.endswith("?") and not _ASKS.match(s)]


def has_verb(text: str) -> bool:
    """Return whether a text is a statement, by its verb, rather than a phrase or a list."""
    return not _VERBS.isdisjoint(words_of(text))


def denied(words: Sequence[str], start: int, end: int) -> bool:
    """Return whether a clause denies its words from `start` to `end`.

    >>> denied(words_of("there is no mass"), 3, 4), denied(words_of("a mass is not seen"), 1, 2)
    (True, True)
    >>> denied(words_of("a mass is not calcified"), 1, 2)
    False
    """
    at = [i for i, word in enumerate(words) if word in NEGATIONS and words[i + 1 : i + 2] != ("only",)]
    return any(i < start for i in at) or any(i >= end and (_FRAME | _IMAGE).issuperset(words[i:]) for i in at)


def polarity(text: str, question: str) -> str | None:
    """Return the "yes" or "no" that a statement answers to a question; None if it leaves that open.

    A clause answers if it repeats the question's content words: three quarters of them to affirm, half to deny. A
    question about a state ("is it normal?", "any abnormality?") is also answered by a clause that says whether its
    subject, or the whole image, is normal. Clauses that contradict each other decide nothing.

    >>> polarity("There are no skull fractures.", "Are there skull fractures present?")
    'no'
    >>> polarity("The liver is not normal.", "Is the liver normal?"), polarity("Normal.", "Is it abnormal?")
    ('no', 'no')
    >>> polarity("It may be a mass.", "Is there a mass?"), polarity("The heart is large.", "Is there a mass?")
    (None, None)
    """
    asked = words_of(without_comparison(question))
    if not asked or "or" in asked:
        return None
    sentences = [s for s in sentences_of(_IN_BRACKETS.sub(" ", text)) if not _repeats(words_of(s), asked)]
    if len(sentences) == 1 and (reply := _bare_reply(words_of(sentences[0]), asked)):
        return reply
    found = set()
    for sentence in sentences:
        if {"which", "who"} & {*asked}:
            sentence = re.sub(r"\b(?:which|who)\b", "that", sentence)  # what it says is part of what was asked
        clauses = (
            clause for clause in clauses_of(without_comparison(sentence)) if clause.aside not in ("which", "who")
        )
        found |= {_clause_polarity(clause.words, asked, has_verb(sentence)) for clause in clauses} - {None}
    return found.pop() if len(found) == 1 else None


def _repeats(words: Sequence[str], asked: Sequence[str]) -> bool:
    return words[0] == asked[0] and {*words} <= {*asked}


def _bare_reply(words: Sequence[str], asked: Sequence[str]) -> str | None:
    """The answer of a reply without content ("absent", "it is not") to a question without a negation."""
    given = {*words}
    if not given <= _FRAME | _AFFIRMED or given & HEDGES or given == {"none"} or NEGATIONS & {*asked}:
        return None
    if given & NEGATIONS:
        return "no"
    return "yes" if given & _AFFIRMED else None


def _clause_polarity(words: Sequence[str], asked: Sequence[str], in_statement: bool) -> str | None:
    if len(words) == 1 and words[0] in _REPLIES:
        return _REPLIES[words[0]]
    sides = _SIDES & {*words}
    hedges = HEDGES & {*words}
    if (
        hedges - {"or"}
        or (hedges and not NEGATIONS & {*words})
        or (sides and _SIDES & {*asked} and sides != _SIDES & {*asked})
    ):
        return None
    focus = list(dict.fromkeys(word for word in asked if word not in _FRAME))
    if (wanted := _is_normal(asked)) is not None:
        is_normal = _is_normal(words)
        if is_normal is None or not _same_subject(words, focus, is_normal):
            return None
        return "yes" if is_normal == wanted else "no"
    named = [word for word in focus if word in words]
    sought = [word for word in _sought(asked, focus) if word in named]
    if not sought:
        return _unchanged(words, focus)
    at = words.index(sought[0])
    no = denied(words, at, at + 1)
    other = {*words} - {*focus} - _FRAME
    share = len(named) / len(focus)
    enough = share >= 0.5 and (share >= 0.75 or not other) if no else share >= 0.75 and in_statement
    if not enough:
        return _unchanged(words, focus)
    return "no" if no != bool(NEGATIONS & {*asked}) else "yes"


def _sought(asked: Sequence[str], focus: Sequence[str]) -> list[str]:
    """The words of a question that name what it asks for, the most important one first.

    >>> _sought(words_of("Is there a mass in the lung?"), ["mass", "lung"])
    ['mass', 'lung']
    >>> _sought(words_of("Can a mass be seen in the lung?"), ["mass", "lung"])
    ['mass']
    >>> _sought(words_of("Is the aorta dilated?"), ["aorta", "dilated"])
    ['dilated', 'aorta']
    """
    seen = [at for at, word in enumerate(asked) if word in _SEEN and {*asked[:at]} & {*focus}]
    if seen:
        return [word for word in asked[: seen[0]] if word in focus]
    marks = [at for at, word in enumerate(asked) if word in _EXISTENCE]
    after = [word for word in asked[marks[-1] :] if word in focus] if marks else []
    return after or list(focus[::-1])


def _unchanged(words: Sequence[str], focus: Sequence[str]) -> str | None:
    """The answer "no", if a question asks for a change and a clause says that its subject is normal; else None."""
    subject = [word for word in focus if word not in _CHANGED]
    asked_for_change = len(subject) < len(focus)
    return "no" if asked_for_change and subject and subject[0] in words and _is_normal(words) else None


def _is_normal(words: Sequence[str]) -> bool | None:
    """Whether a clause says that something is normal; None if it says neither, or both.

    >>> _is_normal(words_of("no abnormality")), _is_normal(words_of("not normal")), _is_normal(words_of("a mass"))
    (True, False, None)
    """
    found = {
        (word in _NORMAL) != denied(words, i, i + 1) for i, word in enumerate(words) if word in _NORMAL | _ABNORMAL
    }
    return found.pop() if len(found) == 1 else None


def _same_subject(words: Sequence[str], focus: Sequence[str], is_normal: bool) -> bool:
    """Whether a clause about a state is about what the question's `focus` names.

    What is said of the whole image holds for its parts if all is normal, and what is said of a part holds for the
    whole if that is not.
    """
    states = _NORMAL | _ABNORMAL
    of_image = {w for w, after in zip(words, [*words[1:], ""]) if w in _IMAGE or after in _IMAGE}  # "chest x-ray"
    own = {*words} - states - _FRAME - of_image
    subject = {*focus} - states - _IMAGE
    if not subject:
        about_image = _IMAGE & {*words[:3]} and not {"show", "shows"} & {*words}
        return not is_normal or not own or bool(about_image)
    return 2 * len(subject & own) >= len(subject) or (not own and (is_normal or not of_image))


class Clause(NamedTuple):
    """A part of a sentence."""

    words: tuple[str, ...]
    mark: str
    """What separates it from the clause before: a comma, a bracket, a conjunction; "" for the first."""
    aside: str
    """The word that makes it, or a clause before it, beside the point; "" if it belongs to the statement."""


def states(answer: str, reference: str, question: str = "") -> bool:
    """Return whether an answer's first sentence states the reference, in a longer wording.

    The sentence is read clause by clause; asides ("which ...", "but ...") and what something is compared with do not
    count. If a clause repeats the question, it is the one that answers. It has to contain all words of the reference,
    close together and in any order, singular or plural; words that the question has already may be missing if nothing
    else is named. It must not deny them, hedge, name the other side, or list them among others. A reference that is a
    list is compared item by item.

    >>> states("The largest organ is the lungs, which are dark.", "Lung", "What is the largest organ?")
    True
    >>> states("No pneumonia.", "Pneumonia"), states("Pneumonia or effusion", "Pneumonia")
    (False, False)
    >>> states("Effusion, pneumonia", "Pneumonia"), states("The heart, which is beside the lung.", "Lung")
    (False, False)
    """
    asked = frozenset(words_of(question)) - GENERIC
    phrase, items = words_of(reference), list_items(reference)
    phrase = tuple(word for word in phrase if word not in _ARTICLES and (word != "side" or len(phrase) == 1))
    if not phrase:
        return False
    for sentence in sentences_of(answer):
        words = {*words_of(sentence)}
        if asked and words <= asked | GENERIC and not {*phrase} <= words:
            continue  # a heading
        clauses = clauses_of(sentence if has_comparison(reference) else without_comparison(sentence))
        if _turned_round(asked, words):
            return False
        if len(items) > 1:
            if any(_is_normal(clause.words) for clause in clauses) and not _NORMAL & {*phrase, *asked}:
                return False
            return _lists(" , ".join(" ".join(clause.words) for clause in clauses if not clause.aside), items)
        if not has_verb(sentence) and len(list_items(sentence)) > 1:
            return False
        return any(_holds(clauses, at, phrase, asked) for at in _answering(clauses, asked))
    return False


def _turned_round(asked: frozenset[str], words: set[str]) -> bool:
    """Whether a sentence compares the other way round than was asked: "smaller than" where "larger" was asked for."""
    return any(
        asked & one and words & other and not asked & other and not words & one
        for one, other in ((_LARGER, _SMALLER), (_SMALLER, _LARGER))
    )


def clauses_of(sentence: str) -> list[Clause]:
    """Split a sentence into clauses.

    >>> [clause.aside for clause in clauses_of("although it is small, a mass is seen, which is larger than before")]
    ['although', '', 'which']
    """
    first, *rest = _CLAUSE.split(sentence)
    found, aside = [Clause(words_of(first), "", "")], ""
    for mark, text in zip(rest[::2], rest[1::2], strict=True):
        if mark in _ASIDES:
            aside = mark
        elif mark in ",;" and not any(clause.words for clause in found if not clause.aside):
            aside = ""  # the sentence began with the aside
        found.append(Clause(words_of(text), mark, aside))
    return [clause for clause in found if clause.words]


def _answering(clauses: Sequence[Clause], asked: frozenset[str]) -> list[int]:
    """The indices of the clauses that can answer.

    If a clause repeats the question, these are that one and what follows it without a verb; else all. Asides are left
    out.
    """
    main = [at for at, clause in enumerate(clauses) if not clause.aside]
    for at in main:
        words = {*clauses[at].words}
        if asked and 2 * len(words & asked) >= len(asked) and words - asked - GENERIC:
            return [at] + [i for i in main if i > at and not _VERBS & {*clauses[i].words}]
    return main


def _holds(clauses: Sequence[Clause], at: int, phrase: Sequence[str], asked: frozenset[str]) -> bool:
    words = clauses[at].words
    wanted = {*phrase, *asked}
    near = [i for i, word in enumerate(words) if word in _NEAR]
    if near and not _PLACE_ASKED & wanted:
        words = words[: near[0]]
    sides = _SIDES & asked
    other_side = len(sides) == 1 and _SIDES & {*words} and not sides & {*words}
    if HEDGES & {*words} - {*phrase} or (other_side and _VERBS & {*words}):
        return False
    if _is_normal(words) and not _NORMAL & wanted:
        return False
    span = _span(words, phrase)
    if span is None:
        new = [word for word in phrase if word not in asked]
        if {*new} <= GENERIC or not {*words} <= asked | GENERIC | {*phrase, "side"}:
            return False
        span = _span(words, new)
    if span is None:
        return False
    start, end = span
    sides = _SIDES & {*phrase}
    beside = clauses[at + 1].words if at + 1 < len(clauses) and _is_item(clauses[at + 1]) else ()
    return not (
        denied(words, start, end)
        or (NEGATIONS & {*words[start:end]}) - {*phrase}
        or (len(sides) == 1 and _SIDES - sides <= {*words, *beside})
        or (end == len(words) and beside)
        or _listed(clauses, at, start, end)
    )


def _span(words: Sequence[str], phrase: Sequence[str]) -> tuple[int, int] | None:
    """Start and end of the shortest run of words that has all of the phrase, with at most two others."""
    for length in range(len(phrase), len(phrase) + 3):
        for start in range(len(words) - length + 1):
            if {*phrase} <= {*words[start : start + length]}:
                return start, start + length
    return None


def _listed(clauses: Sequence[Clause], at: int, start: int, end: int) -> bool:
    """Whether the words from `start` to `end` of a clause are an item of a list: joined by "and", or after a comma."""
    words = clauses[at].words
    before = [word for word in words[:start] if word not in _ARTICLES]
    if "and" in (*before[-1:], *words[end : end + 1]):
        return True
    return start == 0 and at > 0 and _is_item(clauses[at]) and not GENERIC.issuperset(clauses[at - 1].words)


def _is_item(clause: Clause) -> bool:
    """Whether a clause looks like a further item of a list: a few words after a comma, without verb or article.

    So "heart, lungs" is a list, and "a nodule, a round spot" and "imaging (MRI)" are not.
    """
    first = clause.words[0]
    return (
        clause.mark == ","
        and len(clause.words) <= 4
        and not _VERBS & {*clause.words}
        and not (first in _ARTICLES and "and" not in clause.words)
        and not first.endswith("ly")
        and first not in ("with", "in", "on", "at", "of", "such", "including")
    )


def _lists(text: str, items: Sequence[str]) -> bool:
    """Whether a text names these items and as many, each as whole words, or all in one phrase, and denies none.

    >>> _lists("There is a tumor and brain edema.", ["brain edema", "tumor"]), _lists("tumor", ["edema", "tumor"])
    (True, False)
    """
    given = [words_of(item) for item in list_items(text)]
    wanted = {word for item in items for word in words_of(item)}
    if len(given) == 1 and wanted <= {*given[0]} and not (NEGATIONS | HEDGES) & {*given[0]} - wanted:
        return True
    if len(given) != len(items):
        return False
    # Longest first, so that "brain tumor" takes its own item before "tumor" does.
    for item in sorted(map(words_of, items), key=len, reverse=True):
        holder = next((words for words in given if f" {' '.join(item)} " in f" {' '.join(words)} "), None)
        if holder is None or (NEGATIONS | HEDGES) & {*holder} - {*item}:
            return False
        given.remove(holder)
    return True


def content_words(text: str) -> set[tuple[str, bool]]:
    """(word, whether its clause has a negation) for each word that is not generic."""
    found = set()
    for clause in _CLAUSE_MARK.split(text.casefold()):
        words = words_of(clause)
        negated = bool(NEGATIONS & {*words})
        found |= {(word, negated) for word in words if word not in GENERIC | NEGATIONS}
    return found
