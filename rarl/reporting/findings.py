"""What the tests support about the own test set, in sentences."""

from collections.abc import Iterator

import pandas as pd

from rarl.registry import METHODS
from rarl.reporting.formats import percent, signed
from rarl.reporting.inputs import Run
from rarl.reporting.study_tables import could_be_noise, study, training_noise
from rarl.reporting.tables import RIVALS, family_of, verdicts_by_judge

#: The summary reports truncated completions, or those without tags, if more than this share of a model's are.
CUT_OFF = 0.05
#: The first word of a sentence that questions the others.
WARNING = "WARNING:"
INSTEAD = {"blank": "a grey image", "shuffled": "another question's image of the same modality"}


def findings(run: Run, frames: dict[str, pd.DataFrame]) -> list[str]:
    """Return the findings on the own test set under the main mode; `frames` as for `page.render`."""
    own, tests = frames["own_test"], frames["paired_tests"]
    main = own[(own["mode"] == run.main_mode) & own["final"].notna()]
    if main.empty:
        return [f"The {run.main_judge} judge scored nothing on the own test set, so there are no findings."]
    best = main.sort_values("final", ascending=False, kind="stable").iloc[0]
    sentences = [
        f"Highest on the own test under the {run.main_mode} prompt: {run.labels[best['model']]} with "
        f"{percent(best['final'])} % [{percent(best['final_low'])}, {percent(best['final_high'])}]."
    ]
    truncated = main[main["truncated"] > CUT_OFF * main["n"]]
    if cut := [f"{run.labels[row.model]} {row.truncated:.0f} of {row.n:.0f}" for row in truncated.itertuples()]:
        sentences.append(
            f"Completions truncated at {run.params.decoding.max_new_tokens} tokens (decoding.max_new_tokens), which "
            f"count as wrong if the answer had not been given: {', '.join(cut)}."
        )
    if loose := [
        f"{run.labels[r.model]} {percent(r.untagged)} %" for r in main.itertuples() if r.untagged > 100 * CUT_OFF
    ]:
        sentences.append(
            "Completions without a closed <answer> pair, whose answer is all of the text outside <think>: "
            f"{', '.join(loose)}."
        )
    between = tests[tests["family"] == "between models"]
    if len(between):
        sentences.append(_between_models(between, "between models", run.labels))
    rivals = tests[tests["family"] == f"between models{RIVALS}"]
    if len(rivals):
        sentences.append(_between_models(rivals, "with rivals", run.labels))
    if changed := verdicts_by_judge(run, tests):
        sentences.append(_depending_on_the_judge(changed, len(between), run.labels))
    sentences += _training_noise(run, training_noise(run, own), between[between["differs"]])
    sentences += _health(run)
    floor = own.loc[own["model"] == "most_frequent_by_kind", "final"]
    if len(floor):
        above = [run.labels[row.model] for row in main.itertuples() if row.final_low > floor.iloc[0]]
        sentences.append(
            "Always giving the most frequent training answer of the question's kind, without looking at the image, "
            f"scores {percent(floor.iloc[0])} %. Above that with the whole interval: {', '.join(above) or 'no model'}."
        )
    for mode in run.params.modes:
        image = run.params.mode[mode].image
        blank = tests[tests["family"] == family_of(mode, run.main_mode)]
        if image != "shown" and len(blank):
            lost = [f"{run.labels[t.second.split(',')[0]]} {signed(-t.difference)}" for t in blank.itertuples()]
            sentences.append(
                f"With {INSTEAD[image]} instead of the right one, scores change by (points): {', '.join(lost)}."
            )
    return sentences


def _depending_on_the_judge(changed: dict[tuple[str, str], dict[str, str]], tests: int, labels: dict[str, str]) -> str:
    shown = []
    for (first, second), verdicts in changed.items():
        judges: dict[str, list[str]] = {}
        for judge, verdict in verdicts.items():
            judges.setdefault(verdict, []).append(judge)
        listed = ", ".join(f"{verdict} by {' and '.join(names)}" for verdict, names in judges.items())
        shown.append(f"{labels[second]} against {labels[first]} is {listed}")
    verb = "depends" if len(shown) == 1 else "depend"
    return (
        f"{WARNING} {len(shown)} of {tests} comparisons between models {verb} on the judge: {'; '.join(shown)}. "
        "Compare the form of the answers (length, tags) before the models."
    )


def _training_noise(run: Run, noises: dict[str, dict], differing: pd.DataFrame) -> Iterator[str]:
    """Yield what the seeds say about the scores and about the significant comparisons, or that there are no seeds."""
    trained = [model for model in run.params.models if model in METHODS]
    known = {model: noises[model] for model in trained if model in noises}
    if known:
        listed = [
            f"{run.labels[model]} {percent(x['sd'])} over {x['seeds']} seeds ({percent(x['low'])} to "
            f"{percent(x['high'])}) and {percent(x['error'])} over questions"
            for model, x in known.items()
        ]
        larger: dict[str, list[str]] = {}
        for model, x in known.items():
            larger.setdefault(x["larger"], []).append(run.labels[model])
        summed = "; ".join(f"over {what} for {', '.join(names)}" for what, names in larger.items())
        yield f"Standard deviation of the scores, in points: {'; '.join(listed)}. The larger one is {summed}."
    if once := [run.labels[model] for model in trained if model not in known]:
        other = study("seeds", run.params.profile)
        yield (
            f"Trained with one seed: {', '.join(once)}. One training is one draw, and the intervals over questions do "
            "not include how much another seed changes the scores. "
            + ("metrics/studies/seeds.csv is of other models, data or settings. " if other else "")
            + "To measure it: rarl study seeds --seeds 7,8,9"
        )
    if outside := [run.labels[model] for model, x in known.items() if x["outside"]]:
        yield (
            "Outside the range over seeds, so trained with another seed or other settings than those of "
            f"metrics/studies/seeds.csv: {', '.join(outside)}."
        )
    shown = []
    for test in differing.itertuples():
        of_both = [noises[model] for model in (test.first, test.second) if model in noises]
        if could_be_noise(test.difference, of_both, run.confidence):
            shown.append(f"{run.labels[test.first]} and {run.labels[test.second]}")
    if shown:
        yield (
            f"{WARNING} {len(shown)} of {len(differing)} significant differences could come from the seed alone, "
            f"because trainings of the same method differ as much: {'; '.join(shown)}."
        )


def _health(run: Run) -> Iterator[str]:
    for method, found in run.health.items():
        shown = " ".join(finding.describe(method) for finding in found)
        yield f"{WARNING} The training log of {run.labels[method]} looks unhealthy. {shown}"


def _between_models(tests: pd.DataFrame, which: str, labels: dict[str, str]) -> str:
    shown = []
    for test in tests[tests["differs"]].itertuples():
        low, high = (test.first, test.second) if test.difference > 0 else (test.second, test.first)
        shown.append(f"{labels[high]} over {labels[low]} by {percent(abs(test.difference))} points")
    listed = f": {'; '.join(shown)}" if shown else ""
    verb = "is" if len(shown) == 1 else "are"
    return f"{len(shown)} of {len(tests)} comparisons {which} {verb} significant{listed}."
