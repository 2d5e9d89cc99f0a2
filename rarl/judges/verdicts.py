"""One judge's verdicts on every prediction of one model, set by set.

They are cached in `.cache/verdicts` by everything that they depend on (the judge's settings and code, the predictions,
the samples), one file per mode and set: a new benchmark is judged alone. Judges that ask a language model keep every
response instead (`.cache/llm`): a later run asks again where a request failed.
"""

import time
from collections import Counter
from functools import cache
from itertools import chain, islice
from pathlib import Path

import click

from rarl.cache import code_key, keep, kept, key_of
from rarl.errors import UserError
from rarl.judges import judge_of
from rarl.judges.human import ratings_files
from rarl.params import Params
from rarl.processes.forks import cores, in_forks
from rarl.records import (
    PREDICTIONS,
    Prediction,
    Sample,
    Verdict,
    predictions_file,
    read_records,
    remake,
    verdicts_file,
    write_records,
)
from rarl.registry import JUDGE_KINDS

CACHE = Path(".cache/verdicts")
TRUTH = Path("data/truth.jsonl")


def judge_model(params: Params, name: str, model: str) -> None:
    """Write one judge's verdicts on every prediction of one model."""
    kind = params.judge[name].kind
    asked = ask_once(params, name, model) if JUDGE_KINDS[kind].asks else {}
    new = judge_together(params, name, model) if kind == "semantic" else set()
    for mode in params.modes_of(model):
        judge_mode(params, name, model, mode, params.sets_of(mode), asked, new)


def judge_together(params: Params, name: str, model: str) -> set[tuple[str, str]]:
    """Put verdicts that the cache lacks there, of this model and of the others that have predictions.

    It takes longer to import and load the encoder than to judge a model, so one stage does it for all. The cores share
    the sets.

    Returns:
        (mode, set) of this model's new verdicts. If it has none, nothing is judged.
    """
    left = left_to_judge(params, name, [model, *(other for other in params.models if other != model)])
    new = {(mode, test_set) for one, mode, test_set in left if one == model}
    if new:
        keep_verdicts(params, name, left, model)
    return new


def work_ahead(model: str, params: Params, predictions: Path, forks: int | None = None) -> None:
    """Judge what `judge_model` will need, in the folder `predictions`, in at most `forks` processes."""
    for name in params.judges:
        if params.judge[name].kind == "semantic":
            keep_verdicts(params, name, left_to_judge(params, name, [model], predictions), model, forks)


def left_to_judge(
    params: Params, name: str, models: list[str], predictions: Path = PREDICTIONS
) -> dict[tuple[str, str, str], tuple[Path, tuple[Path, Path]]]:
    """Map (model, mode, set) to the file that lacks in the cache, and to the files that its verdicts are made of."""
    left = {}
    for model in models:
        for mode in params.modes_of(model):
            for test_set in params.sets_of(mode):
                files = inputs(params, model, mode, test_set, predictions)
                if all(file.is_file() for file in files):
                    cached = cached_file(params, name, *files)
                    if not cached.is_file():
                        left[model, mode, test_set] = cached, files
    return left


def keep_verdicts(params: Params, name: str, left: dict, model: str, forks: int | None = None) -> None:
    """Put verdicts of a semantic judge into the cache. An error is raised for `model`, and left to others' stages."""
    from rarl.judges.semantic import load_encoder

    def work(place, advance):
        cached, files = left[place]
        try:
            keep(cached, judged(params, name, *read_pair(*files), place="/".join(place)))
        except UserError:
            if place[0] == model:
                raise

    if left:
        load_encoder(params.encoder.source)
        in_forks(work, [*left], min(forks or cores(1), len(left)))


