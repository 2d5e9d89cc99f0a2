"""General-domain synthetic images: coloured shapes and grey scenes with known objects.

They pretrain the embedded base (`stages/pretrain.py`), and they are the phantom of CV-Bench. None is medical: the
grey scenes have bright and dark spots on blurred backgrounds, so that the base has words for what it sees on a scan,
but not for what it means.

Coordinates are fractions of a `size` x `size` image, origin in the upper left corner. Depth follows a ground plane: a
lower and larger object is nearer to the camera.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (214, 40, 40), "green": (46, 160, 67), "blue": (38, 84, 214), "yellow": (240, 200, 30),
    "purple": (140, 60, 180), "black": (25, 25, 25),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
SPOTS = ("spot", "area", "bar")
TONES = ("bright", "dark")
GRID = 4  # an image of 112 pixels is 4 x 4 image tokens


@dataclass(frozen=True)
class Thing:
    """One object of a scene, with its centre (x, y) and radius as fractions of the image size."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def row(self) -> str:
        """Upper or lower half."""
        return "upper" if self.y < 0.5 else "lower"

    @property
    def column(self) -> str:
        """Left or right half."""
        return "left" if self.x < 0.5 else "right"

    @property
    def name(self) -> str:
        """Its name in questions: colour and shape of shapes, tone and kind of spots."""
        if self.shape in SPOTS:
            return f"{self.colour} {SPOT_NAMES[self.shape]}"
        return f"{self.colour} {self.shape}"

    @property
    def full_name(self) -> str:
        """Its size and name."""
        return f"{self.size} {self.name}"

    @property
    def place(self) -> str:
        """Its quarter of the image."""
        return f"{self.row} {self.column}"


SPOT_NAMES = {"spot": "round spot", "area": "hazy area", "bar": "bar"}


@dataclass(frozen=True)
class Scene:
    """An image and its objects in reading order (upper left to lower right)."""

    image: Image.Image
    things: tuple[Thing, ...]
    grey: bool


def draw_shapes(rng: np.random.Generator, size: int = 112) -> Scene:
    """Draw a scene of 1 to 6 coloured shapes on a pale ground. No two share colour and shape."""
    cells = rng.permutation(GRID * GRID)
    count = int(rng.integers(1, 7))
    names = [(c, s) for c in COLOURS for s in SHAPES]
    if rng.random() < 0.5:  # few kinds, so that counting has something to count
        shapes = rng.choice(SHAPES, 2, replace=False)
        names = [(c, s) for c, s in names if s in shapes]
    chosen = rng.permutation(len(names))[:count]
    things = []
    for cell, which in zip(cells, chosen):
        colour, shape = names[which]
        x, y = _middle(rng, int(cell))
        large = rng.random() < 0.5
        radius = (rng.uniform(0.095, 0.125) if large else rng.uniform(0.05, 0.065)) * (0.8 + 0.4 * y)
        things.append(Thing(shape, colour, SIZES[large], x, y, radius))
    ground = tuple(int(v) for v in rng.integers(205, 256, 3))
    scale = size * 2
    image = Image.new("RGB", (scale, scale), ground)
    pen = ImageDraw.Draw(image)
    for thing in sorted(things, key=lambda t: t.y):  # nearer objects hide farther ones
        _draw_shape(pen, thing, scale, float(rng.uniform(-0.2, 0.2)))
    image = _noise(rng, image.resize((size, size), Image.BOX), 5)
    return Scene(image, _reading_order(things), grey=False)


def draw_grey(rng: np.random.Generator, size: int = 112, busy: bool = False) -> Scene:
    """Draw a grey scene: blurred large shapes as background, and 0 to 3 bright or dark spots.

    `busy` scenes have many parts, arcs and mottles in a bright body on a dark ground, and spots of any contrast,
    mostly inside the body: the model must distinguish spots from parts of the figure.
    """
    scale = size * 2
    base = int(rng.integers(0, 40) if busy else rng.integers(0, 110))
    back = Image.new("L", (scale, scale), base)
    plain = _nested_figure if not busy and rng.random() < 0.6 else _loose_figure
    figure = _busy_figure if busy else plain
    figure(rng, ImageDraw.Draw(back), scale)
    back = back.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.8, 4 if busy else 6))))
    pixels = np.asarray(back, dtype=np.float32)
    if busy:
        mottles = rng.standard_normal((14, 14)).astype(np.float32) * rng.uniform(0, 14)
        soft = Image.fromarray(mottles).resize((scale, scale), Image.BICUBIC)
        pixels = np.clip(pixels + np.asarray(soft) * (pixels > 30), 0, 255)
    things = []
    cells = rng.permutation(GRID * GRID)
    if busy:  # the middle first
        cells = np.array(sorted(cells, key=lambda c: (c in (0, 3, 12, 15)) + rng.random() * 0.9))
    for cell in cells[: int(rng.integers(0, 4)) if not busy else int(rng.choice(4, p=[0.3, 0.4, 0.2, 0.1]))]:
        x, y = _middle(rng, int(cell), 0.02 if busy else 0.28)
        bright = rng.random() < 0.6
        kind = SPOTS[int(rng.choice(3, p=[0.6, 0.25, 0.15]))]
        large = rng.random() < 0.5
        radius = float(rng.uniform(0.085, 0.13) if large else rng.uniform(0.038, 0.06))
        if kind == "area":
            radius *= 1.4
        contrast = (60, 215) if busy else None
        pixels = _draw_spot(rng, pixels, kind, bright, x * scale, y * scale, radius * scale, contrast)
        things.append(Thing(kind, TONES[0] if bright else TONES[1], SIZES[large], x, y, radius))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((size, size), Image.BOX)
    return Scene(_noise(rng, image.convert("RGB"), 6, grey=True), _reading_order(things), grey=True)


