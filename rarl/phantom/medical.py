"""Draw chest X-ray, brain MRI and abdominal CT phantoms with known findings.

An image is a float array of grey values in [0, 1], built from soft-edged ellipses on a grid whose x and y run from 0
to 1. All of it (anatomy, jitter, findings) comes from one `numpy.random.Generator`, so that a seed reproduces the
bytes.

**Left and right mean the left and right of the image**, in every question and text about a phantom; radiologists name
the patient's side. So the liver is on the left, as in a CT image.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rarl.phantom.words import DISEASES, ORGANS

PhantomModality = Literal["xray", "mri", "ct"]
Side = Literal["left", "right", ""]
Level = Literal["upper", "lower", ""]


@dataclass(frozen=True)
class Finding:
    """One abnormality.

    Attributes:
        name: Disease, in the wording of the answers (`Brain Tumor`).
        organ: Affected organ, lower case.
        side: Side of the image; empty if the finding has none.
        level: Upper or lower part of the organ; empty if it has none.
    """

    name: str
    organ: str
    side: Side = ""
    level: Level = ""


@dataclass(frozen=True)
class Style:
    """The acquisition of an image: the same anatomy on another machine.

    Attributes:
        width, height: Pixels.
        gamma: Exponent on the grey values; below 1 is brighter.
        noise: Standard deviation of the pixel noise, of a full scale of 1.
        zoom: Above 1 shows the anatomy smaller, with more border.
        floor, ceiling: Grey values of black and white.
    """

    width: int = 112
    height: int = 112
    gamma: float = 1.0
    noise: float = 0.02
    zoom: float = 1.0
    floor: float = 0.0
    ceiling: float = 1.0


@dataclass
class Scene:
    """One phantom and its findings.

    Attributes:
        pixels: uint8 array, (height, width).
        modality: Its modality.
        findings: All abnormalities, largest first; empty for a normal image.
    """

    pixels: np.ndarray
    modality: PhantomModality
    findings: list[Finding] = field(default_factory=list)

    @property
    def organs(self) -> tuple[str, ...]:
        """The visible organs."""
        return ORGANS[self.modality]


def choose_findings(rng: np.random.Generator, modality: PhantomModality) -> list[Finding]:
    """Sample the findings of an abnormal image: one, sometimes two. An effusion is always at the bottom."""
    side, level = str(rng.choice(["left", "right"])), str(rng.choice(["upper", "lower"]))
    if modality == "mri":
        tumor = Finding("Brain Tumor", "brain", side, level)
        edema = Finding("Brain Edema", "brain", side, level)
        return [[tumor], [edema], [tumor, edema]][rng.integers(3)]
    if modality == "ct":
        if rng.random() < 0.6:
            return [Finding("Liver Cancer", "liver", "left", level)]
        return [Finding("Kidney Cancer", "kidney", side)]
    name = str(rng.choice(DISEASES["xray"]))
    first = _chest_finding(name, side, level)
    if rng.random() > 0.2:
        return [first]
    # A second finding is in the other lung, so that both stay visible.
    other = str(rng.choice([disease for disease in DISEASES["xray"] if disease != name]))
    opposite = "left" if side == "right" else "right"
    second = _chest_finding(other, opposite, str(rng.choice(["upper", "lower"])))
    return [first, second]


def _chest_finding(name: str, side: Side, level: Level) -> Finding:
    if name == "Cardiomegaly":
        return Finding(name, "heart")
    return Finding(name, "lung", side, "lower" if name == "Effusion" else level)


def draw(rng: np.random.Generator, modality: PhantomModality, findings: list[Finding], style: Style) -> Scene:
    """Draw one image with exactly these findings."""
    canvas = Canvas(rng, style)
    {"xray": _chest, "mri": _brain, "ct": _abdomen}[modality](canvas, findings)
    return Scene(canvas.finish(), modality, list(findings))


class Canvas:
    """Grey values on a grid, with the brushes for the anatomy."""

    def __init__(self, rng: np.random.Generator, style: Style):
        self.rng, self.style = rng, style
        side = min(style.width, style.height)
        zoom = style.zoom * rng.uniform(0.97, 1.03)
        shift_x, shift_y = rng.uniform(-0.02, 0.02, 2)
        # Unit coordinates span the shorter side, so that a wide image does not stretch circles.
        self.y, self.x = np.mgrid[0 : style.height, 0 : style.width].astype(float)
        self.x = ((self.x + 0.5 - style.width / 2) / side) * zoom + 0.5 + shift_x
        self.y = ((self.y + 0.5 - style.height / 2) / side) * zoom + 0.5 + shift_y
        self.pixel = zoom / side
        self.grey = np.zeros((style.height, style.width))

    def ellipse(self, x, y, rx, ry, angle=0.0, soft=1.0) -> np.ndarray:
        """Return a mask in [0, 1] of an ellipse whose edge is `soft` pixels wide."""
        cos, sin = np.cos(angle), np.sin(angle)
        u = ((self.x - x) * cos + (self.y - y) * sin) / rx
        v = (-(self.x - x) * sin + (self.y - y) * cos) / ry
        distance = (np.hypot(u, v) - 1) * min(rx, ry)
        return 1 / (1 + np.exp(np.clip(distance / (0.5 * soft * self.pixel), -40, 40)))

    def haze(self, x, y, rx, ry) -> np.ndarray:
        """Return a mask of a mottled cloud without an edge: a Gaussian with a flat middle."""
        distance = np.hypot((self.x - x) / rx, (self.y - y) / ry)
        return np.exp(-(distance**3)) * (1 + 0.25 * self.texture(0.04))

    def texture(self, scale: float) -> np.ndarray:
        """Return a smooth random field with a standard deviation of about 1; `scale` is its grain."""
        columns = max(2, round(1 / scale))
        coarse = self.rng.standard_normal((columns + 2, columns + 2))
        fx = np.clip((self.x + 0.2) / 1.4, 0, 0.999) * columns
        fy = np.clip((self.y + 0.2) / 1.4, 0, 0.999) * columns
        column, row = fx.astype(int), fy.astype(int)
        # Smoothstep between grid points, so that the grid does not show.
        tx, ty = (t * t * (3 - 2 * t) for t in (fx - column, fy - row))
        top = coarse[row, column] * (1 - tx) + coarse[row, column + 1] * tx
        bottom = coarse[row + 1, column] * (1 - tx) + coarse[row + 1, column + 1] * tx
        return top * (1 - ty) + bottom * ty

    def paint(self, mask: np.ndarray, value: float) -> None:
        """Set the grey value under the mask."""
        self.grey = self.grey * (1 - mask) + value * mask

    def add(self, mask: np.ndarray, amount: float) -> None:
        """Brighten (or darken) under the mask."""
        self.grey = self.grey + amount * mask

    def finish(self) -> np.ndarray:
        """Return the image as 8-bit grey values, with the style's contrast and noise."""
        grey = np.clip(self.grey * self.rng.uniform(0.94, 1.06), 0, 1) ** self.style.gamma
        grey = self.style.floor + grey * (self.style.ceiling - self.style.floor)
        grey = grey + self.rng.normal(0, self.style.noise, grey.shape)
        return np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)


