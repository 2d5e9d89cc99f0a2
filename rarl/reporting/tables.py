"""The report's tables: the paper's Tables 3 and 6 with our figures, the own test, paired tests, agreement, breakdown.

All tables are long-form pandas frames with percent and points rounded to two decimals; the page
arranges them, and `metrics/tables/*.csv` holds them as they are.
"""

from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path

import pandas as pd

from rarl import registry
from rarl.answers import matches, normalise
from rarl.records import Prediction, read_json
from rarl.registry import DATA_SETS
from rarl.reporting.inputs import Run
from rarl.reporting.scoring import OVERLAPPING, WITHOUT_OWN_TEST, share
from rarl.reporting.stats import (
    agreement,
    baseline_scores,
    by_kind,
    by_question,
    holm,
    mcnemar,
    mean_change,
    smallest_difference,
    wilson,
)
from rarl.spreadsheet import restore

MODELS = {name: model.label for name, model in registry.MODELS.items()}
#: Of `DATA_SETS` and of the part of SLAKE that shares no row with the own test, in the order of the tables.
SETS = {
    name: label
    for slug, data_set in DATA_SETS.items()
    for name, label in {
        slug: data_set.label if data_set.benchmark else f"Own test ({data_set.label})",
        **({WITHOUT_OWN_TEST: f"{data_set.label} without own test"} if slug == OVERLAPPING else {}),
    }.items()
}
BASELINES = {
    "most_frequent_by_kind": "Most frequent answer of the kind",
    "most_frequent_by_question": "Most frequent answer to the question",
}
SCORES = ["final", "final_low", "final_high", "reasoning", "reasoning_low", "reasoning_high"]
COUNTS = ["n", "reasoning_n", "unscored", "empty", "truncated"]
FIELDS = {"final": "prediction_score", "reasoning": "reasoning_score"}
#: The untuned base stands below the paper's rows, which have none: a gain over it under one prompt can be one prompt's.
UNTUNED = [
    {"label": "Base, reasoning prompting", "model": "base", "prompt": "reasoning", "sets": {}},
    {"label": "Base, non-reasoning prompting", "model": "base", "prompt": "direct", "sets": {}},
]


@cache
def paper() -> dict:
    """The figures that the paper prints, with the table and the row that each stands in."""
    return read_json(Path(__file__).parent / "paper.json")


def rows_of(name: str) -> list[dict]:
    """The rows of the paper's Table 3 or 6, then those of the untuned base."""
    return paper()[name]["rows"] + UNTUNED


def prompt_mode(run: Run, prompt: str) -> str | None:
    """The mode that shows the image and asks with this prompt on every test set; None if there is none."""
    for mode in run.params.modes:
        entry = run.params.mode[mode]
        if entry.prompt == prompt and entry.image == "shown" and not entry.own_test_only:
            return mode
    return None


def paper_table(run: Run, name: str) -> pd.DataFrame:
    """Table 3 or 6 in long form: one line per row of the paper, test set and judge, ours and theirs.

    `difference` is ours minus the paper's figure by the same judge, by the paper's first judge where it does not have
    ours; `beyond` says that the paper's figure lies outside our interval.

    Args:
        name: `table3` or `table6`.
    """
    lines = []
    for row in rows_of(name):
        mode = prompt_mode(run, row["prompt"])
        ours = run.scores[row["model"]][mode] if mode and row["model"] in run.params.models else {}
        for test_set in SETS:
            key = {"row": row["label"], "model": row["model"], "prompt": row["prompt"], "set": test_set}
            theirs = row["sets"].get(test_set, {})
            for judge in run.judges if test_set in ours else ():
                cell = ours[test_set][judge]
                people = run.params.judge[judge].kind == "human"
                printed = theirs.get("human" if people else judge) or next(iter(theirs.values()), {})
                lines.append(
                    {**key, "source": "ours", "judge": judge, **{c: cell[c] for c in [*SCORES, *COUNTS]}}
                    | beside(cell, printed, "final") | beside(cell, printed, "reasoning")
                )  # fmt: skip
            for judge, figures in theirs.items():
                lines.append({**key, "source": "paper", "judge": judge, **figures})
    columns = ["row", "model", "prompt", "set", "source", "judge", *SCORES, *COUNTS]
    frame = pd.DataFrame(lines, columns=[*columns, *DIFFERENCES])
    return frame.astype(dict.fromkeys(COUNTS, "Int64"))


