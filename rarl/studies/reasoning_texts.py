"""Right and wrong reasoning texts about phantoms whose findings are known.

An annotation is the reasoning that `rarl/phantom/questions.py` writes. Each case also has texts of the kinds in
`KINDS`. The wrong ones are written by the annotation's own grammar about other findings, so that they are as close to
it in wording as a wrong text can be; two in three of the right ones use other words than the annotation. Those words
were written after the lexicon of `rarl/rewards/lexicon.yaml` and not added to it: most plain ones are not in it.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from rarl.answers.exact import kind_of
from rarl.phantom.medical import DISEASES, Finding, Scene, choose_findings
from rarl.phantom.questions import Asked, abnormality_questions, askable, named, reasoning
from rarl.phantom.words import ORGAN_OF
from rarl.prompts import render
from rarl.records import Kind

#: The sentences of the texts.
WORDS = YAML(typ="safe", pure=True).load(Path(__file__).with_suffix(".yaml"))
RIGHT = ("reordered", "plain", "report")
#: Right in content, but not what a policy should write.
REPEATED = "repeated"
#: Kind of text -> what it is.
KINDS = WORDS["kinds"]
WRONG = {kind: meaning for kind, meaning in KINDS.items() if kind not in (*RIGHT, REPEATED)}
#: Wrong findings told in the same style as a right text: (kind, style) → the kind's name in a case.
SAME_STYLE = {
    (kind, style): kind if style == "reordered" else f"{kind}_{style}"
    for kind in ("denied", "other_place", "other_finding")
    for style in RIGHT
}
#: Share of each modality and of abnormal images, as in the curated training set.
MODALITY_SHARES = {"xray": 0.6, "mri": 0.23, "ct": 0.17}
ABNORMAL_SHARE = 0.55


@dataclass(frozen=True)
class Case:
    """One question about one image: its annotation, and texts by kind (a kind may be missing)."""

    modality: str
    findings: tuple[Finding, ...]
    question: str
    answer: str
    kind: Kind
    annotation: str
    texts: dict[str, str]


def make_cases(seed: int, count: int) -> list[Case]:
    """Sample findings, questions and texts. Pixels are not needed and not drawn."""
    rng = np.random.default_rng(seed)
    told = []
    for _ in range(count):
        modality = str(rng.choice(list(MODALITY_SHARES), p=list(MODALITY_SHARES.values())))
        scene = _scene(modality)
        if rng.random() < ABNORMAL_SHARE:
            scene.findings = choose_findings(rng, modality)
        asked = abnormality_questions(rng, scene, 1)[0]
        told.append((scene, asked, reasoning(rng, scene, asked)))
    return [
        Case(
            scene.modality,
            tuple(scene.findings),
            asked.text,
            asked.answer,
            kind_of(asked.answer, asked.text),
            annotation,
            _texts(rng, scene, asked, annotation, told),
        )
        for scene, asked, annotation in told
    ]


def _scene(modality: str, findings: list[Finding] | None = None) -> Scene:
    return Scene(np.zeros((0, 0), np.uint8), modality, findings or [])


def _texts(rng, scene: Scene, asked: Asked, annotation: str, told: list[tuple]) -> dict[str, str]:
    texts = {
        "reordered": " ".join(reversed(re.findall(r"\S[^.]+\.", annotation))),
        "plain": _told(rng, scene, asked, "plain"),
        "report": _told(rng, scene, asked, "report"),
        "vague": WORDS["vague"][rng.integers(len(WORDS["vague"]))],
        "denied": _denied(scene, asked, annotation),
        "copied_question": asked.text,
        "copied_prompt": render("explanation", asked.text),
        "listed": _listed(scene.modality),
        REPEATED: " ".join([annotation] * 3),
    }
    wrong = {"denied": _scene(scene.modality)}
    if not scene.findings:
        wrong["denied"].findings = choose_findings(rng, scene.modality)
        texts["denied"] = _reasoning(rng, wrong["denied"], asked)
    moved = [_moved(finding) for finding in scene.findings]
    if moved and moved != scene.findings:
        wrong["other_place"] = _scene(scene.modality, moved)
        texts["other_place"] = _reasoning(rng, wrong["other_place"], asked)
    if scene.findings and (other := _exchanged(rng, scene)):
        wrong["other_finding"] = _scene(scene.modality, other)
        texts["other_finding"] = _reasoning(rng, wrong["other_finding"], asked)
    for kind, wrong_scene in wrong.items():
        ended = replace(asked, conclusion=_conclusion(wrong_scene, asked))
        texts |= {SAME_STYLE[kind, style]: _told(rng, wrong_scene, ended, style) for style in ("plain", "report")}
    others = [
        text
        for one, _, text in told
        if one.modality == scene.modality and _seen(one.findings) != _seen(scene.findings)
    ]
    if others:
        texts["another_picture"] = others[rng.integers(len(others))]
    return {kind: text for kind, text in texts.items() if kind in RIGHT or text != annotation}


def _seen(findings: list[Finding]) -> set[tuple]:
    return {(finding.name, finding.side, finding.level) for finding in findings}


def _reasoning(rng, scene: Scene, asked: Asked) -> str:
    """Return the right reasoning, under the same question, about an image with these findings."""
    return reasoning(rng, scene, replace(asked, conclusion=_conclusion(scene, asked)))


def _conclusion(scene: Scene, asked: Asked) -> str:
    """Return how the reasoning ends under the same question, or about the image if the question does not fit."""
    fallback = "so the image is not normal." if scene.findings else "so the image is normal."
    same = (other.conclusion for other in askable(scene) if other.text == asked.text)
    return next(same, fallback)


def _denied(scene: Scene, asked: Asked, annotation: str) -> str:
    """Return the annotation of an abnormal image with every claim denied."""
    seen, _, _ = annotation.rpartition(", ")
    seen = re.sub(r"\b(There is|It has|It shows|(?:X-ray|MRI|CT) (?:has|shows)) an? ", r"\1 no ", seen, count=1)
    seen = seen.replace(" and a ", " and no ")
    for said, denied in (
        ("This is ", "This is not "),
        ("This means ", "This does not mean "),
        ("This suggests ", "This does not suggest "),
    ):
        head, found, tail = seen.rpartition(said)
        if found and not tail.startswith(("a chest X-ray", "a brain MRI", "an abdominal CT")):
            seen = head + denied + tail.replace(" and no ", " or ").replace(" and ", " or ")
    return f"{seen}, {_conclusion(_scene(scene.modality), asked)}"


def _moved(finding: Finding) -> Finding:
    """Return the finding on the other side; in the liver, whose texts name no side, upper for lower."""
    if finding.organ == "liver":
        return replace(finding, level="lower" if finding.level == "upper" else "upper")
    sides = {"left": "right", "right": "left", "": ""}
    return replace(finding, side=sides[finding.side])


def _exchanged(rng, scene: Scene) -> list[Finding]:
    """Return one finding that the image does not have, where the first one is; none if it has them all."""
    first, seen = scene.findings[0], named(scene.findings)
    names = [name for name in DISEASES[scene.modality] if name not in seen]
    if not names:
        return []
    name = str(rng.choice(names))
    side, level = first.side or "left", first.level or "lower"
    if name == "Cardiomegaly":
        side = level = ""
    elif name == "Effusion":
        level = "lower"
    elif name == "Kidney Cancer":
        level = ""
    return [Finding(name, ORGAN_OF[name], side, level)]


def _listed(modality: str) -> str:
    names = ", ".join(name.lower() for name in DISEASES[modality])
    organs = " and ".join(dict.fromkeys(ORGAN_OF[name] for name in DISEASES[modality]))
    return (
        f"The image shows {names}, abnormal and normal, large and small, bright and dark, round and "
        f"hazy, in the upper, lower, left and right {organs}."
    )


def _told(rng, scene: Scene, asked: Asked, style: str) -> str:
    """Return the findings in everyday words (style `plain`) or in a radiologist's (`report`)."""
    words, ending = WORDS[style], _ending(asked, style)
    if not scene.findings:
        return f"{words['view'][scene.modality]} {words['normal'][scene.modality]} {ending}"
    places = [words["place"][one.level] for one in scene.findings]
    places = [place if isinstance(place, str) else place[rng.integers(2)] for place in places]
    seen = " and ".join(
        words["seen"][one.name].format(side=one.side, level=place) for one, place in zip(scene.findings, places)
    )
    names = words["name"]
    if style == "plain" and rng.random() >= 0.5:
        # The name is what the question asks for: half of the texts describe it, half give it.
        names = {name: name.lower() for name in names}
    meant = " and ".join(names[name] for name in named(scene.findings))
    told = words["told"].format(seen=seen, Seen=seen.capitalize(), meant=meant)
    return f"{words['view'][scene.modality]} {told} {ending}"


def _ending(asked: Asked, style: str) -> str:
    said = asked.conclusion.split(" ", 1)[1].rstrip(".")
    for pattern in WORDS["endings"]:
        if found := re.fullmatch(pattern[0], said):
            text = found.expand(pattern[1 if style == "plain" else 2])
            return text[0].upper() + text[1:]
    raise ValueError(f"no other wording of '{said}'")
