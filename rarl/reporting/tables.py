"""The report's tables: the paper's Tables 3 and 6 with our figures, the own test, paired tests, agreement, breakdown.

All tables are long-form pandas frames with percent and points rounded to two decimals. The page arranges them;
`metrics/tables/*.csv` holds them as they are.
"""

from collections import Counter
from functools import cache
from itertools import chain, combinations, product
from pathlib import Path
from statistics import fmean

import pandas as pd

from rarl.answers.matching import matches
from rarl.answers.spelling import normalise
from rarl.records import Prediction, read_json
from rarl.registry import DATA_SETS
from rarl.reporting.inputs import FIELDS, Run
from rarl.reporting.scoring import BROKEN_DOWN, OVERLAPPING, WITHOUT_OWN_TEST, share
from rarl.reporting.stats import (
    agreement,
    baseline_scores,
    by_kind,
    by_question,
    holm,
    mean_change,
    paired,
    scored_by_both,
    smallest_difference,
)
from rarl.spreadsheet import restore

#: Of `DATA_SETS` and of the part of SLAKE that shares no row with the own test, in the order of the tables.
SETS = {}
for _name, _data_set in DATA_SETS.items():
    SETS[_name] = _data_set.label if _data_set.benchmark else f"Own test ({_data_set.label})"
    if _name == OVERLAPPING:
        SETS[WITHOUT_OWN_TEST] = f"{_data_set.label} without own test"
BASELINES = {
    "most_frequent_by_kind": "Most frequent answer of the kind",
    "most_frequent_by_question": "Most frequent answer to the question",
}
#: The end of the name of a family of tests with rivals.
RIVALS = ", with rivals"
SCORES = ["final", "final_low", "final_high", "reasoning", "reasoning_low", "reasoning_high"]
COUNTS = ["n", "reasoning_n", "unscored", "empty", "truncated"]
#: The effective n of both scores, and the form of the answers (`scoring.score_cell`).
FORM = ["n_effective", "reasoning_n_effective", "untagged", "answer_words"]
#: The final score by the form-blind judge, with its interval.
FORM_BLIND = ["form_blind", "form_blind_low", "form_blind_high"]
#: A difference in points with its interval.
GAP = ["difference", "low", "high"]
#: The numbers of `reward_gap`, with the names of its file.
GAP_NUMBERS = ["rated", "truth", "gap", "low", "high", "agreement", "change", "change_low", "change_high"]
#: Below the paper's rows, which lack the untuned base. Under both prompts: a gain over one may be the prompt's.
UNTUNED = [
    {"label": "Base, reasoning prompting", "model": "base", "prompt": "reasoning", "sets": {}},
    {"label": "Base, non-reasoning prompting", "model": "base", "prompt": "direct", "sets": {}},
]


@cache
def paper() -> dict:
    """Return the figures that the paper prints, each with its table and row."""
    return read_json(Path(__file__).parent / "paper.json")


def rows_of(name: str) -> list[dict]:
    """Return the rows of the paper's Table 3 or 6, then those of the untuned base."""
    return paper()[name]["rows"] + UNTUNED


def to_frame(lines: list, columns: list[str], digits: dict[str, int]) -> pd.DataFrame:
    """Make a frame of these columns; `digits` gives the decimals of those that hold floats."""
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(digits, float)).round(digits)


def prompt_mode(run: Run, prompt: str) -> str | None:
    """Return the mode that shows the image and uses this prompt on every test set; None if there is none."""
    for mode in run.params.modes:
        entry = run.params.mode[mode]
        if entry.prompt == prompt and entry.image == "shown" and not entry.own_test_only:
            return mode
    return None


