"""The human judge: what people said of the answers on the rating page (`rarl rate`).

The paper's third rater (section 3.3, Table 6). Each rater has a file `data/ratings/<rater>.jsonl`, to
which every click adds a `Rating`; the last one of an answer counts. The files belong to no stage of
the pipeline, so that neither a re-run nor a checkout touches them: `rarl rate --export`
writes their digest into `params.yaml`, where DVC sees that they have changed.

A rating holds for what its rater saw: picture, question, references and completion. It serves every
model among those to be rated that gave this very completion, and no other run's answer.

Which answers are rated must not depend on what they say, or the score of the rated ones would say
nothing about the others. So a model that was not to be rated gets nothing from ratings of equal answers
of other models or modes; and where answers have changed since they were rated, as after another
training, none of the model's ratings counts until those are rated as well: the answers that stay
the same are the easy ones.
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

from rarl.errors import UserError
from rarl.judges.faults import machinery_fault
from rarl.records import Prediction, Record, Sample, Verdict

RATER = re.compile(r"[a-z0-9_]{1,40}")
NOT_RATED = "not rated"
#: Length of a token; those of before were shorter.
TOKEN = 16
SAID = {"final": ("wrong", "right"), "reasoning": ("not sound", "sound")}


class Rating(Record):
    """One rater's scores of one answer."""

    id: str
    """The sample's id."""
    shown: str
    """`fingerprint` of what the rater saw."""
    of: tuple[str, ...] = ()
    """The token of each place where the answer was to be rated: random, so that the file tells nobody the model."""
    final: Literal[0, 1] | None = None
    reasoning: Literal[0, 1] | None = None
    """None where not asked (no annotated reasoning), or not yet answered."""
    comment: str = ""
    at: str = ""
    """When it was saved, UTC."""


#: (sample id, fingerprint) -> the rating that counts.
Ratings = dict[tuple[str, str], Rating]


def folder() -> Path:
    """Where the ratings lie: of the repository itself also when `dvc exp run --queue` works on a copy of it."""
    here = Path.cwd()
    for parent in here.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2] / "data/ratings"
    return Path("data/ratings")


def ratings_file(rater: str) -> Path:
    """The file of a rater.

    Raises:
        UserError: the name could be another path, or two spellings of one person.
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
    """One rater's file, or those of all, in order; without what does not exist."""
    paths = [ratings_file(rater)] if rater else sorted(folder().glob("*.jsonl"))
    return [path for path in paths if path.is_file() and RATER.fullmatch(path.stem)]


def read_ratings(rater: str | None = None) -> dict[str, Ratings]:
    """rater -> what counts of theirs; of one rater, or of all.

    Raises:
        UserError: a file is not readable, or the one that says what its tokens stand for is missing.
    """
    raters = {path.stem: that_count(rows(path)) for path in ratings_files(rater)}
    check_tokens(raters)
    return raters


def rows(path: Path) -> list[Rating]:
    """Every line of a ratings file; a last line that a crash cut off is passed over.

    Raises:
        UserError: another line is no rating.
    """
    ratings = []
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            ratings.append(Rating.model_validate_json(line))
        except ValidationError as error:
            raise UserError(
                f"{path}, line {number}",
                error.errors()[0]["msg"],
                "a rating as the rating page writes it",
                "mend this line, or delete it: the others stay as they are",
            ) from None
    return ratings


def that_count(ratings: Iterable[Rating]) -> Ratings:
    """The last rating of each answer."""
    return {(rating.id, rating.shown): rating for rating in ratings}


def fingerprint(sample: Sample, prediction: Prediction) -> str:
    """Key of what a rater sees of an answer; the model that gave it is not in it."""
    seen = [
        sample.image_sha256,
        sample.question,
        sample.choices,
        sample.answers,
        sample.reasoning,
        prediction.completion,
        prediction.truncated,
    ]
    return _sha256(seen)


def places_file() -> Path:
    """The private file beside the ratings that says which place each of their tokens stands for: JSON, token -> place."""
    return folder() / "places.json"


