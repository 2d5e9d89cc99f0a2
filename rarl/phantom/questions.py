"""Write questions about a phantom, and what a correct answer must contain.

Answers and ground truth come from the drawn findings. The truth (`expect`) is not the answer's text: it is one of

* `{"yes": bool}`: the answer must mean yes, or no;
* `{"any_of": [...]}`: the answer must be one of these strings;
* `{"all_of": [...]}`: the answer must name these diseases and no other (`[]`: none at all).

The reasoning texts come from a small grammar: what is visible (size, tone, shape, place), then what it means. Left and
right are those of the image.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from rarl.phantom.medical import Finding, Scene
from rarl.phantom.words import DISEASES, MODALITIES, ORGAN_OF, VIEWS

SIDES, LEVELS = ("left", "right"), ("upper", "lower")
#: Chance that a question is yes/no, choice or open, by (abnormal, chest X-ray), and that a yes/no question is one
#: whose answer is yes, by abnormal. Set so that the mix is that of SLAKE's Abnormality rows, and that the wording
#: of a question alone says little about its answer.
KIND_SHARES = {
    (True, True): (0.44, 0.16, 0.40),
    (True, False): (0.50, 0.0, 0.50),
    (False, True): (0.86, 0.0, 0.14),
    (False, False): (0.86, 0.0, 0.14),
}
YES_SHARE = {True: 0.68, False: 0.47}
#: How often a template family is taken, by (abnormal, answer is yes).
FAMILY_WEIGHTS = {
    (True, True): {"image": 1.0, "organ": 1.6, "healthy": 0.1, "place": 1.8, "side": 1.0, "patient": 1.2},
    (True, False): {"image": 2.0, "organ": 0.4, "healthy": 2.0, "place": 0.7, "side": 0.4, "patient": 0.7},
    (False, True): {"image": 1.0, "healthy": 0.9},
    (False, False): {"image": 1.3, "organ": 1.3, "place": 0.7, "side": 0.6, "patient": 0.8},
}


@dataclass(frozen=True)
class Asked:
    """One question about one image.

    Attributes:
        text, answer: As in a release.
        expect: The truth, see the module's docstring.
        family: Its template.
        conclusion: The end of the reasoning, after "so" if the findings are the reason, else after "and".
    """

    text: str
    answer: str
    expect: dict
    family: str
    conclusion: str = ""

    @property
    def closed(self) -> bool:
        """SLAKE's answer type: yes/no and choices are CLOSED."""
        return "yes" in self.expect or self.family == "choice"


def yes_no(text: str, truth: bool, family: str, conclusion: str = "") -> Asked:
    """Return a question whose answer is yes or no."""
    return Asked(text, "Yes" if truth else "No", {"yes": truth}, family, conclusion)


def named(findings: list[Finding]) -> list[str]:
    """Return the distinct diseases among the findings, in order."""
    return list(dict.fromkeys(finding.name for finding in findings))


def diseases_asked(text: str, findings: list[Finding], family: str, conclusion: str = "") -> Asked:
    """Return a question whose answer is a list of diseases, or the literal `None`."""
    names = named(findings)
    return Asked(text, ", ".join(names) or "None", {"all_of": names}, family, conclusion)


# Abnormality questions, as in SLAKE ---------------------------------------------------------------


def abnormality_questions(rng: np.random.Generator, scene: Scene, count: int) -> list[Asked]:
    """Sample `count` different abnormality questions about one image."""
    abnormal = bool(scene.findings)
    pool = askable(scene)
    asked: list[Asked] = []
    while len(asked) < count:
        open_pool = [question for question in pool if question not in asked]
        kind = rng.choice(3, p=KIND_SHARES[abnormal, scene.modality == "xray"])
        if kind == 0:
            wanted = bool(rng.random() < YES_SHARE[abnormal])
            candidates = [q for q in open_pool if q.expect.get("yes") is wanted]
        elif kind == 1:
            candidates = [q for q in open_pool if q.family == "choice"]
        else:
            candidates = [q for q in open_pool if "all_of" in q.expect]
        if not candidates:
            continue
        if kind == 0:
            families = sorted({q.family for q in candidates})
            weights = np.array([FAMILY_WEIGHTS[abnormal, wanted][family] for family in families])
            family = rng.choice(families, p=weights / weights.sum())
            candidates = [q for q in candidates if q.family == family]
        asked.append(candidates[rng.integers(len(candidates))])
    return asked


