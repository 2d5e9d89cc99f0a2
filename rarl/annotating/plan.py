"""Which rows are annotated, by whom and in which order.

The first call of `rarl annotate` writes the plan to `data/annotations/plan.json`, and later ones follow it, whatever a
training has changed in between: an order by usefulness depends on predictions, and two raters must not have two plans.
A row is planned by its content (`rarl.data.annotations.content_key`), so that rows with equal content are one.

In the order `useful`, every `RANDOM_EVERY`-th row is taken at random from all rows, and marked as such: the others are
a selection, and say nothing about the whole.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from rarl.data.annotations import content_key, folder
from rarl.errors import UserError
from rarl.judges.human import ratings_file
from rarl.records import Record, Sample, atomic_file

#: In the order `useful`, one in so many rows is random.
RANDOM_EVERY = 5


class Planned(Record):
    """One row of the plan."""

    content: str
    id: str
    raters: tuple[str, ...]
    chosen: Literal["random", "useful"]
    why: Mapping[str, float] = Field(default_factory=dict)
    """In the order `useful`, the parts of the row's usefulness (`rarl.annotating.usefulness`), without those of 0."""


class Plan(Record):
    """The plan, as in its file."""

    split: Literal["train", "dev", "test"] = "train"
    raters: tuple[str, ...]
    overlap: float
    """Share of the rows that every rater annotates."""
    order: Literal["random", "useful"]
    sample: int | None = None
    seed: int
    rows: tuple[Planned, ...] = ()

    def of(self, rater: str) -> list[Planned]:
        """The rows of one rater, in the plan's order.

        Raises:
            UserError: they are not in the plan.
        """
        if rater not in self.raters:
            expected, fix = f"one of {', '.join(self.raters)}", f"delete {file()} to plan again with --raters"
            raise UserError(f"--rater {rater}", f"not in {file()}", expected, f"{fix}; annotations stay")
        return [row for row in self.rows if rater in row.raters]


def file() -> Path:
    """The file of the plan."""
    return folder() / "plan.json"


def read() -> Plan | None:
    """Read the plan; None if there is none yet.

    Raises:
        UserError: the file is damaged.
    """
    if not file().is_file():
        return None
    try:
        return Plan.model_validate_json(file().read_bytes())
    except ValidationError as error:
        found, fix = error.errors()[0]["msg"], "restore it from your backup, or delete it to plan again"
        raise UserError(str(file()), found, "the plan as `rarl annotate` wrote it", fix) from None


#: Content -> the parts of a row's usefulness, of the rows by their content.
Usefulness = Callable[[Mapping[str, Sample]], Mapping[str, Mapping[str, float]]]


def make(
    wanted: Plan, samples: Sequence[Sample], usefulness: Usefulness | None = None, annotated: Iterable[str] = ()
) -> Plan:
    """Write a plan for the rows without reasoning.

    Args:
        wanted: its settings, without rows.
        samples: the rows of the split.
        usefulness: computes the parts of the rows' usefulness, for the order `useful`.
        annotated: contents that were annotated before, which stay in the plan even if `curate` has joined them.

    Raises:
        UserError: a rater's name cannot be a file's, or there is nothing to annotate.
    """
    for rater in wanted.raters:
        ratings_file(rater)
    before = {*annotated}
    rows = {content_key(s): s for s in samples if s.reasoning is None or content_key(s) in before}
    if not rows:
        found = f"no row without reasoning among {len(samples)}"
        raise UserError(f"data/curated/{wanted.split}.jsonl", found, "rows to annotate", "name another --split")
    at_random = sorted(rows)
    random.Random(f"{wanted.seed}/annotate").shuffle(at_random)
    order, parts = [(content, "random") for content in at_random], {}
    if wanted.order == "useful":
        parts = usefulness({content: rows[content] for content in sorted(rows)})
        use = {content: sum(of_row.values()) for content, of_row in parts.items()}
        by_use = sorted(at_random, key=lambda content: use[content], reverse=True)
        order = interleaved(by_use, at_random, min(wanted.sample or len(rows), len(rows)))
    order = order[: wanted.sample]
    places = [*range(len(order))]
    random.Random(f"{wanted.seed}/overlap").shuffle(places)
    by_all = {*places[: round(wanted.overlap * len(order))]} if len(wanted.raters) > 1 else set()
    alone = {place: number for number, place in enumerate(place for place in range(len(order)) if place not in by_all)}
    planned = []
    for place, (content, chosen) in enumerate(order):
        raters = wanted.raters if place in by_all else (wanted.raters[alone[place] % len(wanted.raters)],)
        why = {name: round(part, 3) for name, part in parts.get(content, {}).items() if part}
        planned.append(Planned(content=content, id=rows[content].id, raters=raters, chosen=chosen, why=why))
    plan = wanted.model_copy(update={"rows": tuple(planned)})
    with atomic_file(file()) as written:
        written.write(plan.model_dump_json(indent=1) + "\n")
    return plan


def interleaved(useful: Sequence[str], at_random: Sequence[str], count: int) -> list[tuple[str, str]]:
    """The first rows at random in every `RANDOM_EVERY`-th place, and of the others the most useful between them.

    A row at random is not moved to the front if it is useful too: the random ones would no longer stand for the whole.

    >>> interleaved("abcdef", "afedcb", 6)
    [('b', 'useful'), ('c', 'useful'), ('d', 'useful'), ('e', 'useful'), ('a', 'random'), ('f', 'useful')]
    """
    drawn = at_random[: count // RANDOM_EVERY]
    queues = {"useful": iter([content for content in useful if content not in {*drawn}]), "random": iter(drawn)}
    chosen = ["useful" if number % RANDOM_EVERY else "random" for number in range(1, count + 1)]
    return [(next(queues[which]), which) for which in chosen]