DIFFERENCES = ["difference", "beyond", "reasoning_difference", "reasoning_beyond"]


def beside(cell: dict, printed: dict, score: str) -> dict:
    """Our score minus the printed one, and whether the printed one lies outside our interval; empty where one is missing."""
    ours, theirs = cell[score], printed.get(score)
    if ours is None or theirs is None:
        return {}
    prefix = "" if score == "final" else f"{score}_"
    outside = not cell[f"{score}_low"] <= theirs <= cell[f"{score}_high"]
    return {f"{prefix}difference": round(ours - theirs, 2), f"{prefix}beyond": outside}


def own_test(run: Run) -> pd.DataFrame:
    """Every model under every mode on the own test set by the main judge, and what needs no model.

    `label` names each line once, as a bar plot needs it.
    """
    lines = []
    for model in run.params.models:
        for mode in run.params.modes:
            cell = run.scores[model][mode][run.params.own_test][run.main_judge]
            label = model if mode == run.main_mode else f"{model}, {mode}"
            lines.append({"label": label, "model": model, "mode": mode, **{c: cell[c] for c in [*SCORES, *COUNTS]}})
    for name, scores in baselines(run).items():
        if scores:
            low, high = wilson(sum(scores), len(scores), run.params.report.confidence)
            share = sum(scores) / len(scores)
            lines.append(
                {
                    "label": name,
                    "model": name,
                    "mode": "",
                    "final": 100 * share,
                    "final_low": 100 * low,
                    "final_high": 100 * high,
                    "n": len(scores),
                }
            )
    frame = pd.DataFrame(lines, columns=["label", "model", "mode", *SCORES, *COUNTS])
    return frame.astype(dict.fromkeys(SCORES, float)).round(2).astype(dict.fromkeys(COUNTS, "Int64"))


def baselines(run: Run) -> dict[str, list[int]]:
    """Scores on the own test of the most frequent training answer, matched as text."""
    own = run.samples[run.params.own_test]
    groups = zip(BASELINES, (by_kind, by_question))
    return {name: baseline_scores(run.train, own, by) for name, by in groups}


def paired_tests(run: Run) -> pd.DataFrame:
    """McNemar's tests on the own test set by the main judge, Holm-corrected within each family.

    Families: models against one another under the main mode; each other mode against the main mode
    within one model; each model against each most-frequent-answer baseline.
    """
    params, judge, main = run.params, run.main_judge, run.main_mode
    series = {
        (model, mode): [v.prediction_score for v in run.verdicts[model, mode, run.params.own_test, judge]]
        for model in params.models
        for mode in params.modes
    }
    families: dict[str, list] = {
        "between models": [(a, b, series[a, main], series[b, main]) for a, b in combinations(params.models, 2)]
    }
    for mode in params.modes:
        if mode != main:
            families[family_of(mode, main)] = [
                (f"{m}, {mode}", f"{m}, {main}", series[m, mode], series[m, main]) for m in params.models
            ]
    for name, scores in baselines(run).items():
        families[f"against the {BASELINES[name].casefold()}"] = [
            (name, model, scores, series[model, main]) for model in params.models
        ]
    lines = []
    for family, pairs in families.items():
        results = []
        for first, second, a, b in pairs:
            both = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
            if both:
                test = mcnemar([x for x, _ in both], [y for _, y in both], params.report.confidence)
                results.append({"family": family, "first": first, "second": second, **test})
        adjusted, differs = holm([r["p"] for r in results], 1 - params.report.confidence)
        for result, p, reject in zip(results, adjusted, differs):
            lines.append({**result, "p_holm": p, "differs": reject})
    columns = [
        "family",
        "first",
        "second",
        "n",
        "first_only",
        "second_only",
        "difference",
        "low",
        "high",
        "p",
        "p_holm",
        "differs",
    ]
    frame = pd.DataFrame(lines, columns=columns)
    return frame.astype(dict.fromkeys(["difference", "low", "high", "p", "p_holm"], float)).round(
        {"difference": 2, "low": 2, "high": 2, "p": 5, "p_holm": 5}
    )