def askable(scene: Scene) -> list[Asked]:
    """Return every abnormality question that fits this modality."""
    findings, main = scene.findings, scene.organs[0]
    abnormal = bool(findings)
    image = f"so the image is {'not ' if abnormal else ''}normal."
    pool = [
        yes_no("Are there abnormalities in this image?", abnormal, "image", image),
        yes_no("Does this image look normal?", not abnormal, "image", image),
    ]
    for organ in scene.organs:
        ill = any(finding.organ == organ for finding in findings)
        verdict = f"so the {organ} is abnormal." if ill else f"and the {organ} is normal."
        pool.append(yes_no(f"Does the {organ} look abnormal?", ill, "organ", verdict))
        if organ == main:
            verdict = f"so the {organ} is not healthy." if ill else f"and the {organ} is healthy."
            pool.append(yes_no(f"Is the {organ} healthy?", not ill, "healthy", verdict))
    pool += _chest_questions(findings) if scene.modality == "xray" else _patient_questions(scene)
    verdict = f"so the {findings[0].organ} is not healthy." if findings else "so there is no disease."
    pool.append(diseases_asked("What diseases are included in the picture?", findings, "open", verdict))
    for side in SIDES if main in ("lung", "brain") else ():
        here = [finding for finding in findings if finding.side == side and finding.organ == main]
        if here:
            verdict = f"so the {side} of the {main} is abnormal."
            pool.append(diseases_asked(f"What disease is shown on the {side} of {main}?", here, "open", verdict))
    return pool


def _chest_questions(findings: list[Finding]) -> list[Asked]:
    """Return the questions about sides, places and the choice of organ."""
    pool = []
    found = {(finding.name, finding.side, finding.level) for finding in findings}
    for side in SIDES:
        ill = any(finding.side == side for finding in findings)
        verdict = f"so the {side} lung is abnormal." if ill else f"and the {side} lung is normal."
        pool.append(yes_no(f"Are there abnormalities in the {side} lung?", ill, "side", verdict))
        for level, disease in product(LEVELS, DISEASES["xray"]):
            if ORGAN_OF[disease] != "lung" or (disease == "Effusion" and level == "upper"):
                continue
            seen, where = (disease, side, level) in found, f"the {level} {side} lung"
            verdict = f"{'so' if seen else 'and'} {disease.lower()} is {'' if seen else 'not '}seen in {where}."
            text = f"Can {disease.lower()} be observed on {where} in this picture?"
            pool.append(yes_no(text, seen, "place", verdict))
    if organs := list(dict.fromkeys(finding.organ for finding in findings)):
        answer = "Both" if len(organs) == 2 else organs[0].capitalize()
        accepted = ["Both", "heart and lung", "lung and heart"] if answer == "Both" else [answer]
        verdict = "so both are abnormal." if answer == "Both" else f"so the {organs[0]} is abnormal."
        text = "Which organ is abnormal, heart or lung?"
        pool.append(Asked(text, answer, {"any_of": accepted}, "choice", verdict))
    return pool


def _patient_questions(scene: Scene) -> list[Asked]:
    """Return a question about each disease of the modality."""
    pool = []
    for disease in DISEASES[scene.modality]:
        seen, name = disease in named(scene.findings), disease.lower()
        verdict = f"so the patient has {name}." if seen else f"and the patient does not have {name}."
        pool.append(yes_no(f"Does the patient have {name}?", seen, "patient", verdict))
    return pool


# Reasoning texts ----------------------------------------------------------------------------------


