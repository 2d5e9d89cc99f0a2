"""How far the completions of a group differ in accuracy, row by row: for what `rarl annotate` puts first.

Each training records it in `.cache/training/<key>/groups.jsonl` (`rarl.training.live.Groups`), under hashes of
the rows. No weight depends on it.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rarl.cache import CACHE

NAME = "groups.jsonl"
#: Hash of a row (`row_key`), and the standard deviation of the accuracy reward in its group.
Group = tuple[str, float]


def row_key(image: str, question: str, choices: Sequence[str], answers: Sequence[str]) -> str:
    """Key of a training row by what a training knows of it."""
    return hashlib.sha256(json.dumps([image, question, [*choices], [*answers]]).encode()).hexdigest()[:16]


def forget_after(step: int, path: Path) -> None:
    """Drop the steps that a resumed run takes again, and a line that a kill cut off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        path.write_text("".join(kept), encoding="utf-8")


def add(step: int, groups: Sequence[Group], path: Path) -> None:
    """Append the groups of a step."""
    if groups:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "groups": groups}) + "\n")


def spreads() -> dict[str, list[float]]:
    """Key of a row -> the standard deviations of its groups, in all trainings of this folder."""
    found = defaultdict(list)
    for path in sorted((CACHE / "training").glob(f"*/{NAME}")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            for key, spread in json.loads(line)["groups"] if line.endswith("\n") else ():
                found[key].append(spread)
    return found