def _loose_figure(rng: np.random.Generator, pen: ImageDraw.ImageDraw, scale: int) -> None:
    """Draw ellipses, rings and lines anywhere."""
    for _ in range(int(rng.integers(0, 5))):
        w, h = rng.uniform(0.25, 0.9, 2) * scale
        x, y = rng.uniform(0.1, 0.9, 2) * scale
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        value = int(rng.integers(15, 170))
        if rng.random() < 0.35:
            pen.ellipse(box, outline=value, width=int(rng.uniform(0.02, 0.06) * scale))
        else:
            pen.ellipse(box, fill=value)
    for _ in range(int(rng.integers(0, 4))):
        x0, y0, x1, y1 = rng.uniform(0, 1, 4) * scale
        pen.line((x0, y0, x1, y1), fill=int(rng.integers(20, 170)), width=int(rng.integers(2, 7)))


def _nested_figure(rng: np.random.Generator, pen: ImageDraw.ImageDraw, scale: int) -> None:
    """Draw one large closed shape with smaller ones inside, some in mirrored pairs, and stripes."""

    def ellipse(x, y, w, h, **style):
        pen.ellipse(((x - w / 2) * scale, (y - h / 2) * scale, (x + w / 2) * scale, (y + h / 2) * scale), **style)

    grey = lambda low, high: int(rng.integers(low, high))  # noqa: E731
    x, y = rng.uniform(0.46, 0.54), rng.uniform(0.45, 0.6)
    w, h = rng.uniform(0.65, 1.0), rng.uniform(0.65, 1.2)
    ellipse(x, y, w, h, fill=grey(50, 190))
    if rng.random() < 0.5:
        ring = rng.uniform(0.03, 0.1)
        ellipse(x, y, w - ring, h - ring, fill=grey(30, 180))
    for _ in range(int(rng.integers(0, 3))):  # mirrored pairs
        dx, dy = rng.uniform(0.1, 0.28), rng.uniform(-0.2, 0.25)
        pw, ph = rng.uniform(0.16, 0.34), rng.uniform(0.2, 0.6)
        value = grey(15, 190)
        for side in (-1, 1):
            ellipse(x + side * dx, y + dy, pw, ph, fill=value)
    for _ in range(int(rng.integers(0, 3))):  # single parts beside the middle
        ellipse(
            x + rng.uniform(-0.25, 0.25), y + rng.uniform(-0.25, 0.3), *rng.uniform(0.22, 0.5, 2), fill=grey(20, 190)
        )
    if rng.random() < 0.4:  # a column
        half = rng.uniform(0.02, 0.08)
        pen.rectangle(
            ((x - half) * scale, rng.uniform(0, 0.3) * scale, (x + half) * scale, rng.uniform(0.6, 1) * scale),
            fill=grey(60, 190),
        )
    if rng.random() < 0.4:  # stripes
        gap, value = rng.uniform(0.06, 0.14), grey(40, 150)
        for k in range(1, int(1 / gap)):
            pen.line((0.15 * scale, k * gap * scale, 0.85 * scale, k * gap * scale), fill=value, width=grey(1, 5))


