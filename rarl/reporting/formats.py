"""How the report writes numbers, and rows of a table as the templates read them."""

from collections.abc import Iterable

import pandas as pd

MINUS = "\N{MINUS SIGN}"


def percent(number: float | None) -> str:
    """Format a share; a dash if it is missing."""
    return "–" if number is None else f"{number:.1f}"


def signed(number: float) -> str:
    """Format a difference in points, with a typographic minus sign.

    >>> signed(2.25), signed(-0.04), signed(-3.0)
    ('+2.2', '0.0', '−3.0')
    """
    text = f"{number:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def points(span: tuple[float, float], unit: str = "") -> str:
    """Format a range of differences, or one difference if both ends are the same."""
    low, high = (signed(end) + unit for end in span)
    return low if low == high else f"{low} to {high}"


def p_value(number: float) -> str:
    """Format a p value with three decimals."""
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def form(cell: dict) -> tuple[str, str]:
    """Format the form of the answers: share without `<answer>`, and mean number of words.

    >>> form({"untagged": 2.5, "answer_words": 1.27}), form({"untagged": None, "answer_words": 1.0}), form({})
    (('2.5 %', '1.3'), ('not asked for', '1.0'), ('–', '–'))
    """
    if cell.get("answer_words") is None:
        return "–", "–"
    untagged = "not asked for" if cell["untagged"] is None else f"{percent(cell['untagged'])} %"
    return untagged, percent(cell["answer_words"])


def has(rows: list[dict], key: str) -> bool:
    """Whether any row has a value under this key; tables of earlier versions lack columns."""
    return any(row.get(key) is not None for row in rows)


def kappa(number: float | None) -> str:
    """Format Cohen's kappa."""
    return "undefined" if number is None else f"{number:.2f}".replace("-", MINUS)


def mark(score: int | None) -> str:
    """Return the mark of a 0/1 score."""
    return {1: "✓", 0: "✗", None: "?"}[score]


def as_text(item: object) -> str:
    """Format a parameter or a count.

    >>> as_text(True), as_text(0.00012345), as_text(61440), as_text(["a", "b"])
    ('yes', '0.0001234', '61,440', 'a, b')
    """
    if isinstance(item, bool) or item is None:
        return {True: "yes", False: "no", None: "none"}[item]
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, int):
        return f"{item:,}"
    return ", ".join(map(str, item)) if isinstance(item, list) else str(item)


def plain(text: object) -> str:
    r"""Return text for one cell or line of Markdown: nothing in it is markup, a link or a new line; "" for None.

    >>> print(plain("a | b\n[x](y)"))
    a \| b \[x\](y)
    """
    text = "" if text is None else str(text)
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#!" else c for c in " ".join(text.split()))


def markdown_table(head: list, rows: Iterable[Iterable]) -> list[str]:
    """Return the lines of a GitHub table.

    >>> markdown_table(["a", "b"], [[1, None]])
    ['| a | b |', '| --- | --- |', '| 1 |  |']
    """
    lines = [f"| {' | '.join('' if cell is None else str(cell) for cell in line)} |" for line in (head, *rows)]
    return [lines[0], "| " + " | ".join(["---"] * len(head)) + " |", *lines[1:]]


def records(frame: pd.DataFrame) -> list[dict]:
    """Return the rows as dicts, with None for missing values."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def grouped(frame: pd.DataFrame, key: str) -> dict[str, list[dict]]:
    """Return value of a column -> its rows, in the order of the frame."""
    return {str(value): records(rows) for value, rows in frame.groupby(key, sort=False)}


def pivot(lines: list[dict], keys: list[str]) -> list[dict]:
    """Return long-form lines as one row per key, with the models' cells under `models`."""
    rows: dict[tuple, dict] = {}
    for line in lines:
        key = {k: line[k] for k in keys}
        rows.setdefault(tuple(key.values()), key | {"models": {}})["models"][line["model"]] = line
    return list(rows.values())
