"""The human judge: the ratings that people gave on the rating page (`rarl rate`).

The paper's third rater (section 3.3, Table 6). Each rater has a file `data/ratings/<rater>.jsonl`, to which every
click appends a `Rating`; the last one of an answer counts. The files belong to no stage, so that neither a re-run nor
a checkout touches them: `rarl rate --export` writes their digest into `params.yaml`, where DVC sees that they changed.

A rating applies to what its rater saw: image, question, references and completion. It applies to every model to be
rated that gave this completion, and to no other run's answer.

Which answers are rated must not depend on their content, or the score of the rated ones would not generalise to the
others. So a model that was not to be rated gets nothing from ratings of equal answers of other models or modes. And if
answers have changed since they were rated, as after another training, none of the model's ratings counts until those
are rated too: the answers that stay the same are the easy ones.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import click
from pydantic import ValidationError

from rarl.chat.journal import outside_copy
from rarl.errors import UserError
from rarl.judges.failures import infrastructure_failure
from rarl.records import Prediction, R, Record, Sample, Verdict

RATER = re.compile(r"[a-z0-9_]{1,40}")
NOT_RATED = "not rated"
#: Length of a token; `old_token` gives shorter ones.
TOKEN = 16
LABELS = {"final": ("wrong", "right"), "reasoning": ("not sound", "sound")}


class Rating(Record):
    """One rater's scores of one answer."""

    id: str
    """The sample's id."""
    shown: str
    """`fingerprint` of what the rater saw."""
    of: tuple[str, ...] = ()
    """The token of each place where the answer was to be rated: random, so that the file does not reveal the model."""
    final: Literal[0, 1] | None = None
    reasoning: Literal[0, 1] | None = None
    """None if not asked for (no annotated reasoning), or not rated yet."""
    comment: str = ""
    at: str = ""
    """When it was saved, UTC."""


#: (sample id, fingerprint) -> the rating that counts.
Ratings = dict[tuple[str, str], Rating]


def folder() -> Path:
    """The folder of the ratings: the repository's own, also when `dvc exp run --queue` runs in a copy of it."""
    return outside_copy("data/ratings")


def ratings_file(rater: str) -> Path:
    """The file of a rater.

    Raises:
        UserError: the name could be another path, or another spelling of the same person's.
    """
    if not RATER.fullmatch(rater):
        raise UserError(
            f"rater {rater!r}",
            "a name that cannot be a file's",
            "1 to 40 of a-z, 0-9 and _",
            "choose another, such as `anna` or `rater_1`",
        )
    return folder() / f"{rater}.jsonl"


def ratings_files(rater: str | None = None) -> list[Path]:
    """The existing file of one rater, or those of all, sorted."""
    paths = [ratings_file(rater)] if rater else sorted(folder().glob("*.jsonl"))
    return [path for path in paths if path.is_file() and RATER.fullmatch(path.stem)]


def read_ratings(rater: str | None = None) -> dict[str, Ratings]:
    """Map one rater, or all, to their ratings that count.

    Raises:
        UserError: a file is not readable, or the one that maps its tokens to places is missing.
    """
    raters = {path.stem: last_of_each(read_lines(path)) for path in ratings_files(rater)}
    check_tokens(raters)
    return raters


def read_lines(path: Path, kind: type[R] = Rating) -> list[R]:
    """Read every line of a rater's file, except a last one that a crash cut off.

    Raises:
        UserError: a line is not a record of this kind.
    """
    found = []
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise UserError(
                f"{path}, line {number}",
                error.errors()[0]["msg"],
                f"{kind.__name__}, a record as its page writes it",
                "correct this line, or delete it: the others stay as they are",
            ) from None
    return found


def last_of_each(ratings: Iterable[Rating]) -> Ratings:
    """The last rating of each answer."""
    return {(rating.id, rating.shown): rating for rating in ratings}


def fingerprint(sample: Sample, prediction: Prediction) -> str:
    """Key of what a rater sees of an answer, which does not include the model."""
    of_sample = [sample.image_sha256, sample.question, sample.choices, sample.answers, sample.reasoning]
    return _sha256([*of_sample, prediction.completion, prediction.truncated])


def places_file() -> Path:
    """The private JSON file beside the ratings that maps each of their tokens to its place."""
    return folder() / "places.json"


def read_places() -> dict[str, str]:
    """Map each token to its place, `<model>/<mode>/<set>`; empty if nobody has rated here.

    Raises:
        UserError: the file is damaged.
    """
    path = places_file()
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            str(path), f"not readable: {error}", "the file as the rating page wrote it", "restore it from your backup"
        ) from None