def _busy_figure(rng: np.random.Generator, pen: ImageDraw.ImageDraw, scale: int) -> None:
    """Draw a body with a rim, up to a dozen parts (half of them mirrored), arcs and a column."""

    def blob(x, y, w, h, value):
        """Draw an ellipse, or one with a bent outline."""
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        bend = 1 + bends[0] * np.cos(2 * angles + bends[1]) + bends[2] * np.sin(3 * angles)
        points = np.stack([x + w / 2 * bend * np.cos(angles), y + h / 2 * bend * np.sin(angles)], 1)
        pen.polygon([tuple(point) for point in points * scale], fill=int(value))

    def new_bends():
        return rng.uniform(0, 0.16), rng.uniform(0, 6), rng.uniform(-0.1, 0.1)

    bends = new_bends()
    x, y = rng.uniform(0.46, 0.54), rng.uniform(0.45, 0.62)
    w, h = rng.uniform(0.75, 1.05), rng.uniform(0.65, 1.3)
    body, rim = rng.uniform(50, 200), rng.uniform(0, 0.12)
    blob(x, y, w, h, rng.uniform(40, 230))
    blob(x, y, w - rim, h - rim, body)
    for _ in range(int(rng.integers(1, 6))):
        bends = new_bends()
        value = rng.uniform(10, 215)
        dx, dy = rng.uniform(0, 0.32), rng.uniform(-0.32, 0.36)
        pw, ph = rng.uniform(0.22, 0.45), rng.uniform(0.22, 0.7)
        if rng.random() < 0.5:
            blob(x - dx, y + dy, pw, ph, value)
        blob(x + dx, y + dy, pw, ph, value)
    if rng.random() < 0.5:
        half, value = rng.uniform(0.01, 0.09), int(rng.uniform(20, 220))
        top, bottom = rng.uniform(0, 0.4), rng.uniform(0.6, 1)
        box = ((x - half) * scale, top * scale, (x + half) * scale, bottom * scale)
        pen.rectangle(box, fill=value)
    if rng.random() < 0.5:
        bow, gap = rng.uniform(-0.3, 0.3), rng.uniform(0.06, 0.14)
        value, width = int(rng.uniform(30, 180)), int(rng.integers(1, 6))
        for level in np.arange(0.1, 0.9, gap):
            box = (0.1 * scale, level * scale, 0.9 * scale, (level + max(abs(bow), 0.02)) * scale)
            pen.arc(box, 180 if bow > 0 else 0, 360 if bow > 0 else 180, fill=value, width=width)


def _middle(rng: np.random.Generator, cell: int, margin: float = 0.28) -> tuple[float, float]:
    """Sample a point of a grid cell, at least `margin` cells from its border."""
    row, column = divmod(cell, GRID)
    jitter = rng.uniform(margin, 1 - margin, 2)
    return float((column + jitter[0]) / GRID), float((row + jitter[1]) / GRID)


def _reading_order(things: list[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda t: (int(t.y * GRID), t.x)))


def _draw_shape(pen: ImageDraw.ImageDraw, thing: Thing, scale: int, turn: float) -> None:
    x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
    fill = COLOURS[thing.colour]
    if thing.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        return
    if thing.shape == "square":
        angles, radii = np.pi / 4 + np.arange(4) * np.pi / 2, np.full(4, r * 1.25)
    elif thing.shape == "triangle":
        angles, radii = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3, np.full(3, r * 1.35)
    elif thing.shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, r * 1.4, r * 0.55)
    else:
        arm = 0.3
        corners = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1), (-arm, 1),
                   (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]  # fmt: skip
        pen.polygon([(x + a * r * 1.15, y + b * r * 1.15) for a, b in corners], fill=fill)
        return
    pen.polygon([(x + q * np.cos(a + turn), y + q * np.sin(a + turn)) for a, q in zip(angles, radii)], fill=fill)


def _draw_spot(
    rng,
    pixels: np.ndarray,
    kind: str,
    bright: bool,
    x: float,
    y: float,
    r: float,
    contrast: tuple[int, int] | None = None,
) -> np.ndarray:
    height, width = pixels.shape
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    u = (xx - x) * np.cos(turn) + (yy - y) * np.sin(turn)
    v = -(xx - x) * np.sin(turn) + (yy - y) * np.cos(turn)
    if kind == "bar":
        distance = np.maximum(np.abs(u) / (1.5 * r), np.abs(v) / (0.4 * r))
    else:
        distance = np.hypot(u / r, v / (r * rng.uniform(0.8, 1.0)))
    strength = np.exp(-(distance**2)) if kind == "area" else 1 / (1 + np.exp(np.minimum((distance - 1) * 12, 50)))
    around = float(pixels[int(y), int(x)])
    target = min(255.0, max(around + rng.uniform(70, 110), 170)) if bright else max(0.0, min(around - 70, 30))
    if contrast is not None and bright:
        target = min(255.0, max(around + rng.uniform(*contrast), 120))
        if target - around < 50:  # on bright parts: darken what is around
            pixels = pixels - np.exp(-((np.hypot(xx - x, yy - y) / (2.5 * r)) ** 2)) * 0.6 * around
    if not bright and around < 90:  # a dark spot needs something light around it
        pixels = pixels + np.exp(-((np.hypot(xx - x, yy - y) / (3 * r)) ** 2)) * (130 - around)
        target = 15.0
    return pixels * (1 - strength) + target * strength


