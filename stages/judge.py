"""Stage `judge`: one judge's verdict on every prediction of one model.

Reads `data/predictions/<model>/<mode>/<set>.jsonl` beside the set's samples, and writes
`data/verdicts/<model>/<judge>/<mode>/<set>.jsonl`. Verdicts are kept in `.cache/verdicts` by all that
they depend on (the judge's settings and code, the predictions, the samples), one file per mode and
set: one more benchmark is judged alone, and the rest is taken from there.
"""

import hashlib
import json
import time
from pathlib import Path

import click

from stages.errors import UserError, stage_main
from stages.params import Params, load_params
from stages.records import (
    Prediction,
    Sample,
    Verdict,
    predictions_file,
    read_records,
    verdicts_file,
    write_records,
)

CACHE = Path(".cache/verdicts")
TRUTH = Path("data/phantom_truth.jsonl")


@click.command()
@click.option("--judge", "name", required=True, help="Slug of a judge in params.yaml.")
@click.option("--model", required=True, help="Slug of a model with predictions.")
@stage_main
def main(name: str, model: str) -> None:
    """Judge every prediction of one model."""
    params = load_params()
    if name not in params.judge:
        raise UserError(
            f"--judge {name}",
            "no such judge",
            f"one of {', '.join(params.judge)}",
            "define it under `judge:` in params.yaml",
        )
    for mode in params.modes:
        judge_mode(params, name, model, mode, params.sets_of(mode))


def judge_mode(params: Params, name: str, model: str, mode: str, sets: list[str]) -> None:
    """Write the verdicts of one mode, set by set, and say how they came out."""
    started, verdicts, from_cache = time.monotonic(), [], 0
    for test_set in sets:
        questions = params.samples_file(test_set)
        predicted = predictions_file(model, mode, test_set)
        for path in (questions, predicted):
            if not path.is_file():
                raise UserError(
                    str(path), "no such file", "the input of the judges", "run `dvc repro judge`"
                )
        cached = CACHE / f"{cache_key(params, name, questions, predicted)}.jsonl"
        if cached.is_file():
            new = read_records(cached, Verdict)
            from_cache += 1
        else:
            new = _judged(params, name, questions, predicted)
            write_records(cached, new)
        write_records(verdicts_file(model, name, mode, test_set), new)
        verdicts += new
    right = sum(verdict.prediction_score == 1 for verdict in verdicts)
    unscored = sum(verdict.unscored is not None for verdict in verdicts)
    click.echo(
        f"judge {name}, {model}, {mode}: {len(verdicts)} verdicts in {len(sets)} sets ({from_cache} from "
        f"the cache), {right} right, {len(verdicts) - unscored - right} wrong, {unscored} unscored, "
        f"{time.monotonic() - started:.1f} s"
    )


def cache_key(params: Params, name: str, questions: Path, predicted: Path) -> str:
    """SHA-256 of everything that the verdicts depend on."""
    settings = params.judge[name]
    files = {"samples": questions, "predictions": predicted}
    if settings.kind == "truth":
        files["truth"] = TRUTH
    code = Path(__file__).parent
    files |= {path.name: path for path in sorted((code / "judges").glob("*.py"))}
    files |= {path: code / path for path in ("answers.py", "encoder.py", "records.py")}
    depends = {
        "settings": settings.model_dump(),
        "encoder": params.encoder.model_dump() if settings.kind == "semantic" else None,
        "files": {key: _file_hash(path) for key, path in files.items()},
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _judged(params: Params, name: str, questions: Path, predicted: Path) -> list[Verdict]:
    from stages.judges import JUDGES

    samples = read_records(questions, Sample)
    predictions = read_records(predicted, Prediction)
    samples = paired(samples, predictions, questions, predicted)
    settings = params.judge[name]
    return JUDGES[settings.kind](
        samples, predictions, settings, encoder=params.encoder, truth_file=TRUTH
    )


def paired(
    samples: list[Sample], predictions: list[Prediction], questions: Path, predicted: Path
) -> list[Sample]:
    """The samples in the order of the predictions.

    Raises:
        UserError: not every sample has exactly one prediction.
    """
    by_id = {sample.id: sample for sample in samples}
    asked = [prediction.id for prediction in predictions]
    problems = {
        "twice": {i for i in asked if asked.count(i) > 1}
        if len(set(asked)) < len(asked)
        else set(),
        "without a sample": set(asked) - by_id.keys(),
        "missing": by_id.keys() - set(asked),
    }
    found = [
        f"{len(ids)} {what} ({', '.join(sorted(ids)[:3])})" for what, ids in problems.items() if ids
    ]
    if found:
        raise UserError(
            str(predicted),
            f"{len(asked)} predictions: {'; '.join(found)}",
            f"one prediction for each of the {len(by_id)} samples in {questions}",
            "make the predictions again with `dvc repro infer`",
        )
    return [by_id[i] for i in asked]


if __name__ == "__main__":
    main()