def _spot(canvas: Canvas, x: float, y: float, radius: float, value: float) -> None:
    """A round spot, never smaller than 4.75 pixels in radius: an image token is 28 pixels wide."""
    radius = max(radius, 4.75 * canvas.pixel)
    stretch = canvas.rng.uniform(0.92, 1.08)
    canvas.paint(canvas.ellipse(x, y, radius * stretch, radius / stretch), value)


def _chest(canvas: Canvas, findings: list[Finding]) -> None:
    rng = canvas.rng
    canvas.paint(canvas.ellipse(0.5, 0.62, 0.47, 0.62, soft=3), 0.5)
    canvas.paint(canvas.ellipse(0.5, 0.02, 0.12, 0.2, soft=4), 0.5)
    width, height = 0.165 * rng.uniform(0.94, 1.06), 0.31 * rng.uniform(0.95, 1.05)
    middle = 0.46 + rng.uniform(-0.015, 0.015)
    centre = {"left": 0.285 + rng.uniform(-0.01, 0.01), "right": 0.715 + rng.uniform(-0.01, 0.01)}
    lung = {}
    for side, tilt in (("left", 0.16), ("right", -0.16)):
        lung[side] = canvas.ellipse(centre[side], middle, width, height, tilt, soft=2.5)
        canvas.paint(lung[side], 0.13)
    lungs = lung["left"] + lung["right"]
    # Ribs: bright arcs, closer at the top; only a little brighter than the lung.
    for rib in range(7):
        top = 0.16 + 0.09 * rib
        arc = canvas.y - top - 0.35 * (np.abs(canvas.x - 0.5) - 0.22) ** 2
        canvas.add(np.exp(-((arc / 0.012) ** 2)) * lungs, 0.07)
    canvas.add(canvas.texture(0.05) * lungs, 0.02)
    for side in ("left", "right"):  # vessels at the root of each lung
        x = 0.5 + (centre[side] - 0.5) * 0.45
        canvas.add(canvas.haze(x, middle, 0.05, 0.1) * lung[side], 0.16)
    canvas.paint(canvas.ellipse(0.5, 0.45, 0.06, 0.75, soft=4), 0.72)
    for bone in range(9):
        canvas.add(canvas.ellipse(0.5, 0.05 + 0.1 * bone, 0.045, 0.035, soft=2), 0.06)

    large_heart = any(finding.name == "Cardiomegaly" for finding in findings)
    reach = rng.uniform(0.215, 0.24) if large_heart else rng.uniform(0.115, 0.13)
    heart_x = 0.5 + (0.02 if large_heart else 0.035) + rng.uniform(-0.008, 0.008)
    heart = canvas.ellipse(heart_x, 0.63, reach, 0.17 if large_heart else 0.135, 0.35, 2.5)
    canvas.paint(heart, 0.76)
    # The diaphragm is a dome that closes each lung from below.
    for side in ("left", "right"):
        canvas.paint(canvas.ellipse(centre[side], 0.97, 0.24, 0.22, soft=3), 0.66)

    for finding in findings:
        if finding.organ == "lung":
            _lung_finding(canvas, finding, lung[finding.side], heart, (centre[finding.side], middle, width, height))


