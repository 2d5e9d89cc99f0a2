"""What the paper claims, held against its own tables and against this run.

A claim is one or more comparisons of two scores (`claims` in `paper.json`). Each comparison is given in points
and as a ratio, with an interval of the points and a verdict: it `holds` where the whole interval lies on the
claimed side, `fails` where the whole interval lies on the other, and is `undecided` in between. A claim holds
where all of its comparisons do, fails where one fails, and is undecided otherwise.

Ours are paired: both models answered the same questions. The paper prints shares only, so that the pairing is
lost, and Newcombe's interval for two independent shares is taken. It is wider than a paired one as a rule: `undecided`
says what the printed tables can bear out, not that there is no effect.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from rarl.reporting.inputs import Run
from rarl.reporting.stats import mcnemar, unpaired
from rarl.reporting.tables import FIELDS, SETS, paper, prompt_mode

TABLE2 = Path("metrics/studies/table2.csv")
COLUMNS = [
    "claim", "source", "judge", "set", "score", "first", "second", "first_percent", "second_percent", "n",
    "difference", "low", "high", "ratio", "verdict",
]  # fmt: skip
NUMBERS = ["first_percent", "second_percent", "difference", "low", "high", "ratio"]


def claims(run: Run) -> pd.DataFrame:
    """Every comparison of every claim, a line each, by the paper's tables and by this run. Percent and points."""
    lines = []
    for claim in paper()["claims"]:
        for line in (*_by_paper(claim, run), *_by_run(claim, run), *_by_table2(claim, run)):
            margin = claim.get("margin", 0)
            verdict = side(line["low"], line["high"], margin)
            ratio = 100 * (line["second_percent"] / line["first_percent"] - 1) if line["first_percent"] else None
            lines.append({"claim": claim["id"], **line, "ratio": ratio, "verdict": verdict})
    frame = pd.DataFrame(lines, columns=COLUMNS)
    return frame.astype(dict.fromkeys(NUMBERS, float)).round(dict.fromkeys(NUMBERS, 2)).astype({"n": "Int64"})


def side(low: float, high: float, margin: float = 0) -> str:
    """The verdict on one comparison from the interval of its difference, in points."""
    if low > -margin:
        return "holds"
    return "fails" if high < -margin else "undecided"


def overall(verdicts: list[str]) -> str:
    """The verdict on a claim from those on its comparisons; `not run` where there are none."""
    if not verdicts:
        return "not run"
    if "fails" in verdicts:
        return "fails"
    return "holds" if set(verdicts) == {"holds"} else "undecided"


def _scores(claim: dict) -> Iterator[tuple[str, str, str]]:
    """Label of the score, score of the first, score of the second."""
    for score in claim["scores"]:
        first, _, second = score.partition(" to ")
        yield score, first, second or first


def _rows() -> dict[str, dict]:
    return {row["label"]: row for name in ("table3", "table6") for row in paper()[name]["rows"]}


def _by_paper(claim: dict, run: Run) -> Iterator[dict]:
    rows, confidence = _rows(), run.params.report.confidence
    for first, second in claim.get("pairs", []):
        for test_set in claim["sets"]:
            n = paper()["test_rows"][test_set]
            for score, of_first, of_second in _scores(claim):
                for judge, cell in rows[first]["sets"][test_set].items():
                    other = rows[second]["sets"][test_set][judge]
                    place = {"source": "paper", "judge": judge, "set": test_set, "score": score,
                             "first": first, "second": second}  # fmt: skip
                    if None not in (cell[of_first], other[of_second]):
                        yield place | _unpaired(cell[of_first], other[of_second], n, n, confidence)


def _unpaired(first: float, second: float, n_first: int, n_second: int, confidence: float) -> dict:
    low, high = unpaired(first, n_first, second, n_second, confidence)
    return {"first_percent": first, "second_percent": second, "n": min(n_first, n_second),
            "difference": second - first, "low": low, "high": high}  # fmt: skip


