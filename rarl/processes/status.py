"""What runs now, for `rarl watch`: small files in `.cache/live/`.

The folder is in neither git nor DVC, and only this user can read it, because completions may tell about patients.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rarl.cache import CACHE
from rarl.processes.launch import STARTED
from rarl.processes.stopping import Stopped

LIVE = CACHE / "live"
#: Name of the file about the stage that runs, or ran last. Each training has a file of its own name.
STAGE = "stage"


def publish(path: Path, text: str) -> None:
    """Replace a file, which only this user can read, in one step; the disk is not waited for.

    A file that cannot be written is left out: nothing depends on it.
    """
    with suppress(OSError):
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with open(partial, "w", encoding="utf-8", opener=_private) as file:
            file.write(text)
        os.replace(partial, path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_status(name: str, status: dict) -> None:
    """Write a file of the live folder."""
    with suppress(OSError):
        LIVE.mkdir(mode=0o700, parents=True, exist_ok=True)
    publish(LIVE / f"{name}.json", json.dumps(status))


def read_status(name: str, root: Path = Path()) -> dict:
    """Read a file of a project's live folder; empty where there is none."""
    try:
        return json.loads((root / LIVE / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def running(stage: str, *items: str) -> Iterator[None]:
    """Publish that a stage runs, for example `infer` of the item `base`, and how it ends."""
    if os.environ.get(STARTED):  # one of several processes, whose parent publishes it
        yield
        return
    about = {"stage": stage, "items": items, "pid": os.getpid(), "started": time.time()}
    write_status(STAGE, about)
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    except (Stopped, KeyboardInterrupt):
        outcome = "stopped"
        raise
    finally:
        write_status(STAGE, about | {"ended": time.time(), "outcome": outcome})
