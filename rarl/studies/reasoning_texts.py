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

from rarl.answers import kind_of
from rarl.phantom.medical import DISEASES, Finding, Scene, choose_findings
from rarl.phantom.questions import Asked, abnormality_questions, askable, named, reasoning
from rarl.phantom.words import ORGAN_OF
from rarl.prompts import render
from rarl.records import Kind

#: The sentences of the texts.
WORDS = YAML(typ="safe", pure=True).load(Path(__file__).with_suffix(".yaml"))
RIGHT = ("reordered", "plain", "report")
WRONG = {
    "vague": "says little: there is something in the image",
    "denied": "the annotation's findings denied one by one; of a normal picture, findings claimed",
    "other_place": "the other side, or upper for lower",
    "other_finding": "another disease in the same place",
    "another_picture": "the right reasoning of another picture of the same modality",
    "copied_question": "the question",
    "copied_prompt": "the training prompt with the question",
    "listed": "every disease, side and place that the modality has",
}
#: Right in content, but not what a policy should write.
REPEATED = "repeated"
KINDS = {
    "reordered": "the annotation's sentences in another order",
    "plain": "the same findings in everyday words",
    "report": "the same findings in a radiologist's words",
    **WRONG,
    REPEATED: "the annotation three times over",
}
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
        "plain": _plain(rng, scene, asked),
        "report": _report(rng, scene, asked),
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
        texts[SAME_STYLE[kind, "plain"]] = _plain(rng, wrong_scene, ended)
        texts[SAME_STYLE[kind, "report"]] = _report(rng, wrong_scene, ended)
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


def _plain(rng, scene: Scene, asked: Asked) -> str:
    style, ending = WORDS["plain"], _ending(asked, 1)
    if not scene.findings:
        return f"{style['view'][scene.modality]} {style['normal'][scene.modality]} {ending}"
    seen = " and ".join(
        style["seen"][one.name].format(side=one.side, level=style["place"][one.level]) for one in scene.findings
    )
    # The name is what the question asks for: half of the texts give it, half describe it.
    names = style["name"] if rng.random() < 0.5 else {name: name.lower() for name in style["name"]}
    meant = " and ".join(names[name] for name in named(scene.findings))
    return f"{style['view'][scene.modality]} What strikes me is {seen}. I take it for {meant}. {ending}"


def _report(rng, scene: Scene, asked: Asked) -> str:
    style, ending = WORDS["report"], _ending(asked, 2)
    if not scene.findings:
        return f"{style['view'][scene.modality]} {style['normal'][scene.modality]} {ending}"
    seen = " and ".join(
        style["seen"][one.name].format(side=one.side, level=style["place"][one.level][rng.integers(2)])
        for one in scene.findings
    )
    meant = " and ".join(style["name"][name] for name in named(scene.findings))
    return f"{style['view'][scene.modality]} {seen.capitalize()}. Consistent with {meant}. {ending}"


def _ending(asked: Asked, style: int) -> str:
    said = asked.conclusion.split(" ", 1)[1].rstrip(".")
    for pattern in WORDS["endings"]:
        if found := re.fullmatch(pattern[0], said):
            text = found.expand(pattern[style])
            return text[0].upper() + text[1:]
    raise ValueError(f"no other wording of '{said}'")
