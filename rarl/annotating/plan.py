"""Which rows are annotated, by whom and in which order.

The first call of `rarl annotate` writes the plan to `data/annotations/plan.json`, and later ones follow it, whatever a
training has changed in between: an order by usefulness depends on predictions, and two raters must not have two plans.
A row is planned by its content (`rarl.data.annotations.content_key`), so that rows with equal content are one.

In the order `useful`, every `RANDOM_EVERY`-th row is taken at random from those that are left, and marked as such: the
others are a selection, and say nothing about the whole.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from rarl.answers.matching import is_right
from rarl.data.annotations import content_key, folder
from rarl.errors import UserError
from rarl.judges.human import ratings_file
from rarl.records import Record, Sample, atomic_file
from rarl.rewards.terms import facts

#: In the order `useful`, one in so many rows is random.
RANDOM_EVERY = 5


class Planned(Record):
    """One row of the plan."""

    content: str
    id: str
    raters: tuple[str, ...]
    chosen: Literal["random", "useful"]


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


def make(
    wanted: Plan, samples: Sequence[Sample], answers: Mapping[str, Sequence[str]], annotated: Iterable[str] = ()
) -> Plan:
    """Write a plan for the rows without reasoning.

    Args:
        wanted: its settings, without rows.
        samples: the rows of the split.
        answers: content -> the answers of the models, as far as they were asked; for the order `useful`.
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
    order = [(content, "random") for content in at_random]
    if wanted.order == "useful":
        use = usefulness(rows, answers)
        order = interleaved(sorted(at_random, key=lambda content: use[content], reverse=True), at_random)
    order = order[: wanted.sample]
    places = [*range(len(order))]
    random.Random(f"{wanted.seed}/overlap").shuffle(places)
    by_all = {*places[: round(wanted.overlap * len(order))]} if len(wanted.raters) > 1 else set()
    alone = {place: number for number, place in enumerate(place for place in range(len(order)) if place not in by_all)}
    planned = []
    for place, (content, chosen) in enumerate(order):
        raters = wanted.raters if place in by_all else (wanted.raters[alone[place] % len(wanted.raters)],)
        planned.append(Planned(content=content, id=rows[content].id, raters=raters, chosen=chosen))
    plan = wanted.model_copy(update={"rows": tuple(planned)})
    with atomic_file(file()) as written:
        written.write(plan.model_dump_json(indent=1) + "\n")
    return plan


def interleaved(useful: Sequence[str], at_random: Sequence[str]) -> list[tuple[str, str]]:
    """The useful rows in their order, with the next random one in every `RANDOM_EVERY`-th place.

    >>> interleaved("abcdef", "fedcba")
    [('a', 'useful'), ('b', 'useful'), ('c', 'useful'), ('d', 'useful'), ('f', 'random'), ('e', 'useful')]
    """
    queues, taken, order = {"useful": iter(useful), "random": iter(at_random)}, set(), []
    for number in range(1, len(useful) + 1):
        chosen = "useful" if number % RANDOM_EVERY else "random"
        content = next(content for content in queues[chosen] if content not in taken)
        taken.add(content)
        order.append((content, chosen))
    return order


def usefulness(rows: Mapping[str, Sample], answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Content -> how useful its annotation is: how far the models disagree, plus how rare its findings are.

    Disagreement is 4 p (1 - p) for a share p of right answers among the models: 0 if all or none are right. Rarity is
    the surprisal of the rarest clinical term in question and answer, -log of its share of rows, over that of one row.
    """
    terms = {content: terms_of(sample) for content, sample in rows.items()}
    counts = Counter(term for found in terms.values() for term in found)
    use = {}
    for content, sample in rows.items():
        given = answers.get(content, [])
        of = sample.answers, sample.kind, sample.choices, sample.question
        share = sum(is_right(answer, *of) for answer in given) / max(len(given), 1)
        rarest = min((counts[term] for term in terms[content]), default=len(rows))
        use[content] = 4 * share * (1 - share) + math.log(len(rows) / rarest) / math.log(len(rows) + 1)
    return use


def terms_of(sample: Sample) -> set[str]:
    """The clinical terms in a row's question and first answer."""
    text = f"{sample.question.rstrip('? ')}. {sample.answers[0]}"
    return {term for term, _ in facts(text)}
