"""Which answers a rater sees, and in which order.

Questions come in one seeded order, the same for every rater: whoever stops early has rated the same questions as the
others, so that agreement can be computed, and all models on them, so that models can be compared on the same
questions. Within a question the models' answers are shuffled separately for each rater, so that a position reveals
nothing about a model. Equal completions are shown once and count for all.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rarl.errors import UserError
from rarl.judges.failures import model_failure
from rarl.judges.human import Rating, Ratings, fingerprint, majority
from rarl.params import Params
from rarl.rating import blinding
from rarl.records import Prediction, Sample, predictions_file, read_records
from rarl.reporting.inputs import in_order


@dataclass(frozen=True)
class Item:
    """One answer to rate.

    Attributes:
        shown: `human.fingerprint` of what the rater sees.
        of: the token of each place whose predictions have this answer (`blinding.tokens`).
    """

    sample: Sample
    prediction: Prediction
    shown: str
    of: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Key of the answer in `human.Ratings`."""
        return self.sample.id, self.shown

    @property
    def fault(self) -> str | None:
        """Why the final answer is wrong for every judge (cut off, empty); None if people decide."""
        return model_failure(self.prediction, self.prediction.answer)

    @property
    def asks_reasoning(self) -> bool:
        """Whether there is annotated reasoning to compare with."""
        return self.sample.reasoning is not None

    def is_scored(self, rating: Rating | None) -> bool:
        """Whether a rating has every score that is asked for."""
        if rating is None or rating.final is None:
            return False
        return rating.reasoning is not None or not self.asks_reasoning

    def is_done(self, rating: Rating | None) -> bool:
        """Whether it is scored, and for all its places."""
        return self.is_scored(rating) and {*self.of} <= {*rating.of}


def answers(params: Params, models: Sequence[str], mode: str, test_set: str) -> list[Item]:
    """Every distinct answer of the models to a test set, except predictions with an error.

    Raises:
        UserError: a file of questions or predictions is missing, or they do not fit together.
    """
    samples = read_records(params.samples_file(test_set), Sample)
    items: dict[tuple[str, str], Item] = {}
    places = {model: f"{model}/{mode}/{test_set}" for model in models}
    token_of = blinding.tokens(places.values())
    for model in models:
        predictions = in_order(predictions_file(model, mode, test_set), samples, Prediction)
        for sample, prediction in zip(samples, predictions):
            if prediction.error is None:
                item = Item(sample, prediction, fingerprint(sample, prediction))
                item = items.get(item.key, item)
                items[item.key] = replace(item, of=(*item.of, token_of[places[model]]))
    return list(items.values())


def queue_of(items: Sequence[Item], rater: str, seed: int, sample: int | None = None) -> list[Item]:
    """The items in a rater's order.

    Args:
        items: the answers.
        rater: their name, which seeds the order within a question.
        seed: seed of the order of questions, the same for all raters.
        sample: only the answers to the first n questions of that order; a larger n adds questions at the end.
    """
    order = sorted({item.sample.id for item in items}, key=lambda id: _random(seed, id))[:sample]
    place = {id: number for number, id in enumerate(order)}
    chosen = [item for item in items if item.sample.id in place]
    return sorted(chosen, key=lambda item: (place[item.sample.id], _random(rater, *item.key)))


def disputed(items: Sequence[Item], raters: dict[str, Ratings]) -> list[Item]:
    """The answers on which the raters are tied: a further rater can decide."""

    def tied(scores: list[int | None]) -> bool:
        return any(score is not None for score in scores) and majority(scores) is None

    found = []
    for item in items:
        given = [ratings[item.key] for ratings in raters.values() if item.key in ratings]
        if tied([rating.final for rating in given]) or tied([rating.reasoning for rating in given]):
            found.append(item)
    return found


def checked(params: Params, models: Sequence[str], mode: str, test_set: str) -> None:
    """Check the options that say what is rated.

    Raises:
        UserError: params.yaml has no such model, mode or set, or the mode is not run on the set.
    """
    for option, value, known in (
        *(("--models", model, params.models) for model in models),
        ("--mode", mode, params.modes),
        ("--set", test_set, params.test_sets),
    ):
        if value not in known:
            raise UserError(
                f"{option} {value}", "not in params.yaml", f"one of {', '.join(known)}", "name one of these"
            )
    if test_set not in params.sets_of(mode):
        raise UserError(
            f"--mode {mode} --set {test_set}",
            "a mode that is run on the own test set only",
            f"one of {', '.join(params.sets_of(mode))}",
            f"rate `--set {params.own_test}`, or another mode",
        )


def _random(*parts: object) -> bytes:
    """A pseudo-random sort key, the same for the same parts, whatever else is in the queue."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
