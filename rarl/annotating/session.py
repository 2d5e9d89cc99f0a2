"""One rater's work: the annotation of each row, and saving it.

Every change appends an `Annotation` to `data/annotations/raters/<rater>.jsonl`, on disk (fsync) before the page counts
it as saved; the last one of a row counts, by its place in the file, not by its time. A row is finished when the rater
says so: a verdict. A change of the text takes the verdict back, and what has none is never exported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from rarl.data.annotations import Origin, Verdict, content_key, folder
from rarl.judges.human import RATER, ratings_file, read_lines
from rarl.rating.lines import append, locked
from rarl.rating.progress import Progress
from rarl.records import Record, Sample
from rarl.rewards.terms import TERMS, facts

#: The longest text, in characters; the page refuses longer ones.
LONGEST = 100_000
#: The most seconds that one save can add: a page that was left open, or a clock that jumped, is no work.
MOST_SECONDS = 600.0


class Annotation(Record):
    """One rater's annotation of one row, finished if it has a verdict."""

    content: str
    """`rarl.data.annotations.content_key` of the row: what the rater saw."""
    id: str
    revision: int = 0
    """Number of changes of this row, by which two windows see each other's."""
    text: str = ""
    findings: tuple[str, ...] = ()
    """Terms of the clinical lexicon (`rarl/rewards/lexicon.yaml`), a denied one as `no <term>`."""
    verdict: Verdict | None = None
    origin: Origin = "own"
    by: str = ""
    """The model whose draft was shown; in an adjudication, the reader whose text was taken."""
    adjudicates: tuple[str, ...] = ()
    """The raters between whom a third reader decided."""
    seconds: float = 0.0
    """Time that the page showed the row to its rater."""
    at: str = ""
    """When it was saved, UTC, by this machine's clock."""


#: content -> the annotation that counts.
Annotations = dict[str, Annotation]


@dataclass(frozen=True)
class Proposal:
    """A draft of a model, or the annotation of a reader in an adjudication."""

    by: str
    text: str
    findings: tuple[str, ...] = ()
    verdict: Verdict = "explained"
    answer: str = ""
    """The answer to which a model's draft leads."""


@dataclass(frozen=True)
class Item:
    """One row to annotate."""

    sample: Sample
    proposals: tuple[Proposal, ...] = ()
    adjudicates: tuple[str, ...] = ()

    @cached_property
    def content(self) -> str:
        """Key of the row."""
        return content_key(self.sample)


class Stale(Exception):
    """Another window or process has changed the row since the caller read it."""


def annotations_file(rater: str) -> Path:
    """The file of a rater; a UserError if the name cannot be a file's."""
    return folder() / "raters" / ratings_file(rater).name


def read_annotations() -> dict[str, Annotations]:
    """Map each rater to their annotations that count, finished or not.

    Raises:
        UserError: a line is no annotation.
    """
    paths = [path for path in sorted((folder() / "raters").glob("*.jsonl")) if RATER.fullmatch(path.stem)]
    return {path.stem: last_of_each(path) for path in paths}


def last_of_each(path: Path) -> Annotations:
    """The last annotation of each row in a file, which may be missing."""
    return {one.content: one for one in read_lines(path, Annotation)} if path.is_file() else {}