def reasoning(rng: np.random.Generator, scene: Scene, asked: Asked) -> str:
    """Write two or three sentences: the view, what is visible, and what it means for the question."""
    view = VIEWS[scene.modality]
    article = "an" if view[0] == "a" else "a"
    first = _one_of(
        rng, f"The picture shows {article} {view}.", f"This is {article} {view}.", f"The image is {article} {view}."
    )
    if not scene.findings:
        return f"{first} {_nothing_seen(rng, scene)} {asked.conclusion.split(' ', 1)[1].capitalize()}"
    shapes = " and ".join(_visual(finding) for finding in scene.findings)
    if len(scene.findings) == 1:
        seen = f"{first} {_one_of(rng, 'There is', 'It has', 'It shows')} {shapes}."
    else:  # two findings are long enough without a sentence of their own for the view
        seen = f"{_one_of(rng, f'The {view} has', f'This {view} shows')} {shapes}."
    names = " and ".join(_with_article(name) for name in named(scene.findings))
    return f"{seen} This {_one_of(rng, 'is', 'means', 'suggests')} {names}, {asked.conclusion}"


def _one_of(rng: np.random.Generator, *texts: str) -> str:
    return texts[rng.integers(len(texts))]


def _with_article(name: str) -> str:
    return f"a {name.lower()}" if name in ("Nodule", "Mass", "Brain Tumor") else name.lower()


def _visual(finding: Finding) -> str:
    place = f"{finding.level} {finding.side}"
    return {
        "Pneumonia": f"a bright hazy area in the {place} lung",
        "Nodule": f"a small bright round spot in the {place} lung",
        "Mass": f"a large bright round spot in the {place} lung",
        "Effusion": f"a large bright bar in the {place} lung",
        "Cardiomegaly": "a large heart",
        "Brain Tumor": f"a bright round spot in the {place} brain",
        "Brain Edema": f"a large bright hazy area in the {place} brain",
        "Liver Cancer": f"a dark round spot in the {finding.level} liver",
        "Kidney Cancer": f"a dark round spot in the {finding.side} kidney",
    }[finding.name]


def _nothing_seen(rng: np.random.Generator, scene: Scene) -> str:
    if scene.modality == "xray":
        return _one_of(
            rng,
            "There is no bright spot or hazy area in the lung, and the heart is not large.",
            "The lung is dark and clear on the left and right, and the heart is small.",
        )
    if scene.modality == "mri":
        return _one_of(
            rng,
            "There is no bright round spot and no bright hazy area in the brain.",
            "The left and right side of the brain are clear, with no bright spot or hazy area.",
        )
    return _one_of(
        rng,
        "There is no dark round spot in the liver and no dark spot in the left or right kidney.",
        "The liver is clear, and the left and right kidney are bright with no dark spot.",
    )


# Questions of SLAKE's other content types -----------------------------------------------------------

PLANES = {"xray": "Coronal", "mri": "Axial", "ct": "Axial"}


def other_questions(scene: Scene) -> list[tuple[str, Asked]]:
    """Return (content type, question) about modality, plane, organ and position, for SLAKE's other rows."""
    modality = MODALITIES[scene.modality]
    shown = scene.organs
    questions = [
        (
            "Modality",
            Asked("What modality is shown in this image?", modality, {"any_of": _spellings(modality)}, "open"),
        ),
        ("Modality", yes_no("Is this a CT image?", scene.modality == "ct", "image")),
        ("Modality", yes_no("Is this an X-ray image?", scene.modality == "xray", "image")),
        (
            "Plane",
            Asked(
                "What is the plane of this image?",
                PLANES[scene.modality],
                {"any_of": [PLANES[scene.modality]]},
                "open",
            ),
        ),
        ("Organ", yes_no("Is the lung shown in the picture?", "lung" in shown, "organ")),
        ("Organ", yes_no("Is the brain shown in the picture?", "brain" in shown, "organ")),
        ("Organ", yes_no("Is the liver shown in the picture?", "liver" in shown, "organ")),
    ]
    part = {"xray": "Chest", "mri": "Head", "ct": "Abdomen"}[scene.modality]
    questions.append(
        ("Position", Asked("Which part of the body is shown in this image?", part, {"any_of": [part]}, "open"))
    )
    if scene.modality == "ct":
        for organ, side in (("liver", "Left"), ("spleen", "Right")):
            text = f"Where is the {organ} in this image, left or right?"
            questions.append(("Position", Asked(text, side, {"any_of": [side]}, "choice")))
    return questions


def _spellings(modality: str) -> list[str]:
    return [modality, "Xray", "X ray"] if modality == "X-ray" else [modality]