def family_of(mode: str, main: str) -> str:
    """The name of the tests that compare two modes within each model."""
    return f"from {mode} to {main}"


def detectable(run: Run) -> pd.DataFrame:
    """What each test set can show by the main judge under the main mode: `smallest` is the smallest true difference
    between two models, in points, that it shows with 80 % power, at the share of discordant pairs that this run has on
    average (in percent); empty where even the largest possible one would be missed."""
    lines = []
    for name in run.params.sets_of(run.main_mode):
        series = [finals(run, model, run.main_mode, name) for model in run.params.models]
        shares = []
        for first, second in combinations(series, 2):
            both = [a != b for a, b in zip(first, second) if a is not None and b is not None]
            if both:
                shares.append(sum(both) / len(both))
        n = min(sum(score is not None for score in scores) for scores in series)
        if shares and n:
            discordant = sum(shares) / len(shares)
            smallest = smallest_difference(n, discordant, 1 - run.params.report.confidence)
            images = len({sample.image_sha256 for sample in run.samples[name]})
            lines.append({"set": name, "n": n, "images": images, "discordant": 100 * discordant, "smallest": smallest})
    frame = pd.DataFrame(lines, columns=["set", "n", "images", "discordant", "smallest"])
    return frame.astype({"discordant": float, "smallest": float}).round(2)


def finals(run: Run, model: str, mode: str, name: str) -> list[int | None]:
    """The main judge's final scores of one model on one test set."""
    return [v.prediction_score for v in run.verdicts[model, mode, name, run.main_judge]]


def places(run: Run) -> list[tuple[str, str]]:
    """Every mode with every test set that it is run on."""
    return [(mode, name) for mode in run.params.modes for name in run.params.sets_of(mode)]


def judge_agreement(run: Run) -> pd.DataFrame:
    """Each pair of raters per model and over all models (`all`), over all modes and test sets: percent agreement and
    Cohen's kappa over what both scored, and how many they disagree on. People are not compared with the majority that
    they are part of."""
    lines = []
    for first, second in combinations(run.judges, 2):
        pair = [run.params.judge[judge] for judge in (first, second)]
        if all(judge.kind == "human" for judge in pair) and None in [judge.rater for judge in pair]:
            continue
        for score, field in FIELDS.items():
            pooled = []
            for model in run.params.models:
                both = [
                    (x, y)
                    for mode, name in places(run)
                    for a, b in zip(run.verdicts[model, mode, name, first], run.verdicts[model, mode, name, second])
                    if (x := getattr(a, field)) is not None and (y := getattr(b, field)) is not None
                ]
                pooled += both
                lines.append((model, first, second, score, both))
            lines.append(("all", first, second, score, pooled))
    found = [
        {"model": model, "first": first, "second": second, "score": score,
         **agreement([a for a, _ in both], [b for _, b in both]), "disagree": sum(a != b for a, b in both)}
        for model, first, second, score, both in lines if both
    ]  # fmt: skip
    columns = ["model", "first", "second", "score", "n", "agreement", "kappa", "disagree"]
    frame = pd.DataFrame(found, columns=columns)
    return frame.astype({"agreement": float, "kappa": float}).round({"agreement": 2, "kappa": 3})


def disagreements(run: Run) -> pd.DataFrame:
    """Every answer on which two raters differ: where it is, what was asked and said, and each rater's score."""
    lines = []
    for model in run.params.models:
        for mode, name in places(run):
            rated = [run.verdicts[model, mode, name, judge] for judge in run.judges]
            for i, verdicts in enumerate(zip(*rated)):
                for score, field in FIELDS.items():
                    given = [getattr(verdict, field) for verdict in verdicts]
                    if {0, 1} <= set(given):
                        sample = run.samples[name][i]
                        answer = run.predictions[model, mode, name][i].answer
                        lines.append(
                            {"model": model, "mode": mode, "set": name, "id": sample.id, "question": sample.question,
                             "reference": " or ".join(sample.answers), "answer": answer, "score": score,
                             **dict(zip(run.judges, given))}
                        )  # fmt: skip
    columns = ["model", "mode", "set", "id", "question", "reference", "answer", "score", *run.judges]
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(run.judges, "Int64"))