@dataclass
class Session(Progress):
    """A rater's rows and their annotations so far; rows that are not in the queue stay untouched.

    Raises:
        UserError: the name cannot be a file's, or the file has other content.
    """

    rater: str
    items: Sequence[Item]
    saved: Annotations = field(default_factory=dict)
    size: int = 0
    """Of the file, when it was read or written last."""

    def __post_init__(self):
        self.path = annotations_file(self.rater)
        self.reload()

    def reload(self) -> None:
        """Read the file again if another process has added to it."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size != self.size:
            self.saved, self.size = last_of_each(self.path), size

    def annotation(self, position: int) -> Annotation:
        """The annotation of a row so far; an empty one if there is none."""
        item = self.items[position]
        new = Annotation(content=item.content, id=item.sample.id)
        return self.saved.get(item.content, new)

    def is_done(self, position: int) -> bool:
        """Whether the rater has finished a row."""
        return self.annotation(position).verdict is not None

    @property
    def adjudicating(self) -> bool:
        """Whether the rater decides between others."""
        return any(item.adjudicates for item in self.items)

    def save(self, position: int, revision: int, changes: Mapping[str, object], seconds: float = 0.0) -> None:
        """Append the annotation of a row with changes, unless they change nothing.

        Args:
            position: the row's place in the queue.
            revision: that of the annotation that the caller has changed.
            changes: `text`, `findings` or `verdict`; `add` (a text that names findings), `take` (the number of a
                proposal whose text and findings become the annotation) or `reject` (true: the draft is of no use).
            seconds: time spent since the last call.

        Raises:
            Stale: the row has another revision by now.
            OSError: the line could not be written, as on a full disk; the file is as it was before.
            ValueError: a value is not possible.
        """
        with locked(self.path):
            self.reload()
            before = self.annotation(position)
            fields = changed(before, self.items[position], changes)
            if fields == before.model_dump():  # also what is sent again because the response was lost
                return
            if revision != before.revision:
                raise Stale
            fields["seconds"] = round(before.seconds + min(max(seconds, 0.0), MOST_SECONDS), 1)
            fields |= {"revision": revision + 1, "at": datetime.now(UTC).isoformat(timespec="seconds")}
            annotation = Annotation(**fields)
            append(self.path, annotation)
            self.saved[annotation.content], self.size = annotation, self.path.stat().st_size


def changed(before: Annotation, item: Item, changes: Mapping[str, object]) -> dict:
    """The fields of an annotation after the changes of `Session.save`.

    Raises:
        ValueError: a value is not possible, such as the verdict `explained` without a text.
    """
    fields, drafts = before.model_dump(), {proposal.by: proposal.text for proposal in item.proposals}
    fields |= {"adjudicates": item.adjudicates, "by": before.by or ("" if item.adjudicates else "".join(drafts))}
    if "take" in changes:
        taken = item.proposals[changes["take"]]
        fields |= {"by": taken.by, "text": taken.text, "findings": taken.findings, "origin": "accepted"}
    elif changes.get("reject") and before.origin == "own":
        fields["origin"] = "rejected"
    fields |= {key: changes[key] for key in ("text", "findings") if key in changes}
    if "add" in changes:
        fields["findings"] = added(fields["findings"], changes["add"])
    if fields["origin"] in ("accepted", "edited"):
        fields["origin"] = "accepted" if fields["text"] == drafts.get(fields["by"]) else "edited"
    fields["findings"] = tuple(fields["findings"])
    if any(fields[key] != getattr(before, key) for key in ("text", "findings")):
        fields["verdict"] = None
    fields["verdict"] = changes.get("verdict", fields["verdict"])
    check(fields)
    return fields


def added(findings: Sequence[str], text: str) -> list[str]:
    """The findings with those that a text names, in place of their denials; a ValueError if it names none.

    >>> added(["left", "nodule"], "no lung nodules")
    ['left', 'lung', 'no nodule']
    """
    new = tags(text)
    if not new:
        raise ValueError(f"no term of the lexicon in “{text[:80]}”")
    named = {tag.removeprefix("no ") for tag in new}
    return sorted([*new, *(tag for tag in findings if tag.removeprefix("no ") not in named)])


def check(fields: dict) -> None:
    """Raise a ValueError if a text is too long or not UTF-8, or if there is nothing to approve."""
    if len(fields["text"]) > LONGEST:
        raise ValueError(f"a text of {len(fields['text']):,} characters; at most {LONGEST:,} can be saved")
    if any("\ud800" <= letter <= "\udfff" for letter in fields["text"]):
        raise ValueError("half of a character that has two parts; delete the last one and type it again")
    if fields["verdict"] == "explained" and not fields["text"].strip():
        raise ValueError("no text: write what is seen and what follows from it, or press V or W")
    if unknown := [tag for tag in fields["findings"] if tag.removeprefix("no ") not in NAMES]:
        raise ValueError(f"no terms of the lexicon: {', '.join(unknown)}")


#: Every term that a finding can be.
NAMES = tuple(sorted(term for terms in TERMS.values() for term in terms))


def tags(text: str) -> tuple[str, ...]:
    """The findings that a text states, by the clinical lexicon.

    >>> tags("A nodule in the left lung, no effusion.")
    ('left', 'lung', 'no effusion', 'nodule')
    """
    return tuple(sorted(term if affirmed else f"no {term}" for term, affirmed in facts(text)))