def paper_table(run: Run, name: str) -> pd.DataFrame:
    """Return `table3` or `table6` in long form: one line per row of the paper, test set and judge, ours and theirs.

    `difference` is our score minus the paper's by the same judge, or by the paper's first judge if the paper does not
    have ours. `beyond` is true if the paper's score is outside our interval.
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
                line = {**key, "source": "ours", "judge": judge, **{c: cell[c] for c in [*SCORES, *COUNTS, *FORM]}}
                lines.append(line | beside(cell, printed, "final") | beside(cell, printed, "reasoning"))
            lines += [{**key, "source": "paper", "judge": judge, **scores} for judge, scores in theirs.items()]
    columns = ["row", "model", "prompt", "set", "source", "judge", *SCORES, *COUNTS, *FORM]
    columns += ["difference", "beyond", "reasoning_difference", "reasoning_beyond"]
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(COUNTS, "Int64"))


def beside(cell: dict, printed: dict, score: str) -> dict:
    """Return our score minus the printed one, and whether that is outside our interval; {} if one is missing.

    >>> cell = {"final": 60.0, "final_low": 50.0, "final_high": 70.0}
    >>> beside(cell, {"final": 48.04}, "final")
    {'difference': 11.96, 'beyond': True}
    """
    ours, theirs = cell[score], printed.get(score)
    if ours is None or theirs is None:
        return {}
    prefix = "" if score == "final" else f"{score}_"
    outside = not cell[f"{score}_low"] <= theirs <= cell[f"{score}_high"]
    return {f"{prefix}difference": round(ours - theirs, 2), f"{prefix}beyond": outside}


def own_test(run: Run) -> pd.DataFrame:
    """Return the main judge's scores of every model and mode on the own test set, then the baselines without a model.

    `label` is unique per line, for bar plots. `form_blind` is the final score by `Run.form_blind_judge`.
    """
    lines = []
    for model, mode in run.asked:
        cells = run.scores[model][mode][run.params.own_test]
        cell, blind = cells[run.main_judge], cells.get(run.form_blind_judge, {})
        label = model if mode == run.main_mode else f"{model}, {mode}"
        line = {"label": label, "model": model, "mode": mode, **{c: cell[c] for c in [*SCORES, *COUNTS, *FORM]}}
        lines.append(line | {name: blind.get(score) for name, score in zip(FORM_BLIND, SCORES)})
    for name, scores in baselines(run).items():
        if scores:
            line = {"label": name, "model": name, "mode": "", "n": len(scores)}
            lines.append(line | share("final", scores, run.images[run.params.own_test], run.confidence))
    columns = ["label", "model", "mode", *SCORES, *COUNTS, *FORM, *FORM_BLIND]
    digits = dict.fromkeys([*SCORES, *FORM, *FORM_BLIND], 2)
    return to_frame(lines, columns, digits).astype(dict.fromkeys(COUNTS, "Int64"))


def baselines(run: Run) -> dict[str, list[int]]:
    """Return the scores on the own test set of the most frequent training answer, matched as text."""
    own = run.samples[run.params.own_test]
    return {name: baseline_scores(run.train, own, by) for name, by in zip(BASELINES, (by_kind, by_question))}


def paired_tests(run: Run) -> pd.DataFrame:
    """McNemar's tests on the own test set, clustered by image and Holm-corrected within each family.

    Families: models against one another under the main mode, by each judge; by the main judge each other mode against
    the main mode within one model, and each model against each most-frequent-answer baseline. Comparisons with a rival
    are in families of their own: which rivals are listed changes no other p.
    """
    images = run.images[run.params.own_test]
    families = _families(run, run.own_models, list(combinations(run.own_models, 2)))
    with_rival = [pair for pair in combinations(run.own_models + run.rivals, 2) if {*pair} & {*run.rivals}]
    families |= {f"{name}{RIVALS}": pairs for name, pairs in _families(run, run.rivals, with_rival).items()}
    lines = []
    for family, pairs in families.items():
        results = [
            {**test, "family": family, "first": first, "second": second}
            for first, second, a, b in pairs
            if (test := paired(a, b, images, run.confidence))
        ]
        corrected = zip(results, *holm([result["p"] for result in results], 1 - run.confidence))
        lines += [result | {"p_holm": p, "differs": differs} for result, p, differs in corrected]
    counts = ["n", "n_effective", "first_only", "second_only"]
    columns = ["family", "first", "second", *counts, *GAP, "p", "p_holm", "differs"]
    return to_frame(lines, columns, dict.fromkeys(GAP, 2) | {"n_effective": 1, "p": 5, "p_holm": 5})


def _families(run: Run, models: list[str], pairs: list[tuple[str, str]]) -> dict[str, list[tuple]]:
    """Return family -> (first, second, scores of the first, scores of the second) of each of its tests."""
    own, main = run.params.own_test, run.main_mode
    families = {}
    for judge in run.judges or [run.main_judge]:
        families[between(run, judge)] = [
            (a, b, run.ratings(a, main, own, judge), run.ratings(b, main, own, judge)) for a, b in pairs
        ]
    for mode in (mode for mode in run.params.modes if mode != main):
        families[family_of(mode, main)] = [
            (f"{model}, {mode}", f"{model}, {main}", run.ratings(model, mode, own), run.ratings(model, main, own))
            for model in models
            if mode in run.params.modes_of(model)
        ]
    for name, scores in baselines(run).items():
        family = f"against the {BASELINES[name].casefold()}"
        families[family] = [(name, model, scores, run.ratings(model, main, own)) for model in models]
    return families


def between(run: Run, judge: str) -> str:
    """Return the name of the tests that compare two models by one judge."""
    return "between models" if judge == run.main_judge else f"between models, {judge} judge"


def verdicts_by_judge(run: Run, tests: pd.DataFrame) -> dict[tuple[str, str], dict[str, str]]:
    """Return (first, second model) -> judge -> `better`, `worse` or `not told apart`: the second against the first.

    By the `paired_tests`, so after Holm's correction; only comparisons on which the judges' verdicts differ.
    """
    families = {between(run, judge): judge for judge in run.judges}
    found: dict = {}
    for test in tests[tests["family"].isin(families)].itertuples():
        verdict = ("better" if test.difference > 0 else "worse") if test.differs else "not told apart"
        found.setdefault((test.first, test.second), {})[families[test.family]] = verdict
    return {pair: verdicts for pair, verdicts in found.items() if len({*verdicts.values()}) > 1}


def family_of(mode: str, main: str) -> str:
    """Return the name of the tests that compare two modes within each model."""
    return f"from {mode} to {main}"


def detectable(run: Run) -> pd.DataFrame:
    """Return the smallest true difference between two models that each test set can detect.

    `smallest` is in points, at 80 % power, for the main judge and mode, and for the share of discordant pairs
    (`discordant`, percent) and the `n_effective` that this run's comparisons have on average, without rivals; empty if
    even the largest possible one would be missed.
    """
    lines = []
    for name in run.params.sets_of(run.main_mode):
        series = [run.ratings(model, run.main_mode, name) for model in run.own_models or run.models]
        tests = [test for pair in combinations(series, 2) if (test := paired(*pair, run.images[name], run.confidence))]
        n = min(sum(score is not None for score in scores) for scores in series)
        if tests and n:
            discordant = fmean((test["first_only"] + test["second_only"]) / test["n"] for test in tests)
            effective = fmean(test["n_effective"] for test in tests)
            smallest = smallest_difference(effective, discordant, 1 - run.confidence)
            lines.append((name, n, effective, len({*run.images[name]}), 100 * discordant, smallest))
    columns = ["set", "n", "n_effective", "images", "discordant", "smallest"]
    return to_frame(lines, columns, {"n_effective": 1, "discordant": 2, "smallest": 2})


def judge_agreement(run: Run) -> pd.DataFrame:
    """Return percent agreement and Cohen's kappa of each pair of judges, per model and over all but rivals (`all`).

    Over all modes and test sets, on the answers that both scored. A rater is not compared with the majority that
    includes that rater.
    """
    lines = []
    for first, second in combinations(run.judges, 2):
        pair = [run.params.judge[judge] for judge in (first, second)]
        if all(judge.kind == "human" for judge in pair) and None in [judge.rater for judge in pair]:
            continue
        for score in FIELDS:
            by_model = {
                model: [
                    both
                    for place in run.places_of(model)
                    for both in scored_by_both(
                        *(run.ratings(model, *place, judge, score) for judge in (first, second))
                    )
                ]
                for model in run.params.models
            }
            of_all = chain(*(by_model[model] for model in run.own_models or by_model))
            for model, both in (*by_model.items(), ("all", [*of_all])):
                if both:
                    line = {"model": model, "first": first, "second": second, "score": score}
                    lines.append(line | agreement(*zip(*both)) | {"disagree": sum(a != b for a, b in both)})
    columns = ["model", "first", "second", "score", "n", "agreement", "kappa", "disagree"]
    return to_frame(lines, columns, {"agreement": 2, "kappa": 3})


def disagreements(run: Run) -> pd.DataFrame:
    """Return every answer on which two judges differ: its key, question, reference, text, and each judge's score."""
    lines = []
    for model, mode, name in ((one, *place) for one in run.models for place in run.places_of(one)):
        rated = [run.verdicts[model, mode, name, judge] for judge in run.judges]
        for sample, prediction, *verdicts in zip(run.samples[name], run.predictions[model, mode, name], *rated):
            for score, field in FIELDS.items():
                given = [getattr(verdict, field) for verdict in verdicts]
                if {0, 1} <= set(given):
                    reference = " or ".join(sample.answers)
                    line = (model, mode, name, sample.id, sample.question, reference, prediction.answer, score)
                    lines.append((*line, *given))
    columns = ["model", "mode", "set", "id", "question", "reference", "answer", "score", *run.judges]
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(run.judges, "Int64"))


