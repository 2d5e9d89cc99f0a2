"""Two revisions side by side: the parameters that differ, and what moved, with paired tests (`rarl diff`).

The rows, the tests and their family are those of `rarl.experiments.runs`. A row without a paired test, because
verdicts are missing, has the difference of the two scores in `metrics/`, with an interval of two independent samples.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rarl.errors import UserError
from rarl.experiments.revisions import Experiment
from rarl.experiments.runs import (
    ONE_SEED,
    TESTED,
    UNCHANGED,
    correct,
    differing,
    main_judge,
    rows,
    seeds_of_both,
    untested,
)
from rarl.reporting.formats import as_text, markdown_table, p_value, percent, plain, signed
from rarl.reporting.scoring import WITHOUT_OWN_TEST
from rarl.reporting.stats import unpaired
from rarl.reporting.tables import GAP, SETS

KEYS = ("model", "mode", "set")
#: Rows and parameters that are shown at most, so that everything fits on a screen.
SHOWN, PARAMETERS = 16, 8
WIDTH = 110
#: Values of `test` with which the two scores are nevertheless those of the two revisions.
UNPAIRED = ("not at hand", "other questions", "other numbers")
NOT_COMPARED = "not compared"
HEAD = ("model", "mode", "test set", "", "", "points", "", "p (Holm)", "seed SD", "verdict")


@dataclass
class Diff:
    """The comparison of two revisions, `a` and `b`."""

    names: tuple[str, str]
    judges: tuple[str, str]
    confidence: float
    parameters: list[tuple[str, list]]
    rows: list[dict]
    """A dict per model, mode and test set of both (`row_of`): first those that differ significantly, largest first."""
    only: dict[str, list[tuple]]
    """Model, mode and test set of the scores that only `a` or only `b` has."""
    notes: list[str]
    seeds: tuple[list[int], list[int]]
    """The seeds of `a` and of `b`, those of the two revisions first."""

    @property
    def moved(self) -> list[dict]:
        """The rows with another score."""
        return [row for row in self.rows if row["difference"]]

    @property
    def status(self) -> int:
        """Git's exit code: 1 if a score differs, 0 if none does; 2 if none does and some cannot be compared."""
        if self.moved or any(self.only.values()):
            return 1
        return 2 if any(row["verdict"] == NOT_COMPARED for row in self.rows) else 0


def diff(first: Experiment, second: Experiment, one_seed: bool = False) -> Diff:
    """Compare two revisions, each with the finished experiments that differ from it only in `seed`.

    With `one_seed`, or if the two differ only in `seed`, these are left out.

    Raises:
        UserError: the parameters of one of them are not valid in this version, or neither has scores.
    """
    judges = shared_judge(first, second)
    sides = ([first], [second]) if one_seed else seeds_of_both(first, second)
    alpha = 1 - second.params["report"]["confidence"]
    before, after = (
        {key_of(line): line for line in found if line["set"] != WITHOUT_OWN_TEST}
        for found in (rows(first, first, judges[0], judges[0], alpha), rows(first, second, *judges, alpha, sides))
    )
    names = first.name, second.name
    if not before and not after:
        found = f"neither {names[0]} nor {names[1]} has scores, or only in another version's format"
        raise UserError("metrics/scores", found, "the results of a run", "`dvc repro`, or name revisions with results")
    both = [line for key, line in after.items() if key in before]
    correct(both, alpha)
    found = [row_of(before[key_of(line)], line, 1 - alpha) for line in both]
    found.sort(key=lambda row: (not row["differs"], -abs(row["difference"] or 0)))
    only = {"a": [key for key in before if key not in after], "b": [key for key in after if key not in before]}
    seeds = tuple([run.params["seed"] for run in side] for side in sides)
    parameters = [(key, values) for key, values in differing([first, second]) if key != "seed" or not against(seeds)]
    return Diff(names, judges, 1 - alpha, parameters, found, only, notes(both, found), seeds)


def key_of(line: dict) -> tuple[str, str, str]:
    """Return model, mode and test set."""
    return tuple(line[key] for key in KEYS)


def shared_judge(first: Experiment, second: Experiment) -> tuple[str, str]:
    """Return the judge to compare by, for each side: the second's main judge, else one that rated both.

    If no judge rated both, the two main judges, whose scores are not compared.
    """
    mains, theirs = (main_judge(first), main_judge(second)), first.params["judges"]
    for judge in (mains[1], mains[0], *second.params["judges"]):
        if judge in theirs and judge in second.params["judges"]:
            return judge, judge
    return mains


