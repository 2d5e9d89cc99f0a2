"""Clinical-term recall: does the think text state the findings that the physician stated? (ours)

The paper names a reasoning reward without a formula (section 2.2.2). Here both texts are read as
facts, (term, affirmed or denied), by the lexicon and by a negation scope after the idea of NegEx
(Chapman et al. 2001), and compared fact by fact.

Reading a sentence:

* The longest wording of the lexicon that fits is taken; a question states nothing.
* A denying word ("no", "without") reaches forward, and "is not seen", "absent" reach back, over at
  most `REACH` words from the denying word or from the last term that it denied. The reach ends at
  "but" and the like, and at a verb or a new noun phrase ("and the ...") once a term was denied.
* Findings, sizes and states can be denied. Places are never: "no nodule in the left lung" speaks of
  the left lung. A denied tone or shape says nothing: "no bright spot" has no brightness.

What it does not see: which side belongs to which finding, doubt ("possible" counts as affirmed),
numbers, and every word that is not in the lexicon.
"""

import re
import unicodedata
from functools import lru_cache

from rarl.rewards.lexicon import DENIABLE, DENIALS, IDIOMS, PLACES, RIVALS, TERMS

Fact = tuple[str, bool]

#: Words that a denial reaches over before it is spent.
REACH = 6
DENIES_AHEAD = frozenset(
    [
        "no", "not", "without", "never", "none", "nothing", "neither", "nor", "lack", "lacking",
        "absence", "deny", "exclude",
    ]
)  # fmt: skip
DENIES_AHEAD_2 = frozenset(
    [
        ("free", "of"), ("clear", "of"), ("negative", "for"), ("deviate", "from"), ("differ", "from"),
        ("different", "from"), ("rather", "than"), ("instead", "of"), ("rule", "out"),
    ]
)  # fmt: skip
DENIES_BEHIND = frozenset(["absent", "excluded", "ruled", "unlikely", "resolved"])
#: After "not" these deny what stands before: "pneumonia is not seen".
SEEN = frozenset(
    [
        "seen", "observed", "shown", "present", "visible", "evident", "identified", "detected",
        "found", "noted", "apparent", "there",
    ]
)  # fmt: skip
#: "no doubt" and "not only" deny nothing, and "not without" and "cannot be excluded" deny a denial.
NO_DENIAL = frozenset(["doubt", "only", "change", "necessarily"])
DENIED_DENIALS = frozenset(
    [
        "without", "absent", "exclude", "excluded", "rule", "ruled", "unlikely", "free", "deny",
        "lack",
    ]
)  # fmt: skip
ENDS = frozenset(
    [
        "but", "however", "although", "though", "except", "while", "whereas", "so", "because",
        "therefore", "thus",
    ]
)  # fmt: skip
#: These end a reach that has denied something.
NEW_CLAUSE = frozenset(
    [
        "with", "is", "are", "was", "were", "has", "have", "had", "show", "showing", "mean",
        "suggest", "indicate", "appear", "look", "seem", "contain", "lie",
    ]
)  # fmt: skip
ARTICLES = frozenset(["a", "an", "the", "this", "that", "there", "it", "its"])
#: Words without content, for annotations in which the lexicon finds nothing.
STOP = frozenset(
    [
        "the", "this", "that", "these", "those", "and", "but", "for", "from", "with", "into",
        "are", "was", "were", "been", "has", "have", "had", "does", "can", "could", "may",
        "might", "will", "would", "should", "not", "there", "here", "its", "which", "what",
        "where", "when", "how", "than", "then", "also", "very", "some", "any", "image", "picture",
        "scan", "show", "shows", "shown", "seen",
    ]
)  # fmt: skip
_SENTENCE = re.compile(r"[^.!?;:\n]+[.!?;:\n]*")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?|,")


def term_score(text: str, reference: str) -> float:
    """How much of the reference the text states, in [0, 1].

    `alike / facts x 0.5 ** contradicted`, where `facts` is how many the reference has and each is

    * alike, if the text states it and nothing against it;
    * contradicted, if the text does not state it and states something against it: the same term
      with the other polarity, or a rival (the other side, another diagnosis) that the reference
      does not have. One contradiction halves the score;
    * neither, if the text is silent, or says both.

    An empty text scores 0. A reference in which the lexicon finds nothing is compared by the share
    of its content words that the text has.

    >>> annotation = "A small nodule in the left lung."
    >>> term_score("The left pulmonary field has a tiny coin lesion.", annotation)
    1.0
    >>> term_score("The left lung.", annotation), term_score("Something is there.", annotation)
    (0.5, 0.0)
    >>> term_score("A small nodule in the right lung.", annotation)
    0.375
    >>> term_score("A small nodule, or no nodule, in the left or right lung.", annotation)
    0.5
    >>> term_score("Two words alike.", "Three words there.")
    0.5
    """
    wanted, said = facts(reference), facts(text)
    if not wanted:
        wanted_words = content_words(reference)
        return len(wanted_words & content_words(text)) / max(len(wanted_words), 1)
    alike = contradicted = 0
    for fact in wanted:
        against = (said - wanted) & opposites(fact, wanted, said)
        alike += fact in said and not against
        contradicted += fact not in said and bool(against)
    return alike / len(wanted) * 0.5**contradicted


