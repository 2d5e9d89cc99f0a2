"""The report's numbers as Markdown: for a pull request, an issue, or whoever reads no HTML."""

import pandas as pd

from rarl.reporting import page, tables
from rarl.reporting.claims import overall
from rarl.reporting.inputs import Run
from rarl.reporting.page import NOT_CLINICAL, findings, is_phantom, p_value, percent, records, signed


def report(run: Run, frames: dict[str, pd.DataFrame]) -> str:
    """The whole report as text; `frames` as for `page.render`."""
    confidence = f"{100 * run.params.report.confidence:g} %"
    parts = ["# RARL report", ""]
    if is_phantom(run):
        parts += ["**PHANTOM RESULTS: drawn images, no patient, no medical meaning.**", ""]
    parts += [f"**{NOT_CLINICAL}** Percent, with {confidence} intervals; main judge `{run.main_judge}`.", ""]
    parts += [f"- {plain(sentence)}" for sentence in findings(run, frames)]
    parts += ["", "## The paper's claims", "", *claims(frames["claims"])]
    parts += ["", "## Table 2: General-domain images, by training samples", "", *table2(run.params.profile)]
    for name in ("table3", "table6"):
        parts += ["", f"## {tables.paper()[name]['source']}: {tables.paper()[name]['title']}", ""]
        parts += paper_table(run, frames[name])
    parts += ["", "## Own test", "", *own_test(frames["own_test"])]
    parts += ["", "## Paired tests (McNemar, Holm)", "", *paired(frames["paired_tests"])]
    for name, title in OTHERS.items():
        if len(frames[name]):
            parts += ["", f"## {title}", "", *grid(records(frames[name]))]
    for name, title in STUDIES.items():
        if rows := page.study(name, run.params.profile):
            parts += ["", f"## {title}", "", *grid(rows)]
    return "\n".join(parts) + "\n"


OTHERS = {
    "detectable": "Smallest difference that n questions show (80 % power)",
    "grounding": "Without the right picture",
    "breakdown": "Breakdown",
    "yes_no": "Yes-or-no questions",
    "agreement": "Agreement of the raters",
    "reward_gap": "Judges against the truth",
}
STUDIES = {"grid": "RARL's two changes apart", "seeds": "Over seeds"}


def plain(text: object) -> str:
    """Text for one cell or line: nothing in it is markup, a link or a new line."""
    text = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#!" else c for c in text)


def table(head: list[str], rows: list[list]) -> list[str]:
    lines = [head, ["---"] * len(head), *([plain(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def grid(lines: list[dict]) -> list[str]:
    """Lines as they are; empty cells for what is missing."""
    rows = [["" if value is None else value for value in line.values()] for line in lines]
    return table([plain(column) for column in lines[0]], rows)


def table2(profile: str) -> list[str]:
    """The paper's rows and ours, with our Total minus the paper's over all rows."""
    columns = ["source", "method", "samples", *tables.paper()["tasks"], "Total", "n"]
    return grid(
        [
            {**{column: row[column] for column in columns},
             "ours minus paper": signed(row["difference"]["Total"]) + " (beyond the interval)" * row["beyond"]["Total"]
             if row["difference"] else None}
            for row in page.table2(profile)
        ]
    )  # fmt: skip


def interval(row: dict, name: str) -> str:
    if row[name] is None:
        return "–"
    return f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"


def counts(row: dict) -> str:
    named = {"unscored": "unscored", "empty": "empty", "truncated": "cut off"}
    return ", ".join([f"n {row['n']}", *(f"{row[k]} {label}" for k, label in named.items() if row[k])])


def claims(frame: pd.DataFrame) -> list[str]:
    lines, rows = records(frame), []
    for claim in tables.paper()["claims"]:
        cells = []
        for source in ("paper", "ours"):
            own = [x for x in lines if (x["claim"], x["source"]) == (claim["id"], source)]
            span = page.spans(own)
            said = [overall([x["verdict"] for x in own])]
            if span:
                said.append(f"{page.points(span['difference'])} points")
            if "ratio" in span:
                said.append(page.points(span["ratio"], " %"))
            cells.append("; ".join(said))
        rows.append([f"{claim['text']} ({claim['where']})", *cells])
    return table(["claim", "the paper's tables", "this run"], rows)


def paper_table(run: Run, frame: pd.DataFrame) -> list[str]:
    """A line for each row, test set and judge: ours, the difference, and the paper's figures by judge."""
    judges, rows = tables.paper()["judges"], []
    cells = records(frame)
    printed = {(c["row"], c["set"], c["judge"]): c for c in cells if c["source"] == "paper"}
    for cell in (c for c in cells if c["source"] == "ours"):
        for score in ("final", "reasoning"):
            if cell[score] is None:
                continue
            prefix = "" if score == "final" else "reasoning_"
            gap = cell[f"{prefix}difference"]
            theirs = [printed.get((cell["row"], cell["set"], judge), {}).get(score) for judge in judges]
            rows.append([
                cell["row"], tables.SETS[cell["set"]], score, cell["judge"], interval(cell, score), counts(cell),
                "–" if gap is None else signed(gap) + (" (beyond the interval)" if cell[f"{prefix}beyond"] else ""),
                *("–" if figure is None else f"{figure:.2f}" for figure in theirs),
            ])  # fmt: skip
    head = ["row", "test set", "score", "judge", "ours", "counts", "ours minus paper", *judges.values()]
    return table(head, rows)


def own_test(frame: pd.DataFrame) -> list[str]:
    labels = tables.MODELS | tables.BASELINES
    rows = []
    for row in records(frame):
        reasoning = interval(row, "reasoning") if row["model"] in tables.MODELS else "–"
        rows.append([labels[row["model"]], row["mode"], interval(row, "final"), reasoning, counts(row)])
    return table(["model", "mode", "final", "reasoning", "counts"], rows)


def paired(frame: pd.DataFrame) -> list[str]:
    rows = [
        [t["family"], t["first"], t["second"], signed(t["difference"]), f"{signed(t['low'])} to {signed(t['high'])}",
         p_value(t["p_holm"]), "differs" if t["differs"] else "within noise", t["n"]]
        for t in records(frame)
    ]  # fmt: skip
    return table(["family", "first", "second", "points", "interval", "p (Holm)", "", "n"], rows)