def judge_mode(
    params: Params, name: str, model: str, mode: str, sets: list[str], asked: dict, judged_now: set[tuple[str, str]]
) -> None:
    """Write the verdicts of one mode, set by set, and log a summary.

    `asked` has those from `ask_once`, and the cache those that `judge_together` has judged now.
    """
    started, verdicts, from_cache = time.monotonic(), [], 0
    for test_set in sets:
        questions, predicted = inputs(params, model, mode, test_set)
        if (mode, test_set) in asked:
            new = asked[mode, test_set]
        else:
            cached = cached_file(params, name, questions, predicted)
            new = kept(cached, Verdict)
            from_cache += new is not None and (mode, test_set) not in judged_now
            if new is None:
                new = judged(params, name, *read_pair(questions, predicted), place=f"{model}/{mode}/{test_set}")
                keep(cached, new)
        write_records(verdicts_file(model, name, mode, test_set), new)
        verdicts += new
    right = sum(verdict.prediction_score == 1 for verdict in verdicts)
    unscored = Counter(verdict.unscored for verdict in verdicts if verdict.unscored is not None)
    wrong = len(verdicts) - unscored.total() - right
    click.echo(
        f"judge {name}, {model}, {mode}: {len(verdicts)} verdicts in {len(sets)} sets ({from_cache} from "
        f"the cache), {right} right, {wrong} wrong, {unscored.total()} unscored"
        + ("" if asked else f", {time.monotonic() - started:.1f} s")
    )
    for why, count in unscored.most_common(5):
        click.echo(f"  unscored {count} times: {why}")
    if asked and unscored:
        click.echo(f"  `dvc repro -s -f judge@{model}` asks again where a response is missing; the others are kept")


def ask_once(params: Params, name: str, model: str) -> dict[tuple[str, str], list[Verdict]]:
    """Map (mode, set) to the verdicts of a judge that is asked about everything at once.

    Its estimate and limits then apply to the whole stage, and a question that is in two sets is asked once.
    """
    places = [(mode, test_set) for mode in params.modes_of(model) for test_set in params.sets_of(mode)]
    pairs = [read_pair(*inputs(params, model, *place)) for place in places]
    samples, predictions = (list(chain.from_iterable(column)) for column in zip(*pairs))
    verdicts = iter(judged(params, name, samples, predictions))
    return {place: list(islice(verdicts, len(pair[0]))) for place, pair in zip(places, pairs)}


def inputs(params: Params, model: str, mode: str, test_set: str, predictions: Path = PREDICTIONS) -> tuple[Path, Path]:
    """The files of questions and predictions of one set."""
    return params.samples_file(test_set), predictions_file(model, mode, test_set, predictions)


def read_pair(questions: Path, predicted: Path) -> tuple[list[Sample], list[Prediction]]:
    """Read samples and predictions, one for one."""
    predictions = read_records(predicted, Prediction)
    return paired(read_records(questions, Sample), predictions, questions, predicted), predictions


def judged(
    params: Params, name: str, samples: list[Sample], predictions: list[Prediction], place: str | None = None
) -> list[Verdict]:
    """Judge predictions; `place` is their `<model>/<mode>/<set>`, if they have only one."""
    settings, processes = params.judge[name], params.accelerate.processes
    others = {"name": name, "place": place, "encoder": params.encoder, "truth_file": TRUTH, "processes": processes}
    return judge_of(settings.kind)(samples, predictions, settings, **others)


def cached_file(params: Params, name: str, questions: Path, predicted: Path) -> Path:
    """The file in `.cache/` of the verdicts on one set, named by everything that they depend on."""
    settings, files, depends = params.judge[name], [questions, predicted], {}
    if settings.kind == "truth":
        files.append(TRUTH)
    if settings.kind == "human":
        ratings = ratings_files(settings.rater)
        files += ratings
        depends = {"place": predicted.as_posix(), "ratings": [path.name for path in ratings]}
    if settings.kind == "semantic":
        depends = {"encoder": params.encoder.model_dump()}
    return CACHE / f"{key_of(*files, settings=settings.model_dump(), code=code(), **depends)}.jsonl"


@cache
def code() -> dict[str, str]:
    """The hashes of the code that verdicts depend on."""
    return code_key("judge", "cpu")


def paired(samples: list[Sample], predictions: list[Prediction], questions: Path, predicted: Path) -> list[Sample]:
    """The samples in the order of the predictions.

    Raises:
        UserError: not every sample has exactly one prediction.
    """
    by_id = {sample.id: sample for sample in samples}
    asked = [prediction.id for prediction in predictions]
    problems = {
        "twice": {i for i, count in Counter(asked).items() if count > 1},
        "without a sample": set(asked) - by_id.keys(),
        "missing": by_id.keys() - set(asked),
    }
    found = [f"{len(ids)} {what} ({', '.join(sorted(ids)[:3])})" for what, ids in problems.items() if ids]
    if found:
        raise UserError(
            str(predicted),
            f"{len(asked)} predictions: {'; '.join(found)}",
            f"one prediction for each of the {len(by_id)} samples in {questions}",
            remake(predicted),
        )
    return [by_id[i] for i in asked]
