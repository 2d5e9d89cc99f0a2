"""Clinical-term recall: does the think text state the findings that the physician stated?

Ours: the paper names a reasoning reward without a formula (section 2.2.2). Both texts are parsed into facts, (term,
affirmed or denied), with a lexicon and a negation scope after NegEx (Chapman et al. 2001), and compared fact by fact.

How a sentence is parsed:

* The longest matching wording of the lexicon wins; a question states nothing.
* A negation ("no", "without") reaches forward, and "is not seen" or "absent" reach back, over at most `REACH` words
  from the negation or from the last term that it denied. Its scope ends at "but" and the like and, once a term was
  denied, at a verb or a new noun phrase ("and the ...").
* Findings, sizes and states can be denied. Places cannot: "no nodule in the left lung" is about the left lung. A
  denied tone or shape states nothing: "no bright spot" has no brightness.

Limits: it does not know which side belongs to which finding, "possible" counts as affirmed, and numbers and words
outside the lexicon are ignored.
"""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from ruamel.yaml import YAML

Fact = tuple[str, bool]
#: The lexicon; `lexicon.yaml` says what each part is.
LEXICON = YAML(typ="safe", pure=True).load(Path(__file__).with_name("lexicon.yaml"))
TERMS: dict[str, dict[str, str]] = LEXICON["terms"]
RIVALS, DENIABLE, PLACES = (LEXICON[groups] for groups in ("rivals", "deniable", "places"))
#: Longest scope of a negation, in words.
REACH = 6
WORDS = {name: frozenset(words.split()) for name, words in LEXICON["words"].items()}
PAIRS = {tuple(pair.split()) for pair in LEXICON["pairs_that_deny_ahead"]}
_SENTENCE = re.compile(r"[^.!?;:\n]+[.!?;:\n]*")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?|,")


def term_score(text: str, reference: str) -> float:
    """Return the share of the reference's facts that the text states, in [0, 1].

    The score is `stated / facts x 0.5 ** contradicted`, where `facts` is the number of facts in the reference. A fact
    is

    * stated, if the text states it and nothing against it;
    * contradicted, if the text states only something against it: the same term with the other polarity, or a rival
      (the other side, another diagnosis) that the reference does not have;
    * neither, if the text has neither or both.

    An empty text scores 0. For a reference without any term of the lexicon, the score is the share of its content
    words that the text has.

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
    stated = contradicted = 0
    for fact in wanted:
        against = (said - wanted) & opposites(fact, wanted, said)
        stated += fact in said and not against
        contradicted += fact not in said and bool(against)
    return stated / len(wanted) * 0.5**contradicted


def opposites(fact: Fact, wanted: frozenset[Fact], said: frozenset[Fact]) -> set[Fact]:
    """Return what contradicts a fact: its denial and, if it is affirmed, the rivals of its term.

    An organ has rivals only if the text names no organ of the reference, because reports mention other organs.
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
    """Return the (term, affirmed) pairs that a text states.

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
    """Return the words of at least three letters that are not function words, in the singular."""
    return {word for word in _words(_plain(text)) if len(word) > 2} - WORDS["stop"]


def singular(word: str) -> str:
    """Return the singular of a regular plural, close enough to compare words.

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
    """Return the words, in the singular, and the commas."""
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
    """Return (position of its last word, term, affirmed) of each term, by the longest wording that matches."""
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
    """Return the positions of the denied terms; `terms` are the positions of those that can be denied."""
    denied = set()
    for at, word in enumerate(words):
        before, after = words[max(0, at - 2) : at], words[at + 1 : at + 3]
        ahead, behind = range(at + 1, len(words)), range(at - 1, -1, -1)
        if word == "not":
            if WORDS["denied_denials"] & {*after} or WORDS["no_denial"] & {*after[:1]}:
                continue
            is_behind = bool(WORDS["seen"] & {*after}) and any(term < at for term in terms)
        elif word in WORDS["denied_denials"] and "not" in before:
            continue
        elif word in WORDS["deny_behind"]:
            is_behind = any(term < at for term in terms)
        elif (word, *after[:1]) in PAIRS or (word in WORDS["deny_ahead"] and not WORDS["no_denial"] & {*after[:1]}):
            is_behind = False
        else:
            continue
        denied |= _reached(words, terms, behind if is_behind else ahead)
    return denied


def _reached(words: list[str], terms: set[int], positions: range) -> set[int]:
    """Return the terms at these positions, in this order, up to the end of the negation's scope."""
    reached, left = set(), REACH
    for at in positions:
        word = words[at]
        clause = word in WORDS["new_clause"] or (word in WORDS["articles"] and words[at - 1] == "and")
        if word in WORDS["ends"] or (reached and clause):
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
    """Map each wording, split by `_words`, to the fact that it states."""
    stated: dict[str, tuple[str, bool] | None] = dict.fromkeys(LEXICON["idioms"])
    for terms in TERMS.values():
        for term, others in terms.items():
            stated |= dict.fromkeys([term, *others.split(",")], (term, True))
    for term, others in LEXICON["denials"].items():
        stated |= dict.fromkeys(others.split(","), (term, False))
    return {tuple(_words(wording)): fact for wording, fact in stated.items() if wording}


#: Group of each term.
GROUP = {term: group for group, terms in TERMS.items() for term in terms}
WORDINGS = _wordings()
LONGEST = max(len(wording) for wording in WORDINGS)
