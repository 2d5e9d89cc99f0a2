"""The paper's claims, tested against its own tables and against this run.

A claim is one or more comparisons of two scores (`claims` in `paper.json`). Each comparison is given in points and as
a ratio, with an interval of the points and a verdict: it `holds` if the whole interval is on the claimed side, `fails`
if the whole interval is on the other, and is `undecided` otherwise. A claim holds if all of its comparisons do, fails
if one fails, and is undecided otherwise.

Ours are paired and clustered by image. The paper prints shares only, so neither the pairing nor the images are known,
and Newcombe's interval for two independent shares is used. It is usually wider than a paired one: `undecided` is about
what the printed tables can show, not evidence that there is no effect.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pandas as pd

from rarl.reporting.inputs import Run
from rarl.reporting.stats import paired, unpaired
from rarl.reporting.tables import GAP, SETS, paper, prompt_mode, to_frame

TABLE2 = Path("metrics/studies/table2.csv")
KEYS = ["claim", "source", "judge", "set", "score", "first", "second"]
SHARES = ["first_percent", "second_percent"]


def claims(run: Run) -> pd.DataFrame:
    """Return one line per comparison of every claim, by the paper's tables and by this run, in percent and points."""
    lines = []
    for claim in paper()["claims"]:
        for line in (*_by_paper(claim, run), *_by_run(claim, run), *_by_table2(claim, run)):
            first, second = (line[share] for share in SHARES)
            verdict = side(line["low"], line["high"], claim.get("margin", 0))
            ratio = 100 * (second / first - 1) if first else None
            lines.append({**line, "claim": claim["id"], "ratio": ratio, "verdict": verdict})
    columns = [*KEYS, *SHARES, "n", "n_effective", *GAP, "ratio", "verdict"]
    digits = dict.fromkeys([*SHARES, *GAP, "ratio"], 2) | {"n_effective": 1}
    return to_frame(lines, columns, digits).astype({"n": "Int64"})


def side(low: float, high: float, margin: float = 0) -> str:
    """Return the verdict on one comparison from the interval of its difference, in points.

    >>> side(0.3, 9.1), side(-2.0, 9.1), side(-9.1, -0.3)
    ('holds', 'undecided', 'fails')
    """
    if low > -margin:
        return "holds"
    return "fails" if high < -margin else "undecided"


def overall(verdicts: list[str]) -> str:
    """Return the verdict on a claim from those on its comparisons; `not run` if there are none."""
    if not verdicts:
        return "not run"
    if "fails" in verdicts:
        return "fails"
    return "holds" if set(verdicts) == {"holds"} else "undecided"


def verdict_on(claim: str, source: str, lines: list[dict]) -> str:
    """Return the `overall` verdict on a claim by one source (`paper` or `ours`), from the lines of `claims`."""
    return overall([line["verdict"] for line in lines if (line["claim"], line["source"]) == (claim, source)])


def _comparisons(claim: dict) -> Iterator[tuple[dict, dict, str, str, str, str]]:
    """Yield the rows, set and label of each comparison, and which score is taken of the first and of the second."""
    rows = {row["label"]: row for name in ("table3", "table6") for row in paper()[name]["rows"]}
    for (first, second), test_set, score in product(*(claim.get(key, []) for key in ("pairs", "sets", "scores"))):
        of_first, _, of_second = score.partition(" to ")
        yield rows[first], rows[second], test_set, score, of_first, of_second or of_first


def _by_paper(claim: dict, run: Run) -> Iterator[dict]:
    for first, second, test_set, score, of_first, of_second in _comparisons(claim):
        for judge, cell in first["sets"][test_set].items():
            pair = (cell[of_first], second["sets"][test_set][judge][of_second])
            if None not in pair:
                place = {"source": "paper", "judge": judge, "set": test_set, "score": score}
                rows = (paper()["test_rows"][test_set],) * 2
                yield place | {"first": first["label"], "second": second["label"]} | _unpaired(pair, rows, run)