def _by_run(claim: dict, run: Run) -> Iterator[dict]:
    """The main judge's comparisons, and those of the paper's judges where they rated this run."""
    rows, params = _rows(), run.params
    judges = [j for j in run.judges if j == run.main_judge or j in paper()["judges"]]
    for first, second in claim.get("pairs", []):
        modes = [prompt_mode(run, rows[label]["prompt"]) for label in (first, second)]
        models = [rows[label]["model"] for label in (first, second)]
        if None in modes or not set(models) <= set(params.models):
            continue
        for paper_set in claim["sets"]:
            test_set = params.own_test if paper_set == "silvar_med" else paper_set
            if test_set not in params.test_sets:
                continue
            for score, *fields in _scores(claim):
                for judge in judges:
                    series = [
                        [getattr(v, FIELDS[f]) for v in run.verdicts[model, mode, test_set, judge]]
                        for model, mode, f in zip(models, modes, fields)
                    ]
                    both = [(a, b) for a, b in zip(*series) if a is not None and b is not None]
                    if not both:
                        continue
                    a, b = zip(*both)
                    test = mcnemar(a, b, params.report.confidence)
                    yield {
                        "source": "ours", "judge": judge, "set": test_set, "score": score,
                        "first": first, "second": second,
                        "first_percent": 100 * sum(a) / len(a), "second_percent": 100 * sum(b) / len(b),
                        **{key: test[key] for key in ("n", "difference", "low", "high")},
                    }  # fmt: skip


def _by_table2(claim: dict, run: Run) -> Iterator[dict]:
    """Table 2's comparisons: the paper's and, where the study was run, ours. Totals over all rows."""
    confidence = run.params.report.confidence
    if "table2" not in claim:
        return
    ours = our_table2(run.params.profile)
    ours = ours[ours["n"].notna() & ours["samples"].notna()]
    sources = {
        "paper": paper_table2(),
        "ours": {(r.method, int(r.samples)): (r.Total, int(r.n)) for r in ours.itertuples()},
    }
    for source, totals in sources.items():
        for first, second, samples in claim["table2"]:
            a, b = totals.get((first, samples)), totals.get((second, samples))
            if a and b:
                place = {"source": source, "judge": "choice", "set": "cv_bench", "score": f"{samples} samples",
                         "first": first, "second": second}  # fmt: skip
                yield place | _unpaired(a[0], b[0], a[1], b[1], confidence)


def paper_table2() -> dict[tuple[str, int], tuple[float, int]]:
    """(method, samples) -> share over all rows, rows."""
    tasks = paper()["tasks"]
    n = sum(tasks.values())
    return {
        (row["method"], row["samples"]): (sum(row[task] * rows for task, rows in tasks.items()) / n, n)
        for row in paper()["table2"]["rows"]
    }


def our_table2(profile: str) -> pd.DataFrame:
    """The rows of `rarl compare table2` that were run under this profile; none where there is no table."""
    if not TABLE2.is_file():
        return pd.DataFrame(columns=["n", "samples"])
    frame = pd.read_csv(TABLE2)
    return frame[frame["source"] == f"ours ({profile})"]


def printed_as(figure: float, lines: list[dict]) -> list[str]:
    """Where a figure of the paper's text is found in its tables: as points, as a ratio, or nowhere (empty).

    A figure printed without decimals is looked for within half a point, another within two hundredths.
    """
    width = 0.5 if figure == int(figure) else 0.02
    return [
        f"{'points' if unit == 'difference' else 'ratio'} of {SETS[line['set']]}, {line['score']}, "
        f"by {paper()['judges'].get(line['judge'], line['judge'])}"
        for line in lines
        for unit in ("difference", "ratio")
        if line["source"] == "paper" and line[unit] is not None and abs(line[unit] - figure) <= width
    ]