def read_places() -> dict[str, str]:
    """token -> place, `<model>/<mode>/<set>`; empty where nobody has rated here.

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
        ) from None  # fmt: skip


def old_token(place: str) -> str:
    """A place's token in ratings of before `places.json`: a hash that anybody can compute.

    `rarl rate` replaces these (`rarl/rating/blinding.py`); until then they are still read.
    """
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def check_tokens(raters: dict[str, Ratings]) -> None:
    """
    Raises:
        UserError: `places.json` does not know a token of these ratings, so whose answers were rated cannot be told.
    """
    known = read_places()
    for rater, ratings in raters.items():
        tokens = {token for rating in ratings.values() for token in rating.of}
        if lost := [token for token in tokens if len(token) == TOKEN and token not in known]:
            raise UserError(
                str(places_file()),
                f"no such file or no line for {len(lost)} of the {len(tokens)} tokens in {ratings_file(rater)}",
                "the file that the rating page wrote beside these ratings: it says which answers are whose",
                f"restore it; if {rater} rated on another machine, add the lines of that machine's {places_file().name}",
            )


def digest(raters: dict[str, Ratings]) -> str:
    """Key of all ratings that count, whatever was corrected on the way and when."""
    lines = sorted(
        [rater, *key, rating.of, rating.final, rating.reasoning, rating.comment]
        for rater, ratings in raters.items()
        for key, rating in ratings.items()
    )
    return _sha256(lines)


def majority(scores: Iterable[int | None]) -> int | None:
    """What most of those say who say something; None where nobody does, or as many say 0 as 1."""
    counts = Counter(score for score in scores if score is not None)
    return None if counts[0] == counts[1] else int(counts[1] > counts[0])


def judge(samples: Sequence[Sample], predictions: Sequence[Prediction], settings, *, place: str, **_) -> list[Verdict]:
    """The raters' verdicts; unscored where nobody has rated the answer, or as many say right as wrong.

    Args:
        samples, predictions: one for one, in the same order.
        settings: `params.Judge`: `rater` (one name; None for the majority of all) and `ratings` (the
            digest that was exported; None where none was).
        place: `<model>/<mode>/<set>`, whose predictions these are.

    Raises:
        UserError: a ratings file is not readable, or the file of their tokens is missing.
    """
    raters = read_ratings(settings.rater)
    if settings.ratings not in (None, digest(raters)):
        _say_once(
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
        machinery_fault(prediction) or _verdict(sample, prediction, raters, reason)
        for sample, prediction in zip(samples, predictions)
    ]


def of_place(ratings: Ratings, place: str) -> Ratings:
    """The ratings with a final score that were asked for at a place."""
    own = {token for token, known in read_places().items() if known == place} | {old_token(place)}
    return {key: rating for key, rating in ratings.items() if own & {*rating.of} and rating.final is not None}


def _verdict(sample: Sample, prediction: Prediction, raters: dict[str, Ratings], without: str) -> Verdict:
    """The verdict; `without` says why there is none where nobody has rated."""
    key = sample.id, fingerprint(sample, prediction)
    given = {rater: ratings[key] for rater, ratings in raters.items() if key in ratings}
    if not given:
        return Verdict(id=sample.id, evaluation=f"Not scored: {without}.", unscored=without)
    words = " ".join(_in_words(rater, rating) for rater, rating in given.items())
    final = majority(rating.final for rating in given.values())
    if final is None:
        reason = f"raters disagree, {len(given) // 2} to {len(given) // 2}"
        return Verdict(id=sample.id, evaluation=words, unscored=reason)
    reasoning = majority(rating.reasoning for rating in given.values())
    return Verdict(id=sample.id, evaluation=words, prediction_score=final, reasoning_score=reasoning)


def _in_words(rater: str, rating: Rating) -> str:
    """
    >>> _in_words("anna", Rating(id="1", shown="ab", final=1, reasoning=0, comment="Wrong lung."))
    'anna: answer right, reasoning not sound (Wrong lung.).'
    """
    said = [f"answer {SAID['final'][rating.final]}"]
    if rating.reasoning is not None:
        said.append(f"reasoning {SAID['reasoning'][rating.reasoning]}")
    comment = f" ({rating.comment})" if rating.comment else ""
    return f"{rater}: {', '.join(said)}{comment}."


def _sha256(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@cache
def _say_once(message: str) -> None:
    click.echo(message, err=True)
