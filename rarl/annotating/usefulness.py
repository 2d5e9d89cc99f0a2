"""How useful the annotation of a row is, for the order `useful`: the sum of four parts, each from 0 to 1.

* `no_signal`: the mean of 1 - 2 s over the row's groups of completions in trainings, where s is the standard deviation
  of the accuracy reward in a group.
* `models_disagree`: 4 p (1 - p), where p is the share of right answers among the models.
* `judges_unsure`: the mean of 4 p (1 - p) over the models' answers, where p is the share of judges that accept it.
* `rare_finding`: the surprisal of the rarest clinical term in question and answer, -log of its share of rows, over
  that of one row.

What is not known of a row counts 0. Groups are recorded while a training runs (`rarl/training/groups.py`); answers are
predictions of the own test set, and drafts. The judges are those of `params.yaml`: `lexical` and `semantic` are asked
here, the latter also with thresholds that are `MARGIN` lower and higher; of the others, the verdicts that the pipeline
has written are read.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import click

from rarl.annotating.drafts import answered_by, proposals
from rarl.answers.matching import is_right
from rarl.judges.verdicts import judged
from rarl.params import Params
from rarl.records import Prediction, Sample, Verdict, read_records, verdicts_file
from rarl.rewards.terms import facts
from rarl.training.groups import row_key, spreads

#: A semantic judge is unsure of an answer if a threshold that is so much lower or higher gives another verdict.
MARGIN = 0.05
#: Content of a row -> a value from 0 to 1; a row of which it is not known is missing.
Part = dict[str, float]


def usefulness(params: Params, ask: Sequence[str], rows: Mapping[str, Sample]) -> dict[str, dict[str, float]]:
    """Content -> the parts of the row's usefulness, after the models `ask` have been asked about all rows.

    Raises:
        UserError: as `rarl.annotating.drafts.proposals`.
    """
    for model in ask:
        proposals(model, params, [*rows.values()])
    answers = answered_by(params, rows.values())
    parts = {
        "no_signal": no_signal(rows),
        "models_disagree": models_disagree(rows, answers),
        "judges_unsure": judges_unsure(params, rows, answers),
        "rare_finding": rare_finding(rows),
    }
    known = ", ".join(f"{name} of {len(part)}" for name, part in parts.items())
    click.echo(f"Usefulness of {len(rows)} rows. Known parts: {known}.")
    return {content: {name: part.get(content, 0.0) for name, part in parts.items()} for content in rows}


def no_signal(rows: Mapping[str, Sample]) -> Part:
    """How far the groups of completions of a row have the same accuracy, which leaves GRPO without a gradient from it.

    The whole reward is never quite the same, because the completions differ in length.
    """
    found, part = spreads(), {}
    for content, sample in rows.items():
        if of_row := found.get(row_key(sample.image, sample.question, sample.choices, sample.answers)):
            part[content] = fmean(max(0.0, 1 - 2 * spread) for spread in of_row)
    return part


def models_disagree(rows: Mapping[str, Sample], answers: Mapping[str, Mapping[str, Prediction]]) -> Part:
    """How far the models disagree on a row; `answers`: model -> content -> its answer."""
    right = defaultdict(list)
    for of_model in answers.values():
        for content, one in of_model.items():
            sample = rows[content]
            right[content].append(is_right(one.answer, sample.answers, sample.kind, sample.choices, sample.question))
    return {content: divided(votes) for content, votes in right.items()}


def judges_unsure(params: Params, rows: Mapping[str, Sample], answers: Mapping[str, Mapping[str, Prediction]]) -> Part:
    """How far the judges disagree about the models' answers to a row."""
    pairs = [(model, content, one) for model, of_model in answers.items() for content, one in of_model.items()]
    votes = defaultdict(list)
    for verdicts in asked_here(params, rows, [(content, one) for _, content, one in pairs]):
        for (model, content, _), verdict in zip(pairs, verdicts):
            votes[model, content].append(verdict.prediction_score)
    for name in params.judges:
        if params.judge[name].kind not in ("lexical", "semantic"):
            for model in params.models:
                path = verdicts_file(model, name, params.main_mode, params.own_test)
                verdicts = read_records(path, Verdict) if path.is_file() else []
                scores = {verdict.id: verdict.prediction_score for verdict in verdicts}
                for content in answers[model]:
                    votes[model, content].append(scores.get(rows[content].id))
    unsure = defaultdict(list)
    for (_, content), scores in votes.items():
        if scores := [score for score in scores if score is not None]:
            unsure[content].append(divided(scores))
    return {content: fmean(values) for content, values in unsure.items()}


def asked_here(params: Params, rows: Mapping[str, Sample], pairs: list[tuple[str, Prediction]]) -> list[list[Verdict]]:
    """The verdicts of the judges that cost nothing, each of them on all answers."""
    samples = [rows[content].model_copy(update={"reasoning": None}) for content, _ in pairs]
    predictions = [one.model_copy(update={"id": sample.id}) for sample, (_, one) in zip(samples, pairs)]
    given = []
    for name in params.judges if pairs else ():
        settings = params.judge[name]
        shifts = {"lexical": [0.0], "semantic": [0.0, -MARGIN, MARGIN]}.get(settings.kind, [])
        for shift in shifts:
            moved = {"threshold": settings.threshold + shift} if shift else {}
            shifted = {**params.judge, name: settings.model_copy(update=moved)}
            given.append(judged(params.model_copy(update={"judge": shifted}), name, samples, predictions))
    return given


def rare_finding(rows: Mapping[str, Sample]) -> Part:
    """How rare the rarest clinical term in a row's question and first answer is among the rows."""
    terms = {content: terms_of(sample) for content, sample in rows.items()}
    counts = Counter(term for found in terms.values() for term in found)
    return {
        content: math.log(len(rows) / min(counts[term] for term in found)) / math.log(len(rows) + 1)
        for content, found in terms.items()
        if found
    }


def terms_of(sample: Sample) -> set[str]:
    """The clinical terms in a row's question and first answer."""
    text = f"{sample.question.rstrip('? ')}. {sample.answers[0]}"
    return {term for term, _ in facts(text)}


def divided(votes: list) -> float:
    """How far votes of 0 and 1 disagree: 0 if all are equal, 1 if half of them are 1.

    >>> divided([1, 1]), divided([True, False]), divided([1, 1, 1, 0])
    (0.0, 1.0, 0.75)
    """
    share = sum(votes) / len(votes)
    return 4 * share * (1 - share)
