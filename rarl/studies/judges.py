"""The study of the judges: their verdicts on rows that somebody has labelled, against the labels.

Rows are read from JSON lines or CSV, judged as the stage `judge` does, and counted by labeller, kind of question and
length of the answer. Questions repeat with other images, so that intervals and folds take each question as one unit.
"""

import csv
import io
import json
import reprlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from rarl.answers.completion import read_completion
from rarl.answers.exact import kind_of
from rarl.errors import UserError
from rarl.judges.verdicts import judged
from rarl.params import Params
from rarl.records import Kind, Prediction, Sample
from rarl.registry import JUDGE_KINDS
from rarl.reporting.formats import kappa as as_kappa
from rarl.reporting.formats import markdown_table
from rarl.spreadsheet import restore
from rarl.studies.peers import PEERS, best_threshold, cross_validated, kappa, peer_scores

TEMPLATE = Path(__file__).with_suffix(".md")
RESAMPLES = 2000
#: Kinds of judges that need phantoms or people, and so cannot rate these rows.
CANNOT = ("truth", "human")
#: Longest answer, in words, of each class.
LENGTHS = {"1-3 words": 3, "4-10 words": 10, "more words": float("inf")}
GROUPS = ("all", "yes_no", "choice", "number", "open", *LENGTHS)
#: What each field is, for messages.
FIELDS = {
    "question": "the question",
    "answers": "the accepted reference answers: a list, or in CSV one cell with | between them",
    "prediction": "the model's completion or answer (may be empty)",
    "judge": "who labelled the row",
    "right": "the label: 0 (wrong) or 1 (right)",
    "kind": "yes_no, choice, number or open; without it the reference decides",
    "choices": "the options of a multiple-choice question: a list, or in CSV one cell with | between them",
}
HEAD = ("rows", "judge", "n", "κ", "95 % interval", "false accepts", "false rejects")


def _as_list(value: object) -> list:
    parts = value if isinstance(value, list) else [value]
    return [part for part in parts if part is not None and str(part).strip()]


Texts = Annotated[list[str], BeforeValidator(_as_list)]