def reward_gap(run: Run) -> pd.DataFrame:
    """Return each judge's score minus the truth judge's under the main mode, in points, with an interval.

    The rewards compare texts. A model that learned to exploit them would show a gap that the base does not have:
    `change` is the gap minus the base's on the same questions, and `opens` is true if its whole interval is above 0.
    `agreement` is the share of answers that both judges rate alike, in percent. `set` is the own test set, or `all`.
    """
    columns = ["model", "set", "judge", "score", "n", "n_effective", *GAP_NUMBERS, "opens"]
    lines, seen = [], set()
    sets = {run.params.own_test: [run.params.own_test], "all": run.params.sets_of(run.main_mode)}
    judges = [judge for judge in run.judges if run.truth_judge and judge != run.truth_judge]
    for (label, names), judge, score in product(sets.items(), judges, FIELDS):
        rated = {model: _truth_and_rated(run, model, names, judge, score) for model in run.params.models}
        for model, pairs in rated.items():
            both = [pair for pair in pairs if pair]
            # `all` repeats the own test set where no other set is rated.
            if not both or (model, judge, score, len(both)) in seen:
                continue
            seen.add((model, judge, score, len(both)))
            images = list(chain.from_iterable(run.images[name] for name in names))
            gap = paired(*zip(*both), [image for pair, image in zip(pairs, images) if pair], run.confidence)
            rows = zip(pairs, rated.get("base", []), images)
            change = [((b - a) - (d - c), image) for (a, b), (c, d), image in filter(all, rows)]
            to_base = (None, None, None)
            if model != "base" and change:
                to_base = mean_change(*zip(*change), run.confidence)
            same = 100 * sum(a == b for a, b in both) / len(both)
            numbers = (gap["second_percent"], gap["first_percent"], *(gap[key] for key in GAP), same, *to_base)
            counts = (len(both), gap["n_effective"])
            lines.append((model, label, judge, score, *counts, *numbers, (to_base[1] or 0) > 0))
    return to_frame(lines, columns, dict.fromkeys(GAP_NUMBERS, 2) | {"n_effective": 1})


