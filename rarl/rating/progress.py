"""How far a rater is in their queue."""

from collections.abc import Sequence


class Progress:
    """The positions of `items` that are done; a session of a page says which (`is_done`)."""

    items: Sequence

    def is_done(self, position: int) -> bool:
        """Whether the rater has finished an item."""
        raise NotImplementedError

    @property
    def done(self) -> int:
        """Number of finished items."""
        return sum(map(self.is_done, range(len(self.items))))

    def next_open(self, position: int = -1) -> int | None:
        """The first unfinished item after a position, wrapping to the start; None if all are finished."""
        places = [*range(position + 1, len(self.items)), *range(position + 1)]
        return next((place for place in places if not self.is_done(place)), None)