class Labelled(BaseModel):
    """A model's answer to a question, and whether somebody found it right. Other fields are not read."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    question: str
    answers: Annotated[Texts, Field(min_length=1)]
    prediction: str
    judge: Annotated[str, Field(min_length=1)]
    right: bool
    kind: Kind
    choices: Texts = []
    line: int
    """Of the file."""

    @model_validator(mode="before")
    @classmethod
    def has_a_kind(cls, row: Any):
        """Derive a missing kind from the reference, the question and the options."""
        if isinstance(row, dict) and row.get("kind") in (None, ""):
            answers, choices = _as_list(row.get("answers")), _as_list(row.get("choices"))
            texts = all(isinstance(text, str) for text in choices)
            row = row | {"kind": kind_of(str(*answers[:1]), str(row.get("question")), choices if texts else ())}
        return row

    @property
    def group(self) -> str:
        """The question in one spelling: rows of one question are one unit of the bootstrap and of the folds."""
        return " ".join(self.question.casefold().split())


class Figures(BaseModel):
    """How a judge agrees with the labels of `n` rows; kappa is None if all rows have one label."""

    n: int
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    false_accepts: int
    false_rejects: int
    right: int = Field(default=0, exclude=True)
    """Rows that are labelled right."""


Table = dict[str, dict[str, dict[str, Figures]]]
"""Judge -> who labelled -> group of rows -> figures."""
TABLE = TypeAdapter(Table)


@dataclass(frozen=True)
class Judged:
    """One judge on all rows."""

    how: str
    """Completes "This judge ..."."""
    accepted: list[bool | None]
    """None where the judge gave no verdict."""
    reasons: list[str]
    threshold: dict[str, float] = field(default_factory=dict)
    """`set`; or `all_rows` and, over the folds, `low` and `high` of a threshold that was cross-validated."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Study:
    """Labelled rows, each judge's verdicts on them, and the figures by kind and by length of the answer."""

    rows: list[Labelled]
    results: dict[str, Judged]
    kinds: Table
    lengths: Table

    def table(self, labelled_by: str, before: Table) -> list[tuple[str, ...]]:
        """Return the lines under `HEAD` for one labeller: the judges side by side, group by group."""
        lines = []
        for group in GROUPS:
            for name in self.results:
                found = self.kinds[name][labelled_by] | self.lengths[name][labelled_by]
                if group in found:
                    old = before.get(name, {}).get(labelled_by, {}).get(group)
                    lines.append((group, name, *_cells(found[group], old)))
        return lines

    def disagreements(self, name: str) -> list[tuple[Labelled, str]]:
        """Return the rows where a judge's verdict differs from the label, with its reason."""
        result = self.results[name]
        return [
            (row, reason)
            for row, accepted, reason in zip(self.rows, result.accepted, result.reasons, strict=True)
            if accepted is not None and accepted != row.right
        ]

    def labellers(self) -> list[str]:
        """Return who labelled the rows, in the order of the file."""
        return list(dict.fromkeys(row.judge for row in self.rows))

    def as_json(self, command: str) -> dict:
        """Return the figures, which have no text of the rows."""
        return {
            "command": command,
            "rows": len(self.rows),
            "questions": len({row.group for row in self.rows}),
            "thresholds": {name: result.threshold for name, result in self.results.items() if result.threshold},
            "judges": TABLE.dump_python(self.kinds),
            "lengths": TABLE.dump_python(self.lengths),
        }

    def as_markdown(self, command: str, before: Table) -> str:
        """Return the study for people; `command` makes it again. It has no text of the rows."""
        judges = []
        for name, result in self.results.items():
            form = "{all_rows:.2f} ({low:.2f} to {high:.2f})" if "low" in result.threshold else "{set:.2f}"
            threshold = form.format(**result.threshold) if result.threshold else ""
            judges.append(f"| `{name}` | {result.how} | {threshold} |")
        tables = [
            "\n".join([f"## Labelled by {one_line(name)}", "", *markdown_table(HEAD, self.table(name, before))])
            for name in self.labellers()
        ]
        return TEMPLATE.read_text(encoding="utf-8").format(
            **self.as_json(command) | {"judges": "\n".join(judges)},
            resamples=RESAMPLES,
            before=" An arrow leads from earlier judges to the present ones." if before else "",
            tables="\n\n".join(tables),
        )


def read_rows(path: Path) -> list[Labelled]:
    """Read labelled rows from a `.csv` or `.tsv` file, or from JSON lines.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or a row is not labelled or not valid.
    """
    expected = f"labelled rows with {', '.join(list(FIELDS)[:5])}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
        raise UserError(str(path), f"not UTF-8 at byte {error.start}", expected, fix) from None
    except OSError as error:
        found = (error.strerror or "cannot be read").lower()
        raise UserError(str(path), found, expected, "correct the path") from None
    lines = _csv_rows if path.suffix.lower() in (".csv", ".tsv") else _json_rows
    rows = [_row(f"{path}, line {number}", number, row) for number, row in lines(path, text)]
    if not rows:
        raise UserError(str(path), "no rows", expected, "label some rows first; docs/studies.md lists the fields")
    return rows


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, line


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count), strict=True)
    columns, start = None, 1
    try:
        for cells in reader:
            if columns is None:
                columns = [cell.strip().lower() for cell in cells]
            elif any(map(str.strip, cells)):
                row = dict(zip(columns, map(restore, cells)))
                for name in ("answers", "choices"):
                    if name in row:
                        row[name] = [part.strip() for part in row[name].split("|") if part.strip()]
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        expected = "cells with a closing quotation mark for each opening one"
        raise UserError(f"{path}, line {start}", str(error), expected, "correct the row that starts there") from None