def _truth_and_rated(run: Run, model: str, names: list[str], judge: str, score: str) -> list:
    """Return (truth judge's score, the judge's score) of every answer; None where either is missing."""
    pairs = (
        pair
        for name in names
        for pair in zip(*(run.ratings(model, run.main_mode, name, one, score) for one in (run.truth_judge, judge)))
    )
    return [None if None in pair else pair for pair in pairs]


def breakdown(run: Run) -> pd.DataFrame:
    """Return the main judge's scores under the main mode by modality, kind of answer, category and origin.

    With the final score by the form-blind judge. As the `score` stage wrote them; a field with a single value in a
    test set is left out.
    """
    columns = ["set", "by", "value", "model", *BROKEN_DOWN]
    frames = [
        pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(BROKEN_DOWN, "")).assign(model=model)
        for model, path in run.breakdown_files.items()
    ]
    if not frames:
        return pd.DataFrame(columns=[*columns, "form_blind"])
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[frame["mode"] == run.main_mode].assign(value=frame["value"].map(restore))
    blind = frame[frame["judge"] == run.form_blind_judge].rename(columns={"final": "form_blind"})
    frame = frame[frame["judge"] == run.main_judge].merge(blind[[*columns[:4], "form_blind"]], "left", columns[:4])
    several = frame.groupby(["set", "by"])["value"].transform("nunique") > 1
    return frame.loc[several, [*columns, "form_blind"]].reset_index(drop=True)


