"""The report's numbers as Markdown, for pull requests, issues and plain-text readers."""

import pandas as pd

from rarl.reporting import page, tables
from rarl.reporting.findings import findings
from rarl.reporting.formats import form, markdown_table, p_value, percent, points, records, signed
from rarl.reporting.inputs import Run

#: Tables and studies that are shown as they are, with their titles.
OTHERS = {
    "detectable": "Smallest difference that n questions show (80 % power)",
    "grounding": "Without the right image",
    "breakdown": "Breakdown",
    "yes_no": "Yes-or-no questions",
    "agreement": "Agreement of the judges",
    "reward_gap": "Judges against the truth",
}
STUDIES = {"grid": "RARL's two changes separately", "seeds": "Over seeds"}


def report(run: Run, frames: dict[str, pd.DataFrame]) -> str:
    """Return the whole report as text; `frames` as for `page.render`."""
    parts = ["# RARL report", ""]
    if page.is_phantom(run):
        parts += ["**PHANTOM RESULTS: synthetic images, no patient, no medical meaning.**", ""]
    intervals = f"Percent, with {100 * run.confidence:g} % intervals; main judge `{run.main_judge}`."
    parts += [f"**{page.NOT_CLINICAL}** {intervals}", ""]
    parts += [f"- {plain(sentence)}" for sentence in findings(run, frames)]
    sections = {
        "The paper's claims": claims(frames["claims"]),
        "Table 2: General-domain images, by training samples": table2(run.params.profile),
    }
    for name in ("table3", "table6"):
        sections[f"{tables.paper()[name]['source']}: {tables.paper()[name]['title']}"] = paper_table(frames[name])
    sections |= {
        "Own test": own_test(frames["own_test"], run.form_blind_judge),
        "Paired tests (sign flips by image, Holm)": paired(frames["paired_tests"]),
        **{title: as_is(records(frames[name])) for name, title in OTHERS.items()},
        **{title: as_is(page.study(name, run.params.profile)) for name, title in STUDIES.items()},
    }
    for title, table in sections.items():
        parts += ["", f"## {title}", "", *table] if table else []
    return "\n".join(parts) + "\n"


def plain(text: object) -> str:
    r"""Return text for one cell or line: nothing in it is markup, a link or a new line.

    >>> print(plain("a | b\n[x](y)"))
    a \| b \[x\](y)
    """
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#!" else c for c in " ".join(str(text).split()))


def to_table(head: list[str], rows: list[list]) -> list[str]:
    """Return the lines of a GitHub table; the cells are made plain, the head is not."""
    return markdown_table(head, ([plain(cell) for cell in row] for row in rows))


def as_is(lines: list[dict]) -> list[str]:
    """Return lines as a table, with empty cells for missing values; empty without lines."""
    rows = [["" if value is None else value for value in line.values()] for line in lines]
    return to_table([plain(column) for column in lines[0]], rows) if lines else []


def table2(profile: str) -> list[str]:
    """Return the paper's rows and ours, with our Total minus the paper's over all rows."""
    lines = []
    for row in page.table2(profile):
        line = {c: row[c] for c in ("source", "method", "samples", *tables.paper()["tasks"], "Total", "n")}
        gap = row["difference"].get("Total")
        lines.append(line | {"ours minus paper": None if gap is None else beside(gap, row["beyond"]["Total"])})
    return as_is(lines)


def beside(gap: float, beyond: bool) -> str:
    """Format our score minus the paper's."""
    return signed(gap) + " (beyond the interval)" * beyond


def interval(row: dict, name: str) -> str:
    """Format a score with its interval."""
    if row[name] is None:
        return "–"
    return f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"


def counts(row: dict) -> str:
    """Format n, its effective n, the form of the answers and, if there are any, faulty answers."""
    parts = [f"n {row['n']}" + (f" ({percent(row['n_effective'])} effective)" if row["n"] else "")]
    if row["answer_words"] is not None:
        untagged, words = form(row)
        parts += [f"{untagged} without <answer>" if untagged.endswith("%") else "tags not asked for", f"{words} words"]
    return ", ".join([*parts, *(f"{row[k]} {k}" for k in ("unscored", "empty", "truncated") if row[k])])


def claims(frame: pd.DataFrame) -> list[str]:
    """Return a line per claim: the verdicts and the ranges of points and ratios."""
    rows = []
    for claim in page.claim_cards(frame):
        cells = []
        for source in ("paper", "ours"):
            span = claim["ranges"][source]
            parts = [claim["verdicts"][source]]
            parts += [f"{points(span['difference'])} points"] if "difference" in span else []
            parts += [points(span["ratio"], " %")] if "ratio" in span else []
            cells.append("; ".join(parts))
        rows.append([f"{claim['text']} ({claim['where']})", *cells])
    return to_table(["claim", "the paper's tables", "this run"], rows)


def paper_table(frame: pd.DataFrame) -> list[str]:
    """Return a line per row, test set and judge: ours, the difference, and the paper's scores by judge."""
    judges, rows = tables.paper()["judges"], []
    cells = records(frame)
    printed = {(c["row"], c["set"], c["judge"]): c for c in cells if c["source"] == "paper"}
    for cell in (c for c in cells if c["source"] == "ours"):
        for score, prefix in (("final", ""), ("reasoning", "reasoning_")):
            if cell[score] is None:
                continue
            gap = cell[f"{prefix}difference"]
            theirs = [printed.get((cell["row"], cell["set"], judge), {}).get(score) for judge in judges]
            row = [cell["row"], tables.SETS[cell["set"]], score, cell["judge"], interval(cell, score), counts(cell)]
            row.append("–" if gap is None else beside(gap, cell[f"{prefix}beyond"]))
            rows.append(row + ["–" if figure is None else f"{figure:.2f}" for figure in theirs])
    head = ["row", "test set", "score", "judge", "ours", "counts", "ours minus paper", *judges.values()]
    return to_table(head, rows)


def own_test(frame: pd.DataFrame, form_blind: str | None) -> list[str]:
    """Return the models' scores and the baselines on the own test set, with those by the form-blind judge."""
    labels = tables.MODELS | tables.BASELINES
    rows = []
    for row in records(frame):
        reasoning = interval(row, "reasoning") if row["model"] in tables.MODELS else "–"
        blind = [interval(row, "form_blind")] if form_blind else []
        rows.append([labels[row["model"]], row["mode"], interval(row, "final"), *blind, reasoning, counts(row)])
    blind = [plain(f"final by {form_blind}")] if form_blind else []
    return to_table(["model", "mode", "final", *blind, "reasoning", "counts"], rows)


def paired(frame: pd.DataFrame) -> list[str]:
    """Return the paired tests."""
    rows = []
    for t in records(frame):
        verdict = "significant" if t["differs"] else "not significant"
        interval = f"{signed(t['low'])} to {signed(t['high'])}"
        pair = [t["family"], t["first"], t["second"]]
        n = (t["n"], percent(t["n_effective"]))
        rows.append([*pair, signed(t["difference"]), interval, p_value(t["p_holm"]), verdict, *n])
    return to_table(["family", "first", "second", "points", "interval", "p (Holm)", "", "n", "effective n"], rows)
