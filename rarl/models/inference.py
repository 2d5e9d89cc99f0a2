"""Predictions of one model for one set of samples, kept batch by batch so that a stopped run goes on."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from rarl.answers import kind_of, matches, read_completion
from rarl.cache import answered
from rarl.models.generation import Request, Response, ask, in_batches
from rarl.models.loading import Loaded
from rarl.params import Decoding, Mode
from rarl.prompts import render
from rarl.records import Prediction, Sample, image_file


def to_prediction(reply: Response) -> Prediction:
    think, answer = read_completion(reply.text)
    return Prediction(id=reply.id, completion=reply.text, think=think, answer=answer, tokens=reply.tokens,
                      truncated=reply.truncated, error=reply.error)  # fmt: skip


def shuffled(samples: list[Sample], seed: int) -> list[str]:
    """For each sample the picture of other samples, of the same modality; seeded.

    The pictures of a modality stand in a random ring and each is replaced by the next: every picture is shown, and the
    mix of modalities stays. Where a modality has one picture, the next one of any modality is taken.
    """
    pictures = {sample.image_sha256: sample for sample in samples}
    order = sorted(pictures)
    random.Random(seed).shuffle(order)
    shown = {}
    for own in order:
        ring = [other for other in order if pictures[other].modality == pictures[own].modality]
        ring = ring if len(ring) > 1 else order
        shown[own] = pictures[ring[(ring.index(own) + 1) % len(ring)]].image
    return [shown[sample.image_sha256] for sample in samples]


def vote(samples: list[Prediction], question: str, choices: list[str]) -> Prediction:
    """The first of the predictions whose answer most of the others give too; ties go to the earlier one.

    Answers are compared as `answers.matches` does, without a look at the reference.
    """

    def votes(one: Prediction) -> int:
        kind = kind_of(one.answer, question, choices)
        return sum(matches(other.answer, [one.answer], kind, choices) for other in samples)

    return max(samples, key=votes)


def predict(
    loaded: Loaded,
    samples: list[Sample],
    root: Path,
    mode: Mode,
    decoding: Decoding,
    seed: int,
    scratch: Path,
    advance: Callable[[int], None] = lambda questions: None,
) -> list[Prediction]:
    """One prediction per sample, in the samples' order.

    Args:
        root: folder that the samples' image paths start from.
        scratch: file of the finished batches; it is read when it is there and appended to. Where several
            processes run, each has a file of its own beside it, and takes every so-manieth batch.
        advance: told after each batch how many questions have been asked.
    """
    processes = PartialState(cpu=loaded.device.type == "cpu")
    mine = scratch if processes.is_main_process else scratch.with_suffix(f".{processes.process_index}.jsonl")
    images = [sample.image for sample in samples]
    if mode.image == "shuffled":
        images = shuffled(samples, seed)
    by_id = {sample.id: sample for sample in samples}
    requests = [
        Request(sample.id, render(mode.prompt, sample.question), image_file(root, image), mode.image == "blank")
        for sample, image in zip(samples, images)
    ]
    done = {id: record for id, record in answered(scratch).items() if record.error is None}
    processes.wait_for_everyone()  # nobody writes before all have read
    scratch.parent.mkdir(parents=True, exist_ok=True)
    batches = in_batches(requests, decoding.batch_size)
    batches = batches[processes.process_index :: processes.num_processes]
    with mine.open("a", encoding="utf-8") as file:
        for batch in batches:
            if not all(request.id in done for request in batch):
                asked: dict[str, list[Prediction]] = {}
                for turn in range(decoding.samples):
                    for reply in ask(
                        loaded,
                        batch,
                        decoding.max_new_tokens,
                        decoding.temperature,
                        seed if turn == 0 else f"{seed} {turn}",
                    ):
                        asked.setdefault(reply.id, []).append(to_prediction(reply))
                records = [vote(given, by_id[id].question, by_id[id].choices) for id, given in asked.items()]
                done |= {record.id: record for record in records}
                file.write("".join(record.model_dump_json() + "\n" for record in records))
                file.flush()
                os.fsync(file.fileno())
            advance(len(batch))
    processes.wait_for_everyone()
    if processes.num_processes > 1:
        done = answered(scratch)
    return [done[sample.id] for sample in samples]