def _row(where: str, number: int, row: object) -> Labelled:
    if not isinstance(row, dict):
        expected, fix = f"a JSON object with {', '.join(list(FIELDS)[:5])}", "write one per line, or save a CSV file"
        raise UserError(where, reprlib.repr(row), expected, fix)
    try:
        return Labelled.model_validate(row | {"line": number})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        found = f"no `{name}`" if row.get(name) in (None, "", []) else f"`{name}` is {reprlib.repr(row[name])}"
        fix = "label this row, or remove it" if name == "right" else "correct this row, or remove it"
        raise UserError(where, found, FIELDS[name], f"{fix}; docs/studies.md lists the fields") from None


def chosen_judges(params: Params, named: str | None) -> list[str]:
    """Return the judges and peers to run; by default the lexical and semantic judges of `params.yaml`.

    Raises:
        UserError: a name is neither a judge that can rate such rows nor a peer.
    """
    usable = [name for name, judge in params.judge.items() if judge.kind not in CANNOT]
    if named is None:
        return [name for name in usable if params.judge[name].kind in ("lexical", "semantic")]
    names = list(dict.fromkeys(name.strip() for name in named.split(",") if name.strip()))
    unknown = [name for name in names if name not in (*usable, *PEERS)]
    if unknown or not names:
        raise UserError(
            f"--judges {named}",
            f"{', '.join(unknown) or 'no name'}, which cannot rate labelled rows",
            f"some of {', '.join(usable)} (judges of params.yaml); {', '.join(PEERS)} (peers)",
            "correct the name, or define the judge under `judge:` in params.yaml",
        )
    return names


def study(rows: list[Labelled], names: Sequence[str], params: Params, seed: int) -> Study:
    """Judge the rows and compare; a peer is run where `params.yaml` has no judge of that name."""
    answers = [read_completion(row.prediction) for row in rows]
    results = {}
    for name in names:
        started = time.monotonic()
        result = (_judge if name in params.judge else _peer)(rows, answers, name, params)
        results[name] = replace(result, seconds=time.monotonic() - started)
    by_kind = [("all", row.kind) for row in rows]
    lengths = [len(answer.split()) for _, answer in answers]
    by_length = [(next(name for name, most in LENGTHS.items() if words <= most),) for words in lengths]
    return Study(rows, results, *(compare(rows, results, groups, seed) for groups in (by_kind, by_length)))


def _judge(rows: Sequence[Labelled], answers: Sequence[tuple[str | None, str]], name: str, params: Params) -> Judged:
    """Judge as the stage does."""
    samples, predictions = [], []
    place = {"dataset": "labelled", "split": "test", "image": "", "image_sha256": ""}
    for row, (think, answer) in zip(rows, answers, strict=True):
        asked = row.model_dump(include={"question", "answers", "kind", "choices"})
        samples.append(Sample(id=str(row.line), **place, **asked))
        predictions.append(Prediction(id=str(row.line), completion=row.prediction, think=think, answer=answer))
    settings, verdicts = params.judge[name], judged(params, name, samples, predictions)
    return Judged(
        JUDGE_KINDS[settings.kind].how,
        [None if verdict.prediction_score is None else verdict.prediction_score == 1 for verdict in verdicts],
        [verdict.unscored or verdict.evaluation for verdict in verdicts],
        {} if settings.threshold is None else {"set": settings.threshold},
    )


def _peer(rows: Sequence[Labelled], answers: Sequence[tuple[str | None, str]], name: str, params: Params) -> Judged:
    peer, given = PEERS[name], [answer for _, answer in answers]
    scores = np.array(peer_scores(name, given, [row.answers for row in rows], params.encoder))
    if peer.threshold is None:
        right = np.array([row.right for row in rows])
        thresholds = cross_validated(scores, right, [row.group for row in rows])
        chosen = {"all_rows": best_threshold(scores, right), "low": thresholds.min(), "high": thresholds.max()}
    else:
        thresholds, chosen = np.full(len(rows), peer.threshold), {"set": peer.threshold}
    reasons = [
        f"{name} is {score:.2f} (threshold {least:.2f})." if answer.strip() else "The answer is empty."
        for answer, score, least in zip(given, scores, thresholds)
    ]
    chosen = {key: round(float(value), 2) for key, value in chosen.items()}
    return Judged(peer.how, (scores >= thresholds).tolist(), reasons, chosen)


