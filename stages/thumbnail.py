"""Small pictures for pages that must stand alone: a JPEG in a data URI."""

import base64
import io
from pathlib import Path

SIDE = 176


def thumbnail(path: Path, side: int = SIDE) -> str | None:
    """The image, at most `side` pixels wide and high, as a data URI; None where it cannot be opened."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))  # a large JPEG is decoded at a fraction of its size
            small = image.convert("RGB")
    except OSError:
        return None
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
