"""CSV files that are safe to open in a spreadsheet, whatever text models, questions and data sets contain.

A spreadsheet evaluates a cell that begins with `=`, `+`, `-`, `@`, tab or a line break as a formula. Such a cell is
prefixed with an apostrophe, as OWASP advises ("CSV Injection"); a number such as -3.2 stays a number.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rarl.records import atomic_file

#: Full-width signs count too, because some spreadsheets accept them. Existing apostrophes are doubled, so that
#: `restore` is exact.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def safe(cell: str) -> str:
    """Return the cell as text that no spreadsheet evaluates.

    >>> safe("=1+1"), safe("-3.2"), safe("- 3 cm"), safe("yes")
    ("'=1+1", '-3.2', "'- 3 cm", 'yes')
    """
    return f"'{cell}" if _FORMULA.match(cell) and not _is_number(cell) else cell


def restore(cell: str) -> str:
    """Return the cell as it was before `safe`.

    >>> restore(safe("=1+1"))
    '=1+1'
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell == cell.strip()


def write_csv(path: str | Path, rows: Iterable[Sequence]) -> None:
    r"""Write rows atomically, the header first, with every cell made safe.

    Line breaks inside a cell become `\n`: before Python 3.13 `csv` does not quote `\r`, at which a spreadsheet begins
    a new row.
    """
    with atomic_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows(map(_written, row) for row in rows)


def _written(cell: object) -> object:
    return safe(re.sub(r"\r\n?", "\n", cell)) if isinstance(cell, str) else cell


def write_frame(path: str | Path, frame) -> None:
    """Write a pandas frame like `write_csv`, without its index."""
    text = frame.to_csv(index=False, quoting=csv.QUOTE_ALL)
    write_csv(path, csv.reader(io.StringIO(text, newline="")))