def _lung_finding(
    canvas: Canvas, finding: Finding, lung: np.ndarray, heart: np.ndarray, box: tuple[float, float, float, float]
) -> None:
    """Draw one finding into a lung; `box` is the lung's centre and radii."""
    rng, (centre, middle, width, height) = canvas.rng, box
    outward = -1 if finding.side == "left" else 1
    x = centre + outward * rng.uniform(0.0, 0.03)
    y = middle + (rng.uniform(-0.15, -0.09) if finding.level == "upper" else rng.uniform(0.08, 0.14))
    if finding.name == "Pneumonia":
        cloud = canvas.haze(x, y, 0.14 * rng.uniform(0.95, 1.1), 0.135 * rng.uniform(0.95, 1.1))
        canvas.add(cloud * lung * (1 - heart), 0.46)
    elif finding.name == "Nodule":
        _spot(canvas, x, y, rng.uniform(0.045, 0.055), 0.97)
    elif finding.name == "Mass":
        _spot(canvas, x, y, rng.uniform(0.095, 0.11), 0.95)
    elif finding.name == "Effusion":
        line = 0.585 + rng.uniform(-0.03, 0.02)
        flat = 1 / (1 + np.exp(np.clip((line - canvas.y) / (0.5 * canvas.pixel), -40, 40)))
        wide = canvas.ellipse(centre, middle, width * 1.08, height * 1.06, -0.16 * outward, 2)
        canvas.paint(flat * wide * (1 - heart), 0.92)


def _brain(canvas: Canvas, findings: list[Finding]) -> None:
    rng = canvas.rng
    rx, ry = 0.37 * rng.uniform(0.96, 1.04), 0.44 * rng.uniform(0.97, 1.03)
    canvas.paint(canvas.ellipse(0.5, 0.5, rx + 0.055, ry + 0.045, soft=2), 0.72)
    canvas.paint(canvas.ellipse(0.5, 0.5, rx + 0.025, ry + 0.02, soft=2), 0.05)
    brain = canvas.ellipse(0.5, 0.5, rx, ry, soft=2)
    canvas.paint(brain, 0.40)
    white = canvas.ellipse(0.5, 0.5, rx * 0.78, ry * 0.8, soft=8) * (0.8 + 0.2 * canvas.texture(0.09))
    canvas.add(white, 0.1)
    # Folds: dark wavy lines near the edge.
    angle = np.arctan2(canvas.y - 0.5, canvas.x - 0.5)
    radius = np.hypot((canvas.x - 0.5) / rx, (canvas.y - 0.5) / ry)
    folds = np.clip(np.sin(26 * angle + 4 * canvas.texture(0.2)) - 0.2, 0, 1)
    canvas.add(folds * brain * np.clip((radius - 0.78) / 0.15, 0, 1), -0.2)
    canvas.add(np.exp(-(((canvas.x - 0.5) / 0.008) ** 2)) * brain, -0.18)
    spread = rng.uniform(0.9, 1.15)
    for direction in (-1, 1):  # ventricles
        x = 0.5 + direction * 0.05 * spread
        canvas.paint(canvas.ellipse(x, 0.44, 0.024 * spread, 0.085, -direction * 0.3, 2), 0.12)
        canvas.paint(canvas.ellipse(x + direction * 0.015, 0.58, 0.02 * spread, 0.06, direction * 0.5, 2), 0.12)
    canvas.add(canvas.texture(0.03) * brain, 0.02)

    place = None
    # The cloud is drawn first: a tumor is in the middle of its edema.
    for finding in sorted(findings, key=lambda finding: finding.name != "Brain Edema"):
        outward = -1 if finding.side == "left" else 1
        if place is None:
            y = rng.uniform(-0.19, -0.13) if finding.level == "upper" else rng.uniform(0.13, 0.19)
            place = 0.5 + outward * rng.uniform(0.155, 0.195), 0.5 + y
        if finding.name == "Brain Edema":
            cloud = canvas.haze(*place, 0.17 * rng.uniform(0.95, 1.1), 0.17 * rng.uniform(0.95, 1.1))
            canvas.add(cloud * brain, 0.34)
        else:
            _spot(canvas, *place, rng.uniform(0.06, 0.085), 1.0)