def _unpaired(shares: tuple[float, float], rows: tuple[int, int], run: Run) -> dict:
    (first, second), (n_first, n_second) = shares, rows
    low, high = unpaired(first, n_first, second, n_second, run.confidence)
    values = (first, second, min(rows), second - first, low, high)
    return dict(zip([*SHARES, "n", *GAP], values))


def _by_run(claim: dict, run: Run) -> Iterator[dict]:
    """Yield the main judge's comparisons, and those of the paper's judges if they rated this run."""
    judges = [j for j in run.judges if j == run.main_judge or j in paper()["judges"]]
    for first, second, paper_set, score, *scores in _comparisons(claim):
        modes = [prompt_mode(run, row["prompt"]) for row in (first, second)]
        models = [row["model"] for row in (first, second)]
        test_set = run.params.own_test if paper_set == "silvar_med" else paper_set
        if None in modes or not {*models} <= {*run.params.models} or test_set not in run.params.test_sets:
            continue
        for judge in judges:
            series = (run.ratings(model, mode, test_set, judge, s) for model, mode, s in zip(models, modes, scores))
            if test := paired(*series, run.images[test_set], run.confidence):
                place = {"source": "ours", "judge": judge, "set": test_set, "score": score}
                yield test | place | {"first": first["label"], "second": second["label"]}


def _by_table2(claim: dict, run: Run) -> Iterator[dict]:
    """Yield Table 2's comparisons: the paper's and, if the study was run, ours. Totals are over all rows."""
    if "table2" not in claim:
        return
    ours = our_table2(run.params.profile).dropna(subset=["n", "samples"])
    sources = {
        "paper": {key: (share, n, n) for key, (share, n) in paper_table2().items()},
        "ours": {
            (row.method, int(row.samples)): (row.Total, int(row.n), getattr(row, "n_effective", row.n))
            for row in ours.itertuples()
        },
    }
    for (source, totals), (first, second, samples) in product(sources.items(), claim["table2"]):
        pair = [totals.get((method, samples)) for method in (first, second)]
        if all(pair):
            place = {"source": source, "judge": "choice", "set": "cv_bench", "score": f"{samples} samples"}
            shares, counts, effectives = zip(*pair)
            line = place | {"first": first, "second": second} | _unpaired(shares, effectives, run)
            yield line | {"n": min(counts), "n_effective": min(effectives) if source == "ours" else None}


def paper_table2() -> dict[tuple[str, int], tuple[float, int]]:
    """Return (method, samples) -> share over all rows, number of rows."""
    tasks = paper()["tasks"]
    n = sum(tasks.values())
    return {
        (row["method"], row["samples"]): (sum(row[task] * rows for task, rows in tasks.items()) / n, n)
        for row in paper()["table2"]["rows"]
    }


def our_table2(profile: str) -> pd.DataFrame:
    """Return the rows of `rarl study table2` that were run under this profile; none if there is no table."""
    if not TABLE2.is_file():
        return pd.DataFrame(columns=["n", "samples"])
    frame = pd.read_csv(TABLE2)
    return frame[frame["source"] == f"ours ({profile})"]


def printed_as(figure: float, lines: list[dict]) -> list[str]:
    """Return where a figure of the paper's text is found in its tables: as points, as a ratio, or nowhere (empty).

    A figure printed without decimals matches within half a point, another within two hundredths.
    """
    width = 0.5 if figure == int(figure) else 0.02
    return [
        f"{'points' if unit == 'difference' else 'ratio'} of {SETS[line['set']]}, {line['score']}, "
        f"by {paper()['judges'].get(line['judge'], line['judge'])}"
        for line in lines
        for unit in ("difference", "ratio")
        if line["source"] == "paper" and line[unit] is not None and abs(line[unit] - figure) <= width
    ]
