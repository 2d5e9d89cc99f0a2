"""The page of single cases: every question of every test set with image, reference, answers and verdicts.

One file that needs no network. The cases of a test set are gzipped JSON in base64, in parts that the script unpacks
when it shows or searches them, so that a hundred thousand cases open as fast as a hundred. The text of models, data
sets and judges is never part of the page's markup, and the script inserts it as text only. A content policy lets the
browser run that script and no other.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rarl.cache import CACHE
from rarl.images import thumbnail
from rarl.records import Prediction, Verdict, atomic_file, batches, image_file
from rarl.reporting.inputs import Run
from rarl.reporting.tables import SETS

#: Cases of a part.
PART = 1000
#: Images of the page, in bytes. The rest are left out; no text is.
MOST_PICTURES = 24_000_000
#: Longest side of an image in pixels: the first at which all of them fit, or the last.
SIDES = (512, 224)
OPENED_TOGETHER = 64
SCRIPT = Path(__file__).with_name("cases.js")


def context(run: Run) -> dict:
    """Return what the template `cases.html` shows."""
    pictures = thumbnails(run)
    script = SCRIPT.read_text(encoding="utf-8")
    shown = {name: len(run.samples[name]) for name in run.params.test_sets if run.samples[name]}
    return {
        "script": script,
        "script_hash": script_hash(script),
        "head": {
            "sets": {name: SETS[name] for name in shown},
            "counts": shown,
            "own": run.params.own_test,
            "models": run.labels,
            "asked": {model: run.params.modes_of(model) for model in run.models},
            "modes": {mode: run.params.sets_of(mode) for mode in run.params.modes},
            "judges": run.judges,
            "mode": run.main_mode,
        },
        "parts": {
            name: [packed(cases(run, name, rows)) for rows in batches(range(count), PART)]
            for name, count in shown.items()
        },
        "questions": sum(shown.values()),
        "pictures": pictures,
        "left_out": sum(picture is None for picture in pictures.values()),
    }


def script_hash(script: str) -> str:
    """Return the base64 SHA-256 of an inline script, by which the page's Content-Security-Policy allows it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def packed(value: object) -> str:
    """Return gzipped JSON in base64: letters, digits, `+`, `/` and `=` only. Equal values give equal text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    compressed = bytearray(gzip.compress(text.encode(), 6, mtime=0))
    compressed[9] = 255  # unknown operating system: Python 3.11 and 3.12 name it, 3.13 does not
    return base64.b64encode(compressed).decode("ascii")


def thumbnails(run: Run, most: int = MOST_PICTURES) -> dict[str, str | None]:
    """Return hash of an image -> data URI; None if it is unreadable or does not fit, own test first."""
    images = {
        s.image_sha256: image_file(run.params.data.root, s.image)
        for name in run.params.test_sets
        for s in run.samples[name]
    }
    for side in SIDES:
        found, size = dict.fromkeys(images), 0
        with ThreadPoolExecutor() as pool:
            for some in batches([*images], OPENED_TOGETHER):
                if size > most:  # no more of them would fit, so they need not be opened
                    break
                for picture, uri in zip(some, pool.map(partial(_small, side), some, map(images.get, some))):
                    size += len(uri or "")
                    found[picture] = uri if size <= most else None
        if size <= most:
            break
    return found


def _small(side: int, picture: str, path: Path) -> str | None:
    """Return a thumbnail, cached by the image's hash, because thousands of large images take a minute to open."""
    kept = CACHE / "thumbnails-2" / f"{picture}-{side}"
    if kept.is_file():
        return kept.read_text(encoding="ascii")
    if (uri := thumbnail(path, side)) is not None:
        with atomic_file(kept) as file:
            file.write(uri)
    return uri


def cases(run: Run, name: str, rows: Iterable[int]) -> list[dict]:
    """Return some cases of one test set; `said` and `rated` are by "mode model", as lists to keep the page small."""
    places = [(mode, model) for model in run.models for mode, test_set in run.places_of(model) if test_set == name]
    found = []
    for i in rows:
        sample = run.samples[name][i]
        case = {key: getattr(sample, key) for key in ("id", "question", "answers", "choices", "reasoning")}
        case["facts"] = [fact for fact in (sample.kind, sample.modality, sample.category, sample.origin) if fact]
        case |= {"picture": sample.image_sha256, "said": {}, "rated": {}}
        for mode, model in places:
            verdicts = [run.verdicts[model, mode, name, judge][i] for judge in run.judges]
            case["said"][f"{mode} {model}"] = _said(run.predictions[model, mode, name][i])
            case["rated"][f"{mode} {model}"] = [_rated(verdict) for verdict in verdicts]
        found.append(case)
    return found


def _said(prediction: Prediction) -> list:
    """Return [answer, reasoning, failure, the whole completion if reasoning and answer do not cover it]."""
    wrong = prediction.error or ("truncated at the token limit" if prediction.truncated else None)
    read = len(prediction.answer) + len(prediction.think or "")
    whole = prediction.completion if len(prediction.completion.strip()) > read + 60 else None
    return [prediction.answer, prediction.think, wrong, whole]


def _rated(verdict: Verdict) -> list:
    """Return [final, reasoning, the judge's evaluation or why it did not score]."""
    return [verdict.prediction_score, verdict.reasoning_score, verdict.unscored or verdict.evaluation]
