"""Synthetic images that several tests of data sets use."""

from pathlib import Path

from PIL import Image


def draw_bars(path: Path, number: int, quality: int = 90) -> None:
    """Write an image of bars; no two numbers look alike, and another quality gives other bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (64, 64))
    for k in range(8):
        height = (number * 37 + k * k * (number + 3) * 11) % 64
        image.paste(255, (8 * k, 0, 8 * k + 8, height))
    image.save(path, quality=quality)
