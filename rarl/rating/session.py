"""One rater's work: what is rated, what is next, and saving it."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rarl.judges.human import Rating, last_of_each, ratings_file, read_lines
from rarl.rating.lines import append, locked
from rarl.rating.progress import Progress
from rarl.rating.worklist import Item


class Session(Progress):
    """A rater's queue and their ratings so far.

    Each change appends a line to the rater's file, which is on disk (fsync) before the page shows it. Ratings of
    answers that are not in the queue stay untouched.

    Raises:
        UserError: the name cannot be a file's, or the file does not hold ratings.
    """

    def __init__(self, rater: str, items: Sequence[Item]):
        self.path = ratings_file(rater)
        self.rater = rater
        self.items = list(items)
        self.ratings = last_of_each(read_lines(self.path)) if self.path.is_file() else {}

    def rating(self, position: int) -> Rating:
        """The rating of an answer so far; an empty one if there is none."""
        item = self.items[position]
        empty = Rating(id=item.sample.id, shown=item.shown, final=0 if item.fault else None)
        return self.ratings.get(item.key, empty)

    def is_done(self, position: int) -> bool:
        """Whether an answer is rated."""
        item = self.items[position]
        return item.is_done(self.ratings.get(item.key))

    def save(self, position: int, **changes: int | str) -> None:
        """Append a line for an answer, unless it repeats the last one.

        Args:
            position: the answer's place in the queue.
            **changes: `final`, `reasoning` (0 or 1) or `comment`. A final score that the model's failure decides is
                kept, and reasoning is saved only if it is asked for.
        """
        item, before = self.items[position], self.rating(position)
        if item.fault:
            changes.pop("final", None)
        if not item.asks_reasoning:
            changes.pop("reasoning", None)
        fields = before.model_dump() | changes | {"of": tuple(sorted({*before.of, *item.of}))}
        if item.key in self.ratings and fields == before.model_dump():
            return
        rating = Rating(**fields | {"at": datetime.now(UTC).isoformat(timespec="seconds")})
        with locked(self.path):
            append(self.path, rating)
        self.ratings[item.key] = rating
