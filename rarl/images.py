"""Opening an image file, for models and for pages: the one way, so that both show the same image."""

import base64
import io
from pathlib import Path

SIDE = 176


def open_rgb(file: Path | io.BytesIO):
    """The image in RGB (CMYK, grey and palette images are converted), upright.

    Raises:
        OSError: it cannot be opened.
    """
    from PIL import Image

    with Image.open(file) as image:
        return upright(image).convert("RGB")


def upright(image):
    """The image turned as its EXIF orientation says, as `datasets` and `transformers` load it."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing; Pillow raises nearly everything on it
        return image


def thumbnail(path: Path, side: int = SIDE) -> str | None:
    """The image, at most `side` pixels wide and high, as a JPEG in a data URI; None where it cannot be opened."""
    from PIL import Image

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