def reward_gap(run: Run) -> pd.DataFrame:
    """How far each judge's scores lie above the truth rater's under the main mode, in points, with an interval.

    The rewards compare texts. A model that learnt to please them rather than to be right would show a gap that the base
    does not have: `change` is the gap minus the base's on the same questions, and `opens` says that its whole interval
    lies above 0. `agreement` is the share of the answers that both rate alike, in percent. `set`: the own test, and
    all test sets together.
    """
    if not run.truth_judge:
        return pd.DataFrame(columns=GAP)
    lines, seen = [], set()
    sets = {run.params.own_test: [run.params.own_test], "all": run.params.sets_of(run.main_mode)}
    for label, names in sets.items():
        for judge in run.judges:
            for score, field in FIELDS.items() if judge != run.truth_judge else ():
                gaps = {model: _rated_and_true(run, model, names, judge, field) for model in run.params.models}
                for model, pairs in gaps.items():
                    both = [pair for pair in pairs if pair]
                    # The same answers once more, where only the own test has them rated so.
                    if both and (model, judge, score, len(both)) not in seen:
                        seen.add((model, judge, score, len(both)))
                        rated, true = zip(*both)
                        gap = mcnemar(true, rated, run.params.report.confidence)
                        change = [
                            (a[0] - a[1]) - (b[0] - b[1]) for a, b in zip(pairs, gaps.get("base", [])) if a and b
                        ]
                        to_base = (None, None, None)
                        if model != "base" and change:
                            to_base = mean_change(change, run.params.report.confidence)
                        lines.append(
                            (model, label, judge, score, len(both), 100 * sum(rated) / len(both),
                             100 * sum(true) / len(both), gap["difference"], gap["low"], gap["high"],
                             100 * sum(a == b for a, b in both) / len(both), *to_base, (to_base[1] or 0) > 0)
                        )  # fmt: skip
    frame = pd.DataFrame(lines, columns=GAP)
    numbers = GAP[5:-1]
    return frame.astype(dict.fromkeys(numbers, float)).round(dict.fromkeys(numbers, 2))


GAP = ["model", "set", "judge", "score", "n", "rated", "truth", "gap", "low", "high", "agreement",
       "change", "change_low", "change_high", "opens"]  # fmt: skip


def _rated_and_true(run: Run, model: str, names: list[str], judge: str, field: str) -> list:
    """(the judge's score, the truth rater's) of every answer; None where either has none."""
    return [
        (x, y) if x is not None and y is not None else None
        for name in names
        for a, b in zip(
            run.verdicts[model, run.main_mode, name, judge], run.verdicts[model, run.main_mode, name, run.truth_judge]
        )
        for x, y in [(getattr(a, field), getattr(b, field))]
    ]


def breakdown(run: Run) -> pd.DataFrame:
    """The main judge's scores under the main mode by modality, kind of answer, category and origin of the questions,
    as the `score` stage wrote them; a field with one value in a test set is left out."""
    frames = [
        pd.read_csv(path, keep_default_na=False, na_values={"final": "", "final_low": "", "final_high": ""})
        .assign(model=model, value=lambda frame: frame["value"].map(restore))
        for model, path in run.breakdown_files.items()
    ]  # fmt: skip
    columns = ["set", "by", "value", "model", "n", "unscored", "final", "final_low", "final_high"]
    if not frames:
        return pd.DataFrame(columns=columns)
    frame = pd.concat(frames)
    frame = frame[(frame["mode"] == run.main_mode) & (frame["judge"] == run.main_judge)]
    several = frame.groupby(["set", "by"])["value"].transform("nunique") > 1
    return frame.loc[several, columns].reset_index(drop=True)


