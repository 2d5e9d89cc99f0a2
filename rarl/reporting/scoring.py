"""One model's scores by every judge, each with its interval and its counts."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd

from rarl.forms import MARKS
from rarl.params import Params
from rarl.records import Prediction, Sample, Verdict, predictions_file, verdicts_file
from rarl.registry import DATA_SETS
from rarl.reporting.inputs import FIELDS, Run, in_order
from rarl.reporting.stats import Images, by_question, share_interval

#: The benchmark whose release the own test set is taken from, and its part without the own test's rows.
OVERLAPPING = DATA_SETS["silvar_med"].release
WITHOUT_OWN_TEST = f"{OVERLAPPING}_without_own_test"


#: A prompt that asks for the answer alone, so that no completion to it has tags.
UNTAGGED_PROMPTS = ("direct",)


def score_cell(
    predictions: Sequence[Prediction],
    verdicts: Sequence[Verdict],
    images: Images,
    confidence: float,
    marks: re.Pattern | None = MARKS["tags"],
) -> dict:
    """Return the scores of one model, mode, test set and judge, in percent with two decimals.

    `final` is the share of answers judged right among the `n` that were scored; its interval is that of `n_effective`
    independent questions, because several are about one of the `images`. Answers that could not be generated or judged
    are counted in `unscored` and in no share. An `empty` or `truncated` answer is the model's fault: it is scored, and
    also counted.

    The form of the answers, whatever they say: `untagged` is the percentage of completions without what `marks` the
    answer (a closed `<answer>` pair), None if nothing is to mark it; `answer_words` is the mean number of words of an
    answer.
    """
    asked = [p for p in predictions if p.error is None]
    finals, reasonings = (
        [(score, image) for v, image in zip(verdicts, images, strict=True) if (score := getattr(v, field)) is not None]
        for field in FIELDS.values()
    )
    without = sum(not marks.search(p.completion) for p in asked) if marks else 0
    words = sum(len(p.answer.split()) for p in asked)
    return {
        **share("final", *_columns(finals), confidence),
        **share("reasoning", *_columns(reasonings), confidence),
        "n": len(finals),
        "reasoning_n": len(reasonings),
        "unscored": len(verdicts) - len(finals),
        "empty": sum(not p.answer.strip() for p in asked),
        "truncated": sum(p.truncated for p in predictions),
        "untagged": round(100 * without / len(asked), 2) if marks and asked else None,
        "answer_words": round(words / len(asked), 2) if asked else None,
    }


def _columns(pairs: list[tuple]) -> tuple:
    return tuple(zip(*pairs)) or ((), ())


def share(name: str, scores: Sequence[int], images: Images, confidence: float) -> dict:
    """Return the share of 1 among 0/1 scores, its interval and the effective n; None if there are no scores.

    In percent with two decimals.

    >>> share("final", [1, 1, 0, 1], "abcd", 0.95)
    {'final': 75.0, 'final_low': 30.06, 'final_high': 95.44, 'n_effective': 4.0}
    """
    effective = "n_effective" if name == "final" else f"{name}_n_effective"
    if not scores:
        return {name: None, f"{name}_low": None, f"{name}_high": None, effective: None}
    low, high, n = share_interval(scores, images, confidence)
    shares = {name: sum(scores) / len(scores), f"{name}_low": low, f"{name}_high": high}
    return {key: round(100 * value, 2) for key, value in shares.items()} | {effective: round(float(n), 1)}


#: The fields of a sample that scores are broken down by.
GROUPINGS = ("category", "kind", "modality", "origin")
#: The columns of the breakdown that are taken from a cell.
BROKEN_DOWN = ("n", "unscored", "final", "final_low", "final_high", "n_effective", "untagged", "answer_words")


@dataclass
class Judged:
    """One model's answers to one test set under one mode, with every judge's verdicts, in the order of the samples."""

    mode: str
    name: str
    samples: list[Sample]
    predictions: list[Prediction]
    verdicts: dict[str, list[Verdict]]
    marks: re.Pattern | None = MARKS["tags"]
    """What is to mark the answer in a completion."""

    def cell(self, judge: str, rows: Sequence[int], confidence: float) -> dict:
        """Return the scores over some of the rows."""
        predictions, verdicts = ([column[i] for i in rows] for column in (self.predictions, self.verdicts[judge]))
        images = [self.samples[i].image_sha256 for i in rows]
        return score_cell(predictions, verdicts, images, confidence, self.marks)

    def groups(self) -> Iterator[tuple[str, str, list[int]]]:
        """Yield each field of `GROUPINGS` with each of its values, in order, and the rows that have it."""
        for by in GROUPINGS:
            rows: dict[str, list[int]] = {}
            for i, sample in enumerate(self.samples):
                rows.setdefault(getattr(sample, by), []).append(i)
            yield from ((by, value, rows[value]) for value in sorted(rows))

    def cells(self, rows: Sequence[int], confidence: float) -> dict[str, dict]:
        """Return judge -> scores over some of the rows."""
        return {judge: self.cell(judge, rows, confidence) for judge in self.verdicts}


def read_judged(params: Params, model: str) -> list[Judged]:
    """Read what one model's scores are computed from.

    Raises:
        UserError: a file of predictions or verdicts is missing or does not match its questions.
    """
    run, rival = Run(params), params.rival.get(model)
    judged = []
    for mode, name in run.places_of(model):
        samples = run.samples[name]
        predictions = in_order(predictions_file(model, mode, name), samples, Prediction)
        verdicts = {
            judge: in_order(verdicts_file(model, judge, mode, name), samples, Verdict) for judge in params.judges
        }
        unmarked = params.mode[mode].prompt in UNTAGGED_PROMPTS and not (rival and rival.prompt)
        marks = None if unmarked else MARKS[rival.reads if rival else "tags"]
        judged.append(Judged(mode, name, samples, predictions, verdicts, marks))
    return judged


def breakdown(judged: list[Judged], params: Params) -> pd.DataFrame:
    """Return the main numbers of each part of a test set, by each of `GROUPINGS` and judge."""
    lines = []
    for part in judged:
        for judge, (by, value, rows) in product(part.verdicts, part.groups()):
            cell = part.cell(judge, rows, params.report.confidence)
            lines.append((part.mode, part.name, judge, by, value, *(cell[key] for key in BROKEN_DOWN)))
    return pd.DataFrame(lines, columns=["mode", "set", "judge", "by", "value", *BROKEN_DOWN])


def outside_own_test(samples: Sequence[Sample], own: Sequence[Sample]) -> list[bool]:
    """Return for each sample whether it is not in the own test set, compared by image and question."""
    seen = {(sample.image_sha256, by_question(sample)) for sample in own}
    return [(sample.image_sha256, by_question(sample)) not in seen for sample in samples]


def score_model(judged: list[Judged], params: Params) -> dict:
    """Return mode -> test set -> judge -> cell."""
    own = next(part.samples for part in judged if part.name == params.own_test)
    scores: dict = {}
    for part in judged:
        sets = scores.setdefault(part.mode, {})
        sets[part.name] = part.cells(range(len(part.samples)), params.report.confidence)
        if part.name == OVERLAPPING:
            kept = [i for i, keep in enumerate(outside_own_test(part.samples, own)) if keep]
            sets[WITHOUT_OWN_TEST] = part.cells(kept, params.report.confidence)
    return scores
