"""The DICOM file that an image was made of, so that the page can window its values.

A record names the PNG that models see (`data/curated/pictures/<hash>.png`), and never a DICOM file, whose name may
identify a person. So the files are converted again until each PNG has its file. What was found is kept in
`.cache/annotating/dicom.json`, which is in neither git nor DVC and which only this user can read.
"""

import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import click

from rarl.cache import CACHE
from rarl.data.dicom import to_png
from rarl.data.release import is_dicom
from rarl.processes.status import publish
from rarl.records import UNPACKED, read_json

KEPT = CACHE / "annotating/dicom.json"


def dicom_files(root: str | Path, images: Collection[str]) -> dict[str, Path]:
    """Map images, as records name them, to the DICOM files in `own/` below `root` that they were made of."""
    left = {Path(image).stem: image for image in images if image.startswith(UNPACKED)}
    kept, found, looking = {}, {}, False
    with suppress(OSError, ValueError):  # missing, or damaged: made again
        kept = read_json(KEPT)
    try:
        for path in sorted((Path(root) / "own").rglob("*")):
            if not left:
                break
            if not (path.is_file() and is_dicom(path)):
                continue
            about = path.stat()
            key = f"{path} {about.st_size} {about.st_mtime_ns}"
            if key not in kept:
                if not looking:
                    click.echo("Looking for the DICOM files of the images, once ...")
                looking, kept[key] = True, _stem(path)
            if image := left.pop(kept[key], None):
                found[image] = path
    finally:
        if looking:
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            publish(KEPT, json.dumps(kept))
    return found


def _stem(path: Path) -> str | None:
    """The name, without its suffix, under which `rarl.data.release.Images` unpacks a file; None if it is unusable."""
    try:
        return hashlib.sha256(to_png(path)).hexdigest()[:24]
    except ValueError:
        return None