def row_of(before: dict, line: dict, confidence: float) -> dict:
    """Return one row: both scores, the difference in points with its interval, and the paired test or None."""
    test, scores = line["test"], [before["final"], line["final"]]
    row = {key: line[key] for key in KEYS} | dict(zip("ab", scores)) | dict.fromkeys((*GAP, "p", "p_holm", "differs"))
    if test == TESTED:
        row |= {key: round(line[key], 5 if key in ("p", "p_holm") else 2) for key in (*GAP, "p", "p_holm")}
        row["differs"] = line["differs"]
        if "seeds" in line:
            row |= dict(zip("ab", (round(line[f"{side}_percent"], 2) for side in ("first", "second"))))
            row |= {"seeds": line["seeds"]}
    elif test in UNPAIRED and None not in scores:
        sizes = [cell["n_effective"] or cell["n"] for cell in (before, line)]
        span = unpaired(scores[0], sizes[0], scores[1], sizes[1], confidence)
        row |= {key: round(value, 2) for key, value in zip(GAP, (scores[1] - scores[0], *span))}
    elif test == UNCHANGED:
        row |= {"difference": 0.0}
    return row | {"test": test, "verdict": verdict(row, test), "seed_sd": line["seed_sd"]}


def verdict(row: dict, test: str) -> str:
    """Return what a row says, in one or two words."""
    if row["differs"]:
        return "higher" if row["difference"] > 0 else "lower"
    if row["difference"] is None:
        return NOT_COMPARED
    return {TESTED: "within noise", UNCHANGED: UNCHANGED}.get(test, "unpaired")


def notes(lines: Sequence[dict], found: Sequence[dict]) -> list[str]:
    """Return in sentences why rows are not tested, what is missing, and what a test leaves out."""
    sentences = untested((line["model"], line["test"]) for line in lines)
    if missing := dict.fromkeys(what for line in lines for what in line.get("missing", ())):
        sentences.append(f"Missing: {', '.join(missing)}")
    if any(row["difference"] and row["verdict"] == "unpaired" for row in found):
        sentences.append("unpaired: from the scores in metrics/, with an interval of independent samples, no test")
    if counts := [row["seeds"] for row in found if "seeds" in row]:
        sentences.append("Interval and p include the spread over seeds")
        if any(1 in pair for pair in counts):
            sentences[-1] += ", and one seed is taken to spread like those of the other side"
    if any(row["differs"] and "seeds" not in row for row in found):
        beside = ": compare a difference with the column seed SD" if any(row["seed_sd"] for row in found) else ""
        sentences.append(f"{ONE_SEED}{beside} (`rarl study seeds`)")
    return sentences


def count(number: int, what: str) -> str:
    """Return a number with its noun.

    >>> count(1, "row"), count(0, "row")
    ('1 row', '0 rows')
    """
    return f"{number} {what}{'s' * (number != 1)}"


def against(seeds: tuple[list, list]) -> str:
    """Return the numbers of seeds of both sides; empty if there is one of each.

    >>> against(([7, 8, 9], [7])), against(([7], [8]))
    ('3 seeds against 1', '')
    """
    a, b = map(len, seeds)
    return f"{count(a, 'seed')} against {b}" if a + b > 2 else ""


def headline(found: Diff) -> str:
    """Return the result in one sentence."""
    moved, tested = len(found.moved), sum(row["test"] == TESTED for row in found.rows)
    differ = sum(bool(row["differs"]) for row in found.rows)
    comparable = sum(row["difference"] is not None for row in found.rows)
    all_of = count(comparable, "score")
    if not moved:
        return f"none of {all_of} differs" if comparable else "no score can be compared"
    family = f"Holm over the {count(tested, 'row')} tested, p < {1 - found.confidence:.2g}"
    beyond = f"{differ} of them beyond noise ({family})" if tested else "without a paired test"
    return f"{moved} of {all_of} moved, {beyond}"


def folded(found: Diff, shown: int) -> list[str]:
    """Return a line each for the rows that are not shown: smaller movers, equal ones, and those of one revision."""
    lines, rest = [], found.moved[shown:]
    if rest:
        ends = " to ".join(signed(end(row["difference"] for row in rest)) for end in (min, max))
        beyond = sum(bool(row["differs"]) for row in rest)
        what = f"{beyond} of them beyond noise" if beyond else "no difference is significant"
        lines.append(f"{count(len(rest), 'more row')} moved by {ends} points, {what} (--all lists them)")
    same = [row for row in found.rows if row["test"] == UNCHANGED]
    if same:
        models = ", ".join(dict.fromkeys(row["model"] for row in same))
        lines.append(f"{count(len(same), 'row')} unchanged, with the same completions and verdicts ({models})")
    if equal := sum(row["difference"] == 0 for row in found.rows) - len(same):
        lines.append(f"{count(equal, 'row')} with the same score from other completions or verdicts")
    shared = [key_of(row) for row in found.rows]
    for side, other, name in (("a", "b", found.names[0]), ("b", "a", found.names[1])):
        own = [{key[i] for key in shared + found.only[side]} for i in range(3)]
        lacking = [{key[i] for key in shared + found.only[other]} for i in range(3)]
        parts = [f"{what} {', '.join(sorted(a - b))}" for what, a, b in zip(KEYS, own, lacking) if a - b]
        if found.only[side]:
            lines.append(
                f"{count(len(found.only[side]), 'row')} in {name} only" + (f" ({'; '.join(parts)})" if parts else "")
            )
    return lines


