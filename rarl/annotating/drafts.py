"""Drafts of the reasoning by a model, asked before the page opens.

Predictions that the pipeline has made of the same rows are taken; otherwise the model is asked as the stage `infer`
asks it, with the prompt of the main mode, and its completions are kept in `.cache/annotating/<model>/`. An endpoint is
asked under the rules of `rarl/chat`: with consent, key and budget, and nothing is paid for twice.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import click

from rarl.annotating.session import Proposal, tags
from rarl.cache import CACHE, answered, key_of
from rarl.data.annotations import content_key
from rarl.params import Params
from rarl.prompts import template
from rarl.records import Prediction, Sample, predictions_file, read_records

KEPT = CACHE / "annotating"


def proposals(model: str, params: Params, samples: Sequence[Sample]) -> dict[str, tuple[Proposal, ...]]:
    """Content -> the model's draft; none where its completion has no think text, or it could not be asked.

    Raises:
        UserError: the model has not been made yet, or the endpoint may not be asked.
    """
    found = made(model, params, samples)
    left = [sample for sample in samples if content_key(sample) not in found]
    if left:
        found |= ask(model, params, left)
    return {
        content: (Proposal(model, one.think, tags(one.think), answer=one.answer),)
        for content, one in found.items()
        if one.think
    }


def made(model: str, params: Params, samples: Iterable[Sample]) -> dict[str, Prediction]:
    """Content -> the prediction that the pipeline has made of a row of the own test set."""
    path = predictions_file(model, params.main_mode, params.own_test)
    known = {one.id: one for one in read_records(path, Prediction)} if path.is_file() else {}
    return {content_key(sample): known[sample.id] for sample in samples if sample.id in known}


def ask(model: str, params: Params, samples: Iterable[Sample]) -> dict[str, Prediction]:
    """Content -> prediction, asked for unless an earlier call has. Kept by content: ids change with a table's rows."""
    from rarl.inference.predictions import Task, decoding_of
    from rarl.sharing.model_folder import find, open_model

    rival, mode = params.rival.get(model), params.mode[params.main_mode]
    remote, decoding = rival is not None and rival.base_url is not None, decoding_of(params, rival)
    key = key_of(
        *([] if remote else [find(model), Path("data/models/base")]),
        prompt=(rival and rival.prompt) or template(mode.prompt),
        rival=rival and rival.model_dump(include={"base_url", "model", "temperature", "reads"}),
        decoding=decoding.model_dump(),
        settings=params.model.model_dump(),
        seed=params.seed,
    )
    kept, rows = KEPT / model / f"{key}.jsonl", [s.model_copy(update={"id": content_key(s)}) for s in samples]
    left = [row for row in rows if row.id not in answered(kept)]
    if left and remote:
        from rarl.inference.endpoint import ask_endpoint

        ask_endpoint(model, params, [Task(params.main_mode, "drafts", left, kept)])
    elif left:
        from rarl.inference.local import predict

        click.echo(f"Drafts: {model} is asked about {len(left)} rows, once.")
        root = Path(params.data.root)
        predict(open_model(find(model), params), left, root, mode, decoding, params.seed, kept, rival=rival)
    return answered(kept)


def answered_by(params: Params, samples: Collection[Sample]) -> dict[str, dict[str, Prediction]]:
    """Model, or file of drafts -> content -> its answer, of all that have been asked about some of the samples."""
    contents = {content_key(sample) for sample in samples}
    asked = {model: made(model, params, samples) for model in params.models}
    asked |= {path.as_posix(): answered(path) for path in sorted(KEPT.glob("*/*.jsonl"))}
    return {
        model: {content: one for content, one in given.items() if content in contents and not one.error}
        for model, given in asked.items()
    }
