"""The report's tables: the paper's Tables 3 and 6 with our figures, the own test, paired tests, agreement.

All tables are long-form pandas frames with percent and points rounded to two decimals; the page
arranges them, and `metrics/tables/*.csv` holds them as they are.
"""

from functools import cache
from itertools import combinations
from pathlib import Path

import pandas as pd

from stages.records import read_json
from stages.reporting.inputs import Run
from stages.reporting.scoring import WITHOUT_OWN_TEST
from stages.reporting.statistics import (
    agreement,
    baseline_scores,
    by_kind,
    by_question,
    holm,
    mcnemar,
    smallest_difference,
    wilson,
)

MODELS = {"base": "Base", "sft": "SFT", "grpo": "RL + LoRA", "rarl": "RARL"}
SETS = {
    "silvar_med": "Own test (Silvar-Med)",
    "own": "Own data",
    "sat": "SAT",
    "vqa_rad": "VQA-RAD",
    "slake": "SLAKE",
    WITHOUT_OWN_TEST: "SLAKE without own test",
    "vqa_med": "VQA-Med 2019",
    "path_vqa": "Path-VQA",
    "cv_bench": "CV-Bench",
}
BASELINES = {
    "most_frequent_by_kind": "Most frequent answer of the kind",
    "most_frequent_by_question": "Most frequent answer to the question",
}
SCORES = ["final", "final_low", "final_high", "reasoning", "reasoning_low", "reasoning_high"]
COUNTS = ["n", "reasoning_n", "unscored", "empty", "truncated"]


@cache
def paper() -> dict:
    """The figures that the paper prints, with the table and the row that each stands in."""
    return read_json(Path(__file__).parent / "paper.json")


def prompt_mode(run: Run, prompt: str) -> str | None:
    """The mode that shows the image and asks with this prompt on every test set; None if there is none."""
    for mode in run.params.modes:
        entry = run.params.mode[mode]
        if entry.prompt == prompt and entry.image == "shown" and not entry.own_test_only:
            return mode
    return None


def paper_table(run: Run, name: str) -> pd.DataFrame:
    """Table 3 or 6 in long form: one line per row of the paper, test set and judge, ours and theirs.

    Args:
        name: `table3` or `table6`.
    """
    lines = []
    for row in paper()[name]["rows"]:
        mode = prompt_mode(run, row["prompt"])
        ours = run.scores[row["model"]][mode] if mode and row["model"] in run.params.models else {}
        for test_set in SETS:
            key = {
                "row": row["label"],
                "model": row["model"],
                "prompt": row["prompt"],
                "set": test_set,
            }
            for judge in run.judges:
                if test_set in ours:
                    cell = ours[test_set][judge]
                    lines.append(
                        {
                            **key,
                            "source": "ours",
                            "judge": judge,
                            **{c: cell[c] for c in SCORES},
                            "n": cell["n"],
                        }
                    )
            for judge, figures in row["sets"].get(test_set, {}).items():
                lines.append({**key, "source": "paper", "judge": judge, **figures})
    frame = pd.DataFrame(
        lines, columns=["row", "model", "prompt", "set", "source", "judge", *SCORES, "n"]
    )
    return frame.astype({"n": "Int64"})


