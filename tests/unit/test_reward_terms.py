"""Reading clinical facts from a text, and the recall of an annotation's facts."""

import pytest

from rarl.rewards.terms import DENIABLE, GROUP, LEXICON, PLACES, RIVALS, TERMS, WORDINGS, facts, term_score


def said(text: str) -> str:
    """`+` affirmed, `-` denied, in alphabetical order."""
    return " ".join(("+" if affirmed else "-") + term for term, affirmed in sorted(facts(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # other wordings, plurals, hyphens, case, the longest wording first
        ("Hyperdense lesions in the hepatic parenchyma", "+bright +lesion +liver"),
        ("LEFT-SIDED PNEUMOTHORAX", "+left +pneumothorax"),
        ("Enlarged heart", "+cardiomegaly"),
        ("an enlarged spleen", "+enlargement +spleen"),
        ("pleural effusion", "+effusion"),
        ("white matter, white spot", "+bright +lesion +white matter"),
        ("Chest X‑ray, MR image, computed tomography", "+ct +mri +x ray"),
        ("opacities, masses, metastases, vertebrae", "+mass +metastasis +opacity +spine"),
        ("massive, mastoid, lunge, kidneyed", "+large"),
        ("", ""),
        ("Nothing of note.", ""),
        # denial ahead, and where it ends
        ("No nodule, mass or effusion.", "-effusion -mass -nodule"),
        ("no evidence of acute fracture", "-fracture"),
        ("No nodule is seen and the heart is enlarged.", "+enlargement +heart -nodule"),
        ("No nodule but a mass.", "+mass -nodule"),
        ("No nodule. A mass.", "+mass -nodule"),
        ("No nodule; a mass", "+mass -nodule"),
        ("no opacity with a large heart", "+cardiomegaly -opacity"),
        ("no nodule and a mass", "+mass -nodule"),
        ("no nodule and no mass", "-mass -nodule"),
        ("without nodules or masses", "-mass -nodule"),
        ("The lung is free of nodules", "+lung -nodule"),
        ("negative for pneumonia", "-pneumonia"),
        ("The heart is not large.", "+heart -large"),
        ("The patient doesn't have pneumonia", "-pneumonia"),
        ("a mass rather than a nodule", "+mass -nodule"),
        ("no one two three four five six seven nodule", "+nodule"),
        # denial behind
        ("Pneumonia is not seen in the left lung.", "+left +lung -pneumonia"),
        ("Effusion is absent, the spleen is big", "+large +spleen -effusion"),
        ("nodules and masses are not clearly visible", "-mass -nodule"),
        ("Pneumonia was ruled out", "-pneumonia"),
        ("tumor unlikely", "-tumor"),
        # denials that deny nothing, or a denial
        ("no doubt a mass", "+mass"),
        ("not only a nodule but a mass", "+mass +nodule"),
        ("pneumonia cannot be excluded", "+pneumonia"),
        ("can't rule out pneumonia", "+pneumonia"),
        ("not without nodules", "+nodule"),
        # places stay, tones and shapes go
        ("no bright round spot in the upper left lung", "+left +lung +upper -lesion"),
        ("neither lung is abnormal", "+lung -abnormal"),
        # states
        ("The liver is normal.", "+liver -abnormal"),
        ("The liver is not normal.", "+abnormal +liver"),
        ("The lungs are clear.", "+lung -abnormal"),
        ("It is clear that the lung is unhealthy", "+abnormal +lung"),
        ("patterns that deviate from normal anatomy", "+abnormal"),
        ("no abnormal findings", "-abnormal"),
        # a question states nothing
        ("Does the lung look abnormal? The heart is.", "+heart"),
        ("Is there a mass?", ""),
        # the prose of the paper's own examples (tables 1 and 5)
        (
            "The liver appears to have a normal size and shape, with no visible lesions or "
            "abnormalities in the surrounding structures. Overall, there are no signs of cirrhosis, "
            "fatty liver, or other pathological changes.",
            "+liver -abnormal -cirrhosis -lesion",
        ),
        (
            "The overall lung structure may show unusual densities or patterns that deviate from "
            "normal anatomical features.",
            "+abnormal +lung +opacity",
        ),
    ],
)  # fmt: skip
def test_facts(text, expected):
    assert said(text) == " ".join(
        f"{sign}{term}" for term, sign in sorted((part[1:], part[0]) for part in _parts(expected))
    )


def _parts(expected: str) -> list[str]:
    """`+x ray -mass` → ["+x ray", "-mass"]."""
    parts = []
    for word in expected.split():
        if word[0] in "+-":
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    return parts


ANNOTATION = "This is a chest X-ray. There is a small bright round spot in the lower right lung, a nodule."


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        (ANNOTATION, 1, 1),
        (f"{ANNOTATION} {ANNOTATION}", 1, 1),
        ("A nodule: a tiny white rounded focus, basal in the right lung, on the radiograph.", 1, 1),
        (ANNOTATION.replace("lower right", "lower left"), 0.3, 0.5),
        (ANNOTATION.replace("lower", "upper"), 0.3, 0.5),
        (ANNOTATION.replace("nodule", "mass"), 0.3, 0.5),
        (ANNOTATION.replace("lung", "liver"), 0.3, 0.5),
        (ANNOTATION.replace("X-ray", "CT"), 0.3, 0.5),
        (ANNOTATION.replace("bright", "dark"), 0.3, 0.5),
        (ANNOTATION.replace("a small", "no small").replace("a nodule", "no nodule"), 0, 0.2),
        # said both ways: no credit for that fact, no contradiction
        (ANNOTATION.replace("lower right", "lower left or right"), 0.8, 0.95),
        (f"{ANNOTATION} There is no nodule.", 0.8, 0.95),
        (f"{ANNOTATION} It could be pneumonia.", 0.8, 0.95),
        # another organ beside is no contradiction
        (f"{ANNOTATION} The heart is normal.", 1, 1),
        ("A nodule.", 0.1, 0.2),
        ("There is something in the image.", 0, 0),
        ("", 0, 0),
        ("?!", 0, 0),
        ("Is there a small bright round spot in the lower right lung, a nodule, on the X-ray?", 0, 0),
    ],
)  # fmt: skip
def test_score(text, low, high):
    assert low <= term_score(text, ANNOTATION) <= high