def figures(rows: Sequence[Labelled], accepted: Sequence[bool | None], seed: int) -> Figures:
    """Compare verdicts with labels; rows without a verdict are left out.

    The interval has the 2.5 and 97.5 percentiles of a bootstrap over questions. Resamples with one label are left out;
    with a single question there is no interval.
    """
    scored = [(row, verdict) for row, verdict in zip(rows, accepted, strict=True) if verdict is not None]
    index: dict[str, int] = {}
    cells = np.zeros((len({row.group for row, _ in scored}), 4))
    for row, verdict in scored:
        cells[index.setdefault(row.group, len(index)), 2 * (not verdict) + (not row.right)] += 1
    total = cells.sum(0)
    value, low, high = float(kappa(total)), None, None
    if len(cells) > 1 and not np.isnan(value):
        draws = np.random.default_rng(seed).multinomial(len(cells), [1 / len(cells)] * len(cells), RESAMPLES)
        low, high = (round(float(end), 4) for end in np.nanpercentile(kappa(draws @ cells), (2.5, 97.5)))
    return Figures(
        n=len(scored),
        kappa=None if np.isnan(value) else round(value, 4),
        kappa_low=low,
        kappa_high=high,
        false_accepts=int(total[1]),
        false_rejects=int(total[2]),
        right=int(total[0] + total[2]),
    )


def compare(rows: Sequence[Labelled], results: dict[str, Judged], groups: Sequence[Sequence[str]], seed: int) -> Table:
    """Return the figures of each judge, by labeller and by the groups of rows that each row is in."""
    places: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        for group in groups[number]:
            places.setdefault((row.judge, group), []).append(number)
    table: Table = {}
    for name, result in results.items():
        for (labelled_by, group), numbers in sorted(places.items(), key=lambda place: GROUPS.index(place[0][1])):
            found = figures([rows[i] for i in numbers], [result.accepted[i] for i in numbers], seed)
            table.setdefault(name, {}).setdefault(labelled_by, {})[group] = found
    return table


def read_before(path: Path) -> Table:
    """Read what `--json` printed earlier.

    Raises:
        UserError: the file is something else.
    """
    expected, fix = "what `rarl study judges --json` printed", "make it with `rarl study judges <rows> --json > FILE`"
    try:
        return TABLE.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(str(path), (error.strerror or "cannot be read").lower(), expected, fix) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(str(path), f"{'.'.join(map(str, first['loc']))}: {first['msg']}", expected, fix) from None


def _cells(new: Figures, old: Figures | None) -> tuple[str, ...]:
    def moved(text: Callable[[Figures], str]) -> str:
        return text(new) if old is None else f"{text(old)}→{text(new)}"

    def share(count: int, rows: int) -> str:
        return f" ({100 * count / rows:.0f} %)" if rows else ""

    def kappa_of(value: float | None) -> str:
        return as_kappa(value if value is None else round(value, 2) + 0.0)

    return (
        str(new.n) if old is None or old.n == new.n else moved(lambda found: str(found.n)),
        moved(lambda found: kappa_of(found.kappa)),
        "" if new.kappa_low is None else f"{kappa_of(new.kappa_low)} to {kappa_of(new.kappa_high)}",
        moved(lambda found: str(found.false_accepts)) + share(new.false_accepts, new.n - new.right),
        moved(lambda found: str(found.false_rejects)) + share(new.false_rejects, new.right),
    )


def one_line(text: str) -> str:
    r"""The text on one line, without control characters.

    >>> one_line("A mass.\n\x1b[31mNo edema.")
    'A mass. [31mNo edema.'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