def old_token(place: str) -> str:
    """A place's token in ratings older than `places.json`: a hash that anybody can compute.

    They are read until `rarl rate` replaces them (`rarl/rating/blinding.py`).
    """
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def check_tokens(raters: dict[str, Ratings]) -> None:
    """Check that `places.json` has every token of these ratings, without which nobody knows whose answers were rated.

    Raises:
        UserError: a token is missing.
    """
    known = read_places()
    for rater, ratings in raters.items():
        tokens = {token for rating in ratings.values() for token in rating.of}
        if lost := [token for token in tokens if len(token) == TOKEN and token not in known]:
            raise UserError(
                str(places_file()),
                f"no such file or no line for {len(lost)} of the {len(tokens)} tokens in {ratings_file(rater)}",
                "the file that the rating page wrote beside these ratings: it maps tokens to models",
                f"restore it; if {rater} used another machine, add the lines of that machine's {places_file().name}",
            )


def digest(raters: dict[str, Ratings]) -> str:
    """Key of all ratings that count; earlier corrections and times do not change it."""
    lines = sorted(
        [rater, *key, rating.of, rating.final, rating.reasoning, rating.comment]
        for rater, ratings in raters.items()
        for key, rating in ratings.items()
    )
    return _sha256(lines)


def majority(scores: Iterable[int | None]) -> int | None:
    """The majority of the scores that are not None; None if there are none, or as many 0 as 1.

    >>> majority([1, 1, 0, None]), majority([1, 0]), majority([])
    (1, None, None)
    """
    counts = Counter(score for score in scores if score is not None)
    return None if counts[0] == counts[1] else int(counts[1] > counts[0])


def judge(samples: Sequence[Sample], predictions: Sequence[Prediction], settings, *, place: str, **_) -> list[Verdict]:
    """The raters' verdicts; unscored if nobody has rated the answer, or the raters are tied.

    `settings` is a `params.Judge` with `rater` (None for the majority of all) and `ratings` (the exported digest, or
    None). `place` is the `<model>/<mode>/<set>` of the predictions.

    Raises:
        UserError: a ratings file is not readable, or the file with their tokens is missing.
    """
    raters = read_ratings(settings.rater)
    if settings.ratings not in (None, digest(raters)):
        _print_once(
            f"The ratings in {folder()} have changed since they were exported, or some are missing: "
            "`rarl rate --export` takes them as they are now."
        )
    raters = {rater: of_place(ratings, place) for rater, ratings in raters.items()}
    present = {(s.id, fingerprint(s, p)) for s, p in zip(samples, predictions, strict=True)}
    rated = {key for ratings in raters.values() for key in ratings}
    ids = {sample_id for sample_id, _ in rated}
    changed = ids - {sample_id for sample_id, _ in rated & present}
    reason = NOT_RATED
    if changed:
        reason = f"{len(changed)} of {len(ids)} rated answers have changed since, and are to be rated again"
        raters = {}
    return [
        infrastructure_failure(prediction) or _verdict(sample, prediction, raters, reason)
        for sample, prediction in zip(samples, predictions)
    ]


def of_place(ratings: Ratings, place: str) -> Ratings:
    """The ratings of a place that have a final score."""
    own = {token for token, known in read_places().items() if known == place} | {old_token(place)}
    return {key: rating for key, rating in ratings.items() if own & {*rating.of} and rating.final is not None}


def _verdict(sample: Sample, prediction: Prediction, raters: dict[str, Ratings], without: str) -> Verdict:
    """The verdict; `without` is the reason if nobody has rated."""
    key = sample.id, fingerprint(sample, prediction)
    given = {rater: ratings[key] for rater, ratings in raters.items() if key in ratings}
    if not given:
        return Verdict(id=sample.id, evaluation=f"Not scored: {without}.", unscored=without)
    why = " ".join(_sentence(rater, rating) for rater, rating in given.items())
    final = majority(rating.final for rating in given.values())
    if final is None:
        reason = f"raters disagree, {len(given) // 2} to {len(given) // 2}"
        return Verdict(id=sample.id, evaluation=why, unscored=reason)
    reasoning = majority(rating.reasoning for rating in given.values())
    return Verdict(id=sample.id, evaluation=why, prediction_score=final, reasoning_score=reasoning)


def _sentence(rater: str, rating: Rating) -> str:
    """Write one rating as a sentence.

    >>> _sentence("anna", Rating(id="1", shown="ab", final=1, reasoning=0, comment="Wrong lung."))
    'anna: answer right, reasoning not sound (Wrong lung.).'
    """
    reasoning = "" if rating.reasoning is None else f", reasoning {LABELS['reasoning'][rating.reasoning]}"
    comment = f" ({rating.comment})" if rating.comment else ""
    return f"{rater}: answer {LABELS['final'][rating.final]}{reasoning}{comment}."


def _sha256(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@cache
def _print_once(message: str) -> None:
    click.echo(message, err=True)