def own_test(run: Run) -> pd.DataFrame:
    """Every model under every mode on the own test set by the main judge, and what needs no model.

    `label` names each line once, as a bar plot needs it.
    """
    lines = []
    for model in run.params.models:
        for mode in run.params.modes:
            cell = run.scores[model][mode][run.params.own_test][run.main_judge]
            label = model if mode == run.main_mode else f"{model}, {mode}"
            lines.append(
                {
                    "label": label,
                    "model": model,
                    "mode": mode,
                    **{c: cell[c] for c in [*SCORES, *COUNTS]},
                }
            )
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
    return (
        frame.astype(dict.fromkeys(SCORES, float)).round(2).astype(dict.fromkeys(COUNTS, "Int64"))
    )


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
        (model, mode): [
            v.prediction_score for v in run.verdicts[model, mode, run.params.own_test, judge]
        ]
        for model in params.models
        for mode in params.modes
    }
    families: dict[str, list] = {
        "between models": [
            (a, b, series[a, main], series[b, main]) for a, b in combinations(params.models, 2)
        ]
    }
    for mode in params.modes:
        if mode != main:
            families[family_of(mode, main)] = [
                (f"{m}, {mode}", f"{m}, {main}", series[m, mode], series[m, main])
                for m in params.models
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


def detectable(run: Run, tests: pd.DataFrame) -> float | None:
    """Smallest difference, in points, that the own test shows between two models with 80 % power,
    at the share of discordant pairs that this run has on average."""
    models = tests[tests["family"] == "between models"]
    if models.empty:
        return None
    discordant = float(((models["first_only"] + models["second_only"]) / models["n"]).mean())
    return smallest_difference(int(models["n"].min()), discordant, 1 - run.params.report.confidence)


def judge_agreement(run: Run) -> pd.DataFrame:
    """Each pair of judges per model, over all modes and test sets: percent agreement and Cohen's kappa."""
    lines = []
    places = [(mode, name) for mode in run.params.modes for name in run.params.sets_of(mode)]
    for model in run.params.models:
        for first, second in combinations(run.judges, 2):
            for score in ("final", "reasoning"):
                field = "prediction_score" if score == "final" else "reasoning_score"
                both = [
                    (getattr(a, field), getattr(b, field))
                    for mode, name in places
                    for a, b in zip(
                        run.verdicts[model, mode, name, first],
                        run.verdicts[model, mode, name, second],
                    )
                    if getattr(a, field) is not None and getattr(b, field) is not None
                ]
                if both:
                    result = agreement([a for a, _ in both], [b for _, b in both])
                    lines.append(
                        {"model": model, "first": first, "second": second, "score": score, **result}
                    )
    frame = pd.DataFrame(
        lines, columns=["model", "first", "second", "score", "n", "agreement", "kappa"]
    )
    return frame.astype({"agreement": float, "kappa": float}).round({"agreement": 2, "kappa": 3})


def reward_gap(run: Run) -> pd.DataFrame:
    """How far each judge's scores lie above the truth rater's on the own test, in points.

    The rewards compare texts. A model that learnt to please them rather than to be right would show
    a gap that the base model does not have.
    """
    lines = []
    if run.truth_judge:
        for model in run.params.models:
            cells = run.scores[model][run.main_mode][run.params.own_test]
            truth = cells[run.truth_judge]
            for judge in run.judges:
                for score in ("final", "reasoning"):
                    rated, true = cells[judge][score], truth[score]
                    if judge != run.truth_judge and rated is not None and true is not None:
                        lines.append(
                            {
                                "model": model,
                                "judge": judge,
                                "score": score,
                                "rated": rated,
                                "truth": true,
                                "gap": round(rated - true, 2),
                            }
                        )
    return pd.DataFrame(lines, columns=["model", "judge", "score", "rated", "truth", "gap"])


def summary(run: Run) -> dict:
    """model -> mode -> test set -> `final` (own test also `reasoning`), by the main judge, in percent.

    The first mode has every test set, the others the own test only, so that `dvc metrics diff` fits on a
    screen; `metrics/scores/` has all. What was not scored or not annotated has no key, so that every line
    of the difference is a number.
    """
    result: dict = {}
    for model in run.params.models:
        for mode in run.params.modes:
            sets = (
                run.params.sets_of(mode) if mode == run.params.modes[0] else [run.params.own_test]
            )
            for name in sets:
                cell = run.scores[model][mode][name][run.main_judge]
                keys = ("final", "reasoning") if name == run.params.own_test else ("final",)
                values = {key: cell[key] for key in keys if cell[key] is not None}
                if values:
                    result.setdefault(model, {}).setdefault(mode, {})[name] = values
    return result
