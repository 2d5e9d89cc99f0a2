"""One rater's work: what is rated, what is next, and saving it."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from rarl.judges.human import Rating, ratings_file, rows, that_count
from rarl.rating.worklist import Item


class Desk:
    """A rater's queue and what they have said so far.

    Each change is one more line in the rater's file, on disk (fsync) before the page shows it. Ratings
    of answers that are not in the queue stay untouched.

    Raises:
        UserError: the name cannot be a file's, or the file is not one of ratings.
    """

    def __init__(self, rater: str, items: Sequence[Item]):
        self.path = ratings_file(rater)
        self.rater = rater
        self.items = list(items)
        self.ratings = that_count(rows(self.path)) if self.path.is_file() else {}

    def rating(self, position: int) -> Rating:
        """What is said of an answer so far; an empty rating where nothing is."""
        item = self.items[position]
        final = 0 if item.fault else None
        empty = Rating(id=item.sample.id, shown=item.shown, final=final)
        return self.ratings.get(item.key, empty)

    def is_done(self, position: int) -> bool:
        item = self.items[position]
        return item.is_done(self.ratings.get(item.key))

    @property
    def done(self) -> int:
        return sum(self.is_done(position) for position in range(len(self.items)))

    def next_open(self, position: int = -1) -> int | None:
        """The first answer after a position that is not rated, from the start again; None where all are."""
        places = [*range(position + 1, len(self.items)), *range(position + 1)]
        return next((place for place in places if not self.is_done(place)), None)

    def save(self, position: int, **changes: int | str) -> None:
        """Add a line for an answer, unless it says what the last one said.

        Args:
            changes: `final`, `reasoning` (0 or 1) or `comment`. A final score that the model's fault decides stays,
                and reasoning is kept only where it is asked.
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A last line that a crash cut off goes, or the new one would hang on it.
        whole = self.path.read_bytes() if self.path.is_file() else b""
        if whole and not whole.endswith(b"\n"):
            os.truncate(self.path, whole.rfind(b"\n") + 1)
        with self.path.open("ab") as file:
            file.write(rating.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.ratings[item.key] = rating