def yes_no(run: Run) -> pd.DataFrame:
    """Return sensitivity and specificity on the yes-or-no questions, with their confusion matrix.

    "Yes" is the positive answer, whatever the question. `sensitivity` is the share of the questions with reference
    "yes" that the model answers with yes, `specificity` that of "no" with no, in percent with Wilson's interval. An
    answer that is neither, or was truncated, is `unreadable` and counts as wrong, as for every judge. Answers are read
    with `answers.matching.matches`, whichever the judge; questions that failed are `unscored` and in no share.
    """
    lines = []
    for (mode, name), model in product(run.places, run.models):
        if mode not in run.params.modes_of(model):
            continue
        answers = [
            (normalise(sample.answers[0]), _read_as(prediction, sample.question), sample.image_sha256)
            for sample, prediction in zip(run.samples[name], run.predictions[model, mode, name])
            if sample.kind == "yes_no"
        ]
        if answers:
            asked = [answer for answer in answers if answer[1] != "unscored"]
            counts = Counter((truth, answer) for truth, answer, _ in asked)
            line = {"mode": mode, "set": name, "model": model, "n": len(asked), "unscored": len(answers) - len(asked)}
            for rate, truth in (("sensitivity", "yes"), ("specificity", "no")):
                rows = [(answer == truth, image) for reference, answer, image in asked if reference == truth]
                line |= share(rate, [right for right, _ in rows], [image for _, image in rows], run.confidence)
                line |= {f"{truth}_said_{answer}": counts[truth, answer] for answer in ("yes", "no")}
                line[f"{truth}_unreadable"] = counts[truth, "unreadable"]
            lines.append(line)
    rates = [
        f"{rate}{end}" for rate in ("sensitivity", "specificity") for end in ("", "_low", "_high", "_n_effective")
    ]
    cells = [f"{truth}_{answer}" for truth in ("yes", "no") for answer in ("said_yes", "said_no", "unreadable")]
    return pd.DataFrame(lines, columns=["mode", "set", "model", "n", *rates, *cells, "unscored"])


def _read_as(prediction: Prediction, question: str) -> str:
    """Classify an answer to a yes-or-no question: yes, no, unreadable, or unscored if the model was not asked."""
    if prediction.error is not None:
        return "unscored"
    words = () if prediction.truncated else ("yes", "no")
    return next((word for word in words if matches(prediction.answer, [word], "yes_no", (), question)), "unreadable")


def grounding(run: Run) -> pd.DataFrame:
    """Return what remains of the own-test score without the right image, per model and mode that does not show it.

    Compared with the mode that shows it under the same prompt. `kept` is the share of the score that remains, in
    percent.
    """
    lines, own = [], run.params.own_test
    for mode in run.params.modes:
        entry = run.params.mode[mode]
        shown = prompt_mode(run, entry.prompt)
        if entry.image == "shown" or shown is None:
            continue
        for model in (model for model in run.models if {mode, shown} <= {*run.params.modes_of(model)}):
            series = (run.ratings(model, shown, own), run.ratings(model, mode, own))
            if test := paired(*series, run.images[own], run.confidence):
                before, after = test["first_percent"], test["second_percent"]
                line = {"model": model, "mode": mode, "image": entry.image, "shown": before, "final": after}
                lines.append(test | line | {"kept": 100 * after / before if before else None})
    numbers = ["shown", "final", *GAP, "p", "kept"]
    digits = dict.fromkeys(numbers, 2) | {"n_effective": 1, "p": 5}
    return to_frame(lines, ["model", "mode", "image", "n", "n_effective", *numbers], digits)


def summary(run: Run) -> dict:
    """Return model -> mode -> test set -> `final` (own test also `reasoning`), by the main judge, in percent.

    The first mode has every test set, the others the own test set only, so that `dvc metrics diff` fits on a screen;
    `metrics/scores/` has all. Scores that are missing have no key, so that every line of the diff is a number.
    """
    result: dict = {}
    own = run.params.own_test
    for model, mode in run.asked:
        for name in run.params.sets_of(mode) if mode == run.params.modes[0] else [own]:
            cell = run.scores[model][mode][name][run.main_judge]
            keys = ("final", "reasoning") if name == own else ("final",)
            if values := {key: cell[key] for key in keys if cell[key] is not None}:
                result.setdefault(model, {}).setdefault(mode, {})[name] = values
    return result