def test_one_contradiction_halves_and_a_silent_text_only_loses_its_share():
    assert term_score("A nodule on the left.", "A nodule on the right.") == 0.25
    assert term_score("A nodule.", "A nodule on the right.") == 0.5
    assert term_score("A mass on the left.", "A nodule on the right.") == 0.0


def test_a_denied_annotation_wants_the_denial():
    annotation = "No nodule or mass."
    assert term_score("Neither a mass nor a nodule.", annotation) == 1
    assert term_score("A nodule.", annotation) == 0
    assert term_score("No nodule.", annotation) == 0.5


def test_an_annotation_without_terms_is_compared_by_words():
    annotation = "Three cells with purple walls."
    assert facts(annotation) == frozenset()
    assert term_score("purple cells", annotation) == 0.5
    assert term_score("", annotation) == 0
    assert term_score("anything", "..") == 0


def test_the_order_of_terms_makes_no_difference():
    sentences = [part + "." for part in ANNOTATION.split(".") if part]
    assert term_score(" ".join(reversed(sentences)), ANNOTATION) == 1


def test_every_wording_of_the_lexicon_is_read_as_its_term():
    for terms in TERMS.values():
        for term, others in terms.items():
            for wording in [term, *filter(None, others.split(","))]:
                assert (term, True) in facts(f"Here: {wording} there"), wording
    for term, others in LEXICON["denials"].items():
        for wording in others.split(","):
            assert facts(wording) >= {(term, False)}, wording


def test_lexicon_is_consistent():
    wordings = [
        w.strip() for terms in TERMS.values() for t, o in terms.items() for w in (t, *o.split(",")) if w.strip()
    ]
    assert len(set(wordings)) == len(wordings), "a wording stands under two terms"
    assert set(GROUP.values()) == set(TERMS)
    assert {*RIVALS, *DENIABLE, *PLACES} <= set(TERMS)
    assert not set(DENIABLE) & set(PLACES)
    assert len(WORDINGS) > 150
