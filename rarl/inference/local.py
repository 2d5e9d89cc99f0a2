"""Asking a model every question of a test set, kept batch by batch so that a stopped run resumes."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from rarl.answers.exact import equals, kind_of
from rarl.cache import answered
from rarl.forms import read
from rarl.models.generation import Request, Response, ask, in_batches
from rarl.models.loading import Loaded
from rarl.params import Decoding, Mode, Rival
from rarl.prompts import template
from rarl.records import Prediction, Sample, image_file


def predict(
    loaded: Loaded,
    samples: list[Sample],
    root: Path,
    mode: Mode,
    decoding: Decoding,
    seed: int,
    scratch: Path,
    advance: Callable[[int], None] = lambda questions: None,
    rival: Rival | None = None,
) -> list[Prediction]:
    """One prediction per sample, in the samples' order.

    Finished batches are appended to the file `scratch` and not asked again. Where several processes run, each has a
    file of its own beside it, and takes every n-th batch. After each batch, `advance` is called with the number of its
    questions. `root` is the folder of the images; `seed` is that of sampled completions and of shuffled images. A
    `rival` may have its own prompt, and its own form of answers.
    """
    processes = PartialState(cpu=loaded.device.type == "cpu")
    mine = scratch if processes.is_main_process else scratch.with_suffix(f".{processes.process_index}.jsonl")
    by_id = {sample.id: sample for sample in samples}
    requests = requests_for(samples, root, mode, seed, rival and rival.prompt)
    reads = rival.reads if rival else "tags"
    done = {id: record for id, record in answered(scratch).items() if record.error is None}
    processes.wait_for_everyone()  # nobody writes before all have read
    scratch.parent.mkdir(parents=True, exist_ok=True)
    batches = in_batches(requests, decoding.batch_size)
    with mine.open("a", encoding="utf-8") as file:
        for batch in batches[processes.process_index :: processes.num_processes]:
            if not all(request.id in done for request in batch):
                given: dict[str, list[Prediction]] = {}
                for number in range(decoding.samples):
                    own_seed = f"{seed} {number}" if number else seed
                    for response in ask(loaded, batch, decoding.max_new_tokens, decoding.temperature, own_seed):
                        given.setdefault(response.id, []).append(to_prediction(response, reads))
                records = [vote(votes, by_id[id].question, by_id[id].choices) for id, votes in given.items()]
                done |= {record.id: record for record in records}
                file.write("".join(record.model_dump_json() + "\n" for record in records))
                file.flush()
                os.fsync(file.fileno())
            advance(len(batch))
    processes.wait_for_everyone()
    if processes.num_processes > 1:
        done = answered(scratch)
    return [done[sample.id] for sample in samples]


def requests_for(samples: list[Sample], root: Path, mode: Mode, seed: int, prompt: str | None = None) -> list[Request]:
    """One request per sample under a mode; `prompt` replaces the mode's prompt."""
    images = shuffled(samples, seed) if mode.image == "shuffled" else [sample.image for sample in samples]
    text = prompt or template(mode.prompt)
    return [
        Request(sample.id, text.replace("{question}", sample.question), image_file(root, image), mode.image == "blank")
        for sample, image in zip(samples, images)
    ]


def to_prediction(response: Response, reads: str = "tags") -> Prediction:
    """A model's completion as a record, with its parts; `reads` is the form of its answers (`rarl/forms.py`)."""
    think, answer = read(response.text, reads)
    rest = {"tokens": response.tokens, "truncated": response.truncated, "error": response.error}
    return Prediction(id=response.id, completion=response.text, think=think, answer=answer, **rest)


def shuffled(samples: list[Sample], seed: int) -> list[str]:
    """For each sample the image of another sample of the same modality; seeded.

    The images of a modality are put in a random ring and each is replaced by the next: every image is shown, and the
    mix of modalities stays. Where a modality has one image, the next one of any modality is taken.
    """
    distinct = {sample.image_sha256: sample for sample in samples}
    order = sorted(distinct)
    random.Random(seed).shuffle(order)
    shown = {}
    for own in order:
        ring = [other for other in order if distinct[other].modality == distinct[own].modality]
        ring = ring if len(ring) > 1 else order
        shown[own] = distinct[ring[(ring.index(own) + 1) % len(ring)]].image
    return [shown[sample.image_sha256] for sample in samples]


def vote(samples: list[Prediction], question: str, choices: list[str]) -> Prediction:
    """The earliest of the predictions whose answer most of the others give too, compared by `answers.exact.equals`."""

    def votes(one: Prediction) -> int:
        kind = kind_of(one.answer, question, choices)
        return sum(equals(other.answer, [one.answer], kind, choices) for other in samples)

    return max(samples, key=votes)