def _abdomen(canvas: Canvas, findings: list[Finding]) -> None:
    rng = canvas.rng
    rx, ry = 0.46 * rng.uniform(0.97, 1.02), 0.36 * rng.uniform(0.96, 1.04)
    canvas.paint(canvas.ellipse(0.5, 0.5, rx, ry, soft=2), 0.42)
    canvas.paint(canvas.ellipse(0.5, 0.5, rx - 0.012, ry - 0.012, soft=2), 0.2)
    inside = canvas.ellipse(0.5, 0.5, rx - 0.045, ry - 0.04, soft=2)
    canvas.paint(inside, 0.42)
    canvas.paint(canvas.ellipse(0.5, 0.48, rx - 0.075, ry - 0.07, soft=2), 0.24)
    # Bowel in front, with some gas.
    for _ in range(7):
        x, y = rng.uniform(0.48, 0.76), rng.uniform(0.30, 0.44)
        canvas.paint(canvas.ellipse(x, y, 0.045, 0.035, rng.uniform(0, 3), 2) * inside, rng.uniform(0.36, 0.46))
    liver_x, liver_y = 0.29 + rng.uniform(-0.01, 0.01), 0.44 + rng.uniform(-0.012, 0.012)
    liver = np.maximum(
        canvas.ellipse(liver_x, liver_y, 0.185, 0.2, 0.1, 2),
        canvas.ellipse(liver_x + 0.16, liver_y - 0.11, 0.15, 0.075, 0.15, 2),
    )
    liver = liver * canvas.ellipse(0.5, 0.48, rx - 0.065, ry - 0.06, soft=2)
    canvas.paint(liver, 0.60)
    canvas.add(canvas.texture(0.04) * liver, 0.02)
    canvas.paint(canvas.ellipse(0.83 + rng.uniform(-0.01, 0.01), 0.5, 0.065, 0.12, -0.25, 2), 0.66)
    canvas.paint(canvas.ellipse(0.5, 0.70, 0.075, 0.065, soft=2), 0.95)
    canvas.paint(canvas.ellipse(0.5, 0.79, 0.03, 0.05, soft=2), 0.9)
    canvas.paint(canvas.ellipse(0.5, 0.705, 0.04, 0.035, soft=3), 0.75)
    canvas.paint(canvas.ellipse(0.525, 0.59, 0.032, 0.032, soft=1.5), 0.85)
    kidney = {}
    for side, direction in (("left", -1), ("right", 1)):
        x, y = (0.5 + direction * (0.19 + rng.uniform(-0.008, 0.008)), 0.675 + rng.uniform(-0.01, 0.01))
        kidney[side] = (x, y)
        canvas.paint(canvas.ellipse(x, y, 0.078, 0.095, direction * 0.35, 2), 0.86)
        canvas.paint(canvas.ellipse(x - direction * 0.03, y, 0.022, 0.032, direction * 0.35, 2), 0.6)

    for finding in findings:
        if finding.name == "Liver Cancer":
            x = liver_x + rng.uniform(-0.06, 0.03)
            y = liver_y + (rng.uniform(-0.09, -0.06) if finding.level == "upper" else rng.uniform(0.05, 0.08))
            _spot(canvas, x, y, rng.uniform(0.065, 0.085), 0.1)
        else:
            x, y = kidney[finding.side]
            outward = -1 if finding.side == "left" else 1
            _spot(canvas, x + outward * 0.015, y + rng.uniform(-0.03, 0.03), rng.uniform(0.06, 0.07), 0.08)
