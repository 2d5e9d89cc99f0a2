"""Draw microscope images of stained tissue: cells with dark nuclei on a pink ground.

They differ from everything in the training set, as Path-VQA differs from SLAKE.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rarl.phantom.questions import Asked, yes_no


@dataclass
class Tissue:
    """One piece of tissue.

    Attributes:
        image: RGB image.
        cells: Number of cells with a nucleus.
        round: The cells are round; otherwise they are long, like bars.
        large: The cells are large.
        purple: The ground is purple; otherwise it is pink.
    """

    image: Image.Image
    cells: int
    round: bool
    large: bool
    purple: bool


def draw_tissue(rng: np.random.Generator, size: int) -> Tissue:
    """Draw 2 to 6 cells, none touching another."""
    cells, is_round, large, purple = (int(rng.integers(2, 7)), *(bool(v) for v in rng.random(3) < 0.5))
    scale = size * 2
    ground = np.array([205, 165, 225] if purple else [245, 195, 210]) + rng.integers(-8, 9, 3)
    image = Image.new("RGB", (scale, scale), tuple(int(v) for v in ground))
    pen = ImageDraw.Draw(image)
    for _ in range(60):  # fibres of the tissue
        x, y = rng.uniform(0, scale, 2)
        dx, dy = rng.uniform(-0.15, 0.15, 2) * scale
        shade = tuple(int(v) for v in ground - rng.integers(8, 22))
        pen.line((x, y, x + dx, y + dy), fill=shade, width=int(rng.integers(2, 6)))
    image = image.filter(ImageFilter.GaussianBlur(2))
    pen = ImageDraw.Draw(image)
    radius = (0.115 if large else 0.065) * scale
    for place in rng.permutation(9)[:cells]:
        row, column = divmod(int(place), 3)
        x, y = ((value + 0.5 + rng.uniform(-0.1, 0.1)) / 3 * scale for value in (column, row))
        wide, high = (radius, radius) if is_round else (radius * 1.35, radius * 0.5)
        angle = float(rng.uniform(0, np.pi))
        _rotated_ellipse(pen, x, y, wide, high, angle, (190, 130, 190))
        _rotated_ellipse(pen, x, y, wide * 0.6, high * 0.6, angle, (75, 30, 110))
    pixels = np.asarray(image.resize((size, size), Image.BOX), dtype=float)
    pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255)
    return Tissue(Image.fromarray(pixels.astype(np.uint8)), cells, is_round, large, purple)


def _rotated_ellipse(pen, x: float, y: float, wide: float, high: float, angle: float, fill) -> None:
    turn = np.linspace(0, 2 * np.pi, 40)
    u, v = wide * np.cos(turn), high * np.sin(turn)
    across, down = (x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle))
    pen.polygon(list(zip(across, down)), fill=fill)


def tissue_questions(rng: np.random.Generator, tissue: Tissue, count: int) -> list[Asked]:
    """Sample `count` rows about one image, in lower case as in Path-VQA.

    "what is present?" may occur twice with two different answers, as there.
    """
    pool = [
        yes_no("are round cells present?", tissue.round, "image"),
        yes_no("are the cells large?", tissue.large, "image"),
        yes_no("is the tissue purple?", tissue.purple, "image"),
        yes_no("is the tissue pink?", not tissue.purple, "image"),
        yes_no(f"are {tissue.cells} cells seen in this picture?", True, "image"),
        yes_no(f"are {2 + (tissue.cells - 1) % 5} cells seen in this picture?", False, "image"),
    ]
    number = {"any_of": [str(tissue.cells), WORDS[tissue.cells]]}
    counts = Asked("how many cells are there?", str(tissue.cells), number, "count")
    present = {"any_of": ["cells", "tissue"]}
    answers = [Asked("what is present?", answer, present, "present") for answer in present["any_of"]]
    asked = [pool[i] for i in rng.permutation(len(pool))[: max(1, count - 1)]]
    if count > 1:
        asked.append(counts)
    if count > 3:
        asked[-3:-1] = answers
    return asked[:count]


WORDS = dict(enumerate(["zero", "one", "two", "three", "four", "five", "six"]))