def yes_no(run: Run) -> pd.DataFrame:
    """Sensitivity and specificity on the yes-or-no questions, with the confusion matrix that they are made of.

    "Yes" is the positive answer, whatever is asked. `sensitivity` is the share of the questions with reference "yes"
    that the model answers with yes, `specificity` that of "no" with no, in percent with Wilson's interval. An answer that
    says neither, or was cut off, is `unreadable`: it stays in the share and counts as wrong, as every judge has it. Answers
    read as everywhere (`answers.matches`), whichever the judge; `unscored` could not be asked and are in no share.
    """
    lines = []
    for mode, name in places(run):
        for model in run.params.models:
            answers = [
                (normalise(sample.answers[0]), _said(prediction))
                for sample, prediction in zip(run.samples[name], run.predictions[model, mode, name])
                if sample.kind == "yes_no"
            ]
            if answers:
                asked = [(truth, said) for truth, said in answers if said != "unscored"]
                counts = Counter(asked)
                line = {"mode": mode, "set": name, "model": model, "n": len(asked)}
                for rate, truth in (("sensitivity", "yes"), ("specificity", "no")):
                    right = [said == truth for reference, said in asked if reference == truth]
                    line |= share(rate, right, run.params.report.confidence)
                    line |= {f"{truth}_said_{said}": counts[truth, said] for said in ("yes", "no")}
                    line[f"{truth}_unreadable"] = counts[truth, "unreadable"]
                lines.append(line | {"unscored": len(answers) - len(asked)})
    return pd.DataFrame(lines, columns=YES_NO)


YES_NO = [
    "mode", "set", "model", "n", "sensitivity", "sensitivity_low", "sensitivity_high", "specificity", "specificity_low",
    "specificity_high", "yes_said_yes", "yes_said_no", "yes_unreadable", "no_said_yes", "no_said_no", "no_unreadable",
    "unscored",
]  # fmt: skip


def _said(prediction: Prediction) -> str:
    """How an answer to a yes-or-no question reads: yes, no, unreadable, or unscored where nothing was asked."""
    if prediction.error is not None:
        return "unscored"
    if not prediction.truncated:
        for word in ("yes", "no"):
            if matches(prediction.answer, [word], "yes_no"):
                return word
    return "unreadable"


def grounding(run: Run) -> pd.DataFrame:
    """What remains of the own test's score without the right picture: a line for each model and mode that does not show
    it, against the mode that asks the same and does. `kept` is the share of the score that remains, in percent."""
    lines = []
    for mode in run.params.modes:
        entry = run.params.mode[mode]
        shown = prompt_mode(run, entry.prompt)
        if entry.image == "shown" or shown is None:
            continue
        for model in run.params.models:
            own = run.params.own_test
            both = [
                (a, b)
                for a, b in zip(finals(run, model, shown, own), finals(run, model, mode, own))
                if a is not None and b is not None
            ]
            if both:
                first, second = zip(*both)
                test = mcnemar(first, second, run.params.report.confidence)
                with_it, without = 100 * sum(first) / len(both), 100 * sum(second) / len(both)
                lines.append(
                    {"model": model, "mode": mode, "image": entry.image, "n": test["n"], "shown": with_it,
                     "final": without, "difference": test["difference"], "low": test["low"], "high": test["high"],
                     "p": test["p"], "kept": 100 * without / with_it if with_it else None}
                )  # fmt: skip
    columns = ["model", "mode", "image", "n", "shown", "final", "difference", "low", "high", "p", "kept"]
    frame = pd.DataFrame(lines, columns=columns)
    return frame.astype({"kept": float}).round(dict.fromkeys(columns[4:], 2) | {"p": 5})


def summary(run: Run) -> dict:
    """model -> mode -> test set -> `final` (own test also `reasoning`), by the main judge, in percent.

    The first mode has every test set, the others the own test only, so that `dvc metrics diff` fits on a
    screen; `metrics/scores/` has all. What was not scored or not annotated has no key, so that every line
    of the difference is a number.
    """
    result: dict = {}
    for model in run.params.models:
        for mode in run.params.modes:
            sets = run.params.sets_of(mode) if mode == run.params.modes[0] else [run.params.own_test]
            for name in sets:
                cell = run.scores[model][mode][name][run.main_judge]
                keys = ("final", "reasoning") if name == run.params.own_test else ("final",)
                values = {key: cell[key] for key in keys if cell[key] is not None}
                if values:
                    result.setdefault(model, {}).setdefault(mode, {})[name] = values
    return result
