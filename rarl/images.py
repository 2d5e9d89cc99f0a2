"""Open image files in one way for models and pages, so that both show the same image."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

#: Larger images, DICOM or not, are refused: they would fill the memory (20,000 x 20,000 is 1.2 GB in RGB).
MAX_PIXELS = 100_000_000
SIDE = 176


def open_rgb(file: Path | io.BytesIO):
    """Open an image upright and in RGB (CMYK, grey and palette images are converted).

    Raises:
        OSError: It cannot be opened.
    """
    with Image.open(file) as image:
        return upright(image).convert("RGB")


def upright(image):
    """Rotate an image by its EXIF orientation, as `datasets` and `transformers` do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises nearly everything on damaged EXIF data
        return image


def thumbnail(path: Path, side: int = SIDE) -> str | None:
    """Return the image, at most `side` pixels wide and high, as a JPEG data URI, or None if it cannot be opened."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))  # a large JPEG is decoded at a fraction of its size
            small = upright(image).convert("RGB")
    except OSError:
        return None
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