def opposites(fact: Fact, wanted: frozenset[Fact], said: frozenset[Fact]) -> set[Fact]:
    """What speaks against a fact: its denial and, where it is affirmed, the rivals of its term.

    An organ has rivals only where the text names no organ of the reference: reports mention others.
    """
    term, affirmed = fact
    against = {(term, not affirmed)}
    group = GROUP.get(term)
    if not affirmed or group not in RIVALS:
        return against
    if group == "organ" and any(GROUP[other] == "organ" for other, _ in wanted & said):
        return against
    return against | {(other, True) for other in TERMS[group] if other != term}


@lru_cache(maxsize=8192)
def facts(text: str) -> frozenset[Fact]:
    """The (term, affirmed) pairs that a text states.

    >>> sorted(facts("There is no nodule in the left lung, but the heart is enlarged."))
    [('enlargement', True), ('heart', True), ('left', True), ('lung', True), ('nodule', False)]
    >>> sorted(facts("Pneumonia is not seen. The liver isn't normal. Is there a mass?"))
    [('abnormal', True), ('liver', True), ('pneumonia', False)]
    """
    found = set()
    for sentence in _SENTENCE.findall(_plain(text)):
        if not sentence.rstrip().endswith("?"):
            found |= _facts_of(_words(sentence))
    return frozenset(found)


def content_words(text: str) -> set[str]:
    """Words of three letters or more that are no function words, in the singular."""
    words = {word for word in _words(_plain(text)) if len(word) > 2}
    return words - STOP


def singular(word: str) -> str:
    """The singular of a regular plural, near enough to compare words.

    >>> [singular(word) for word in ("opacities", "masses", "lungs", "pelvis", "pus")]
    ['opacity', 'mass', 'lung', 'pelvis', 'pus']
    """
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("sses"):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    folded = re.sub(r"\b(?:can't|cannot)\b", "can not", folded)
    return re.sub(r"n't\b", " not", folded).replace("-", " ")


def _words(text: str) -> list[str]:
    """Words in the singular, and commas."""
    return [singular(word.removesuffix("'s")) for word in _WORD.findall(text)]


def _facts_of(words: list[str]) -> set[Fact]:
    terms = _terms(words)
    denied = _denied(words, {at for at, term, _ in terms if GROUP[term] not in PLACES})
    found = set()
    for at, term, affirmed in terms:
        group = GROUP[term]
        if group in PLACES or at not in denied:
            found.add((term, affirmed))
        elif group in DENIABLE:
            found.add((term, not affirmed))
    return found


def _terms(words: list[str]) -> list[tuple[int, str, bool]]:
    """(position of its last word, term, affirmed) of every term, the longest wording first."""
    found, at = [], 0
    while at < len(words):
        for length in range(LONGEST, 0, -1):
            wording = tuple(words[at : at + length])
            if wording in WORDINGS:
                at += len(wording)
                if WORDINGS[wording] is not None:
                    found.append((at - 1, *WORDINGS[wording]))
                break
        else:
            at += 1
    return found


def _denied(words: list[str], terms: set[int]) -> set[int]:
    """Positions of the terms that a denying word reaches; `terms` are those that can be denied."""
    denied = set()
    for at, word in enumerate(words):
        before, after = words[max(0, at - 2) : at], words[at + 1 : at + 3]
        ahead, behind = range(at + 1, len(words)), range(at - 1, -1, -1)
        if word == "not":
            if DENIED_DENIALS & {*after} or NO_DENIAL & {*after[:1]}:
                continue
            is_behind = bool(SEEN & {*after}) and any(term < at for term in terms)
        elif word in DENIED_DENIALS and "not" in before:
            continue
        elif word in DENIES_BEHIND:
            is_behind = any(term < at for term in terms)
        elif (word, *after[:1]) in DENIES_AHEAD_2 or (word in DENIES_AHEAD and not NO_DENIAL & {*after[:1]}):
            is_behind = False
        else:
            continue
        denied |= _reached(words, terms, behind if is_behind else ahead)
    return denied


def _reached(words: list[str], terms: set[int], positions: range) -> set[int]:
    """The terms at these positions, in this order, up to where the denial is spent."""
    reached, left = set(), REACH
    for at in positions:
        word = words[at]
        clause = word in NEW_CLAUSE or (word in ARTICLES and words[at - 1] == "and")
        if word in ENDS or (reached and clause):
            break
        if at in terms:
            reached.add(at)
            left = REACH
        elif word != ",":
            left -= 1
            if left < 0:
                break
    return reached


def _wordings() -> dict[tuple[str, ...], tuple[str, bool] | None]:
    """Each wording, as the words that `_words` makes of it, with what it states."""
    stated: dict[str, tuple[str, bool] | None] = dict.fromkeys(IDIOMS)
    for terms in TERMS.values():
        for term, others in terms.items():
            stated |= dict.fromkeys([term, *others.split(",")], (term, True))
    for term, others in DENIALS.items():
        stated |= dict.fromkeys(others.split(","), (term, False))
    return {tuple(_words(wording)): fact for wording, fact in stated.items() if wording}


#: Group of each term.
GROUP = {term: group for group, terms in TERMS.items() for term in terms}
WORDINGS = _wordings()
LONGEST = max(len(wording) for wording in WORDINGS)