def cells(row: dict) -> list[str]:
    """Return the texts of one row, in the order of `HEAD`."""
    gap, low, high = (row[key] for key in GAP)
    return [
        row["model"],
        row["mode"],
        SETS.get(row["set"], row["set"]),
        *(percent(row[side]) for side in "ab"),
        signed(gap),
        f"{signed(low)} to {signed(high)}",
        "–" if row["p_holm"] is None else p_value(row["p_holm"]),
        percent(row["seed_sd"]),
        row["verdict"],
    ]


def table(found: Diff, shown: int) -> list[list[str]]:
    """Return the head and the largest movers."""
    interval = f"{100 * found.confidence:g} % interval"
    lines = [[*HEAD[:3], *map(short, found.names), HEAD[5], interval, *HEAD[7:]], *map(cells, found.moved[:shown])]
    known = any(row["seed_sd"] is not None for row in found.moved[:shown])
    return lines if known else [line[:8] + line[9:] for line in lines]


def short(name: str) -> str:
    """Return a name of at most 14 characters; a full commit hash as its first seven.

    >>> short("4fe37230f1a2b3c4d5e6f708192a3b4c5d6e7f80"), short("a-branch-with-a-long-name")
    ('4fe3723', 'a-branch-with…')
    """
    if len(name) == 40 and set(name) <= set("0123456789abcdef"):
        return name[:7]
    return clip(name, 14)


def clip(text: str, most: int) -> str:
    """Return at most `most` characters of a text."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def changes(found: Diff, most: int | None = PARAMETERS) -> list[tuple[str, str, str]]:
    """Return key and both values of the parameters that differ, as text."""
    return [(key, *(clip(as_text(value), 40) for value in values)) for key, values in found.parameters[:most]]


def title(found: Diff) -> str:
    """Return the two names, the judge and the result in one line."""
    names, judges = (" -> ".join(dict.fromkeys(pair)) for pair in (found.names, found.judges))
    seeds = against(found.seeds)
    return f"{names}{f' ({seeds})' if seeds else ''}, {judges} judge: {headline(found)}"


def text(found: Diff, everything: bool = False) -> str:
    """Return the comparison for a terminal, on one screen unless `everything` is asked for."""
    shown = len(found.rows) if everything else SHOWN
    lines = [title(found)]
    listed = changes(found, None if everything else PARAMETERS)
    width = max((len(key) for key, *_ in listed), default=0)
    lines += [f"  {key:<{width}}  {a} -> {b}" for key, a, b in listed]
    if more := len(found.parameters) - len(listed):
        lines.append(f"  {count(more, 'more parameter')} (--all lists them)")
    if found.moved:
        grid = table(found, shown)
        widths = [max(map(len, column)) for column in zip(*grid)]
        texts = {0, 1, 2, len(widths) - 1}
        aligned = (
            [
                cell.ljust(width) if i in texts else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths))
            ]
            for line in grid
        )
        lines += ["", *("  ".join(line).rstrip() for line in aligned)]
        lines.append("")
    lines += [f"{line}." for line in folded(found, shown)]
    lines += [line for note in found.notes for line in textwrap.wrap(f"{note}.", WIDTH)]
    return "\n".join(lines)


def markdown(found: Diff, everything: bool = False) -> str:
    """Return the comparison as GitHub's Markdown, for a comment."""
    shown = len(found.rows) if everything else SHOWN
    names = [plain(short(name)) for name in found.names]
    lines = [plain(title(found)).replace("-\\>", "→")]
    if found.parameters:
        parameters = ([f"`{key}`", plain(a), plain(b)] for key, a, b in changes(found, None))
        lines += ["", *markdown_table(["parameter", *names], parameters)]
    if found.moved:
        head, *body = ([plain(cell) for cell in line] for line in table(found, shown))
        lines += ["", *markdown_table(head, body)]
    return "\n".join([*lines, "", *(f"- {plain(line)}." for line in (*folded(found, shown), *found.notes))])


def as_json(found: Diff) -> str:
    """Return all rows that are not unchanged as strict JSON."""
    sides = zip("ab", found.names, found.judges)
    fields = {side: {"name": name, "judge": judge} for side, name, judge in sides}
    if against(found.seeds):
        fields = {side: fields[side] | {"seeds": seeds} for side, seeds in zip("ab", found.seeds)}
    fields |= {
        "confidence": found.confidence,
        "parameters": {key: dict(zip("ab", values)) for key, values in found.parameters},
        "rows": [row for row in found.rows if row["test"] != UNCHANGED],
        "unchanged": sum(row["test"] == UNCHANGED for row in found.rows),
        "only": {side: [dict(zip(KEYS, key)) for key in keys] for side, keys in found.only.items()},
        "notes": found.notes,
    }
    return json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