def _noise(rng: np.random.Generator, image: Image.Image, sigma: float, grey: bool = False) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    shape = (*pixels.shape[:2], 1) if grey else pixels.shape
    noise = rng.standard_normal(shape, dtype=np.float32) * sigma
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


# Questions in the manner of CV-Bench ------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question about a scene; `reason` is the reasoning before the answer."""

    task: str
    text: str
    choices: tuple[str, ...]
    answer: str
    reason: str

    @property
    def prompt(self) -> str:
        """The question with its lettered options, as in CV-Bench."""
        if not self.choices:
            return self.text
        options = "\n".join(f"({letter}) {choice}" for letter, choice in zip("ABCDEF", self.choices))
        return f"{self.text} Select from the following choices.\n{options}"


def count_question(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the number of objects of one shape or colour."""
    things = scene.things
    if scene.grey or not things:
        return None
    by_shape = rng.random() < 0.65
    groups = sorted({t.shape if by_shape else t.colour for t in things})
    group = groups[int(rng.integers(len(groups)))]
    if rng.random() < 0.08:
        group = str(rng.choice([g for g in (SHAPES if by_shape else list(COLOURS)) if g not in groups] or groups))
    found = [t for t in things if (t.shape if by_shape else t.colour) == group]
    noun = f"{group if group != 'cross' else 'crosse'}s" if by_shape else f"{group} objects"
    answer = len(found)
    others = [n for n in range(max(0, answer - 2), answer + 3) if n != answer]
    options = rng.permutation(
        [answer, *rng.choice(others, 3, replace=False)] if len(others) > 2 else [answer, *others]
    )
    listed = ", ".join(f"{t.name} {t.place}" for t in found) if found else "nothing"
    return Question(
        "Count", f"How many {noun} are in the image?", tuple(str(o) for o in options), str(answer), f"{listed}."
    )


def relation_question(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask for the position of one object relative to another."""
    pair = _pair(rng, scene)
    if pair is None:
        return None
    a, b = pair
    dx, dy = a.x - b.x, a.y - b.y
    sideways = abs(dx) > abs(dy)
    if max(abs(dx), abs(dy)) < 0.15:
        return None
    options = ("left", "right") if sideways else ("above", "below")
    answer = options[int((dx if sideways else dy) > 0)]
    if rng.random() < 0.5:
        options = options[::-1]
    reason = f"The {a.name} is {a.place}, the {b.name} is {b.place}."
    text = f"Where is the {a.name} located with respect to the {b.name}?"
    return Question("Relation", text, options, answer, reason)


def depth_question(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask which of two objects is closer to the camera."""
    pair = _pair(rng, scene)
    if pair is None or abs(pair[0].y - pair[1].y) < 0.2:
        return None
    a, b = pair
    near = a if a.y > b.y else b
    reason = f"The {a.name} is {a.place}, the {b.name} is {b.place}."
    return Question(
        "Depth", "Which object is closer to the camera taking this photo?", (a.name, b.name), near.name, reason
    )


def distance_question(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask which of two objects is closer to a third."""
    if scene.grey or len(scene.things) < 3:
        return None
    a, b, c = (scene.things[i] for i in rng.permutation(len(scene.things))[:3])
    to_b, to_c = np.hypot(a.x - b.x, a.y - b.y), np.hypot(a.x - c.x, a.y - c.y)
    if abs(to_b - to_c) < 0.25:
        return None
    near = b if to_b < to_c else c
    reason = f"The {a.name} is {a.place}, the {b.name} is {b.place}, the {c.name} is {c.place}."
    text = f"Which object is closer to the {a.name}?"
    return Question("Distance", text, (b.name, c.name), near.name, reason)


def _pair(rng: np.random.Generator, scene: Scene) -> tuple[Thing, Thing] | None:
    if scene.grey or len(scene.things) < 2:
        return None
    first, second = rng.permutation(len(scene.things))[:2]
    return scene.things[first], scene.things[second]


TASKS = {
    "Count": count_question,
    "Relation": relation_question,
    "Depth": depth_question,
    "Distance": distance_question,
}


def cv_bench_rows(seed: int, count: int, size: int = 112) -> list[tuple[Image.Image, dict]]:
    """Return `count` rows, a quarter per task, as (image, columns of CV-Bench without `filename`)."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        task = list(TASKS)[index % len(TASKS)]
        question = None
        while question is None:
            scene = draw_shapes(rng, size)
            question = TASKS[task](rng, scene)
        row = {
            "idx": index,
            "type": "2D" if task in ("Count", "Relation") else "3D",
            "task": task,
            "question": question.text,
            "choices": list(question.choices),
            "answer": f"({'ABCDEF'[question.choices.index(question.answer)]})",
            "prompt": question.prompt,
            "source": "Omni3D" if task in ("Depth", "Distance") else ("ADE20K", "COCO")[index // 4 % 2],
        }
        rows.append((scene.image, row))
    return rows
