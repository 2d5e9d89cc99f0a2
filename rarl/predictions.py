"""Predictions of a model for test sets: made batch by batch, kept so that a stopped run resumes, shared by the cores."""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from rarl.answers import kind_of, matches, read_completion
from rarl.cache import CACHE, announce_format, answered, code_key, key_of, packages
from rarl.errors import warn
from rarl.launch import is_main_process
from rarl.params import Decoding, Mode, Params
from rarl.prompts import render, template
from rarl.records import Prediction, Sample, image_file, predictions_file, read_records, write_records

if TYPE_CHECKING:
    from rarl.models.generation import Reply
    from rarl.models.loading import Loaded


class Task(NamedTuple):
    """A test set to be asked under one mode."""

    mode: str
    test_set: str
    samples: list[Sample]
    kept: Path
    """The file of its finished predictions (`kept_in`)."""

    def is_done(self) -> bool:
        """Whether every sample has a prediction without an error."""
        done = {id for id, one in answered(self.kept).items() if not one.error}
        return {sample.id for sample in self.samples} <= done


def infer(name: str, params: Params) -> None:
    """Write the predictions of a model for every test set under each mode.

    Args:
        name: a folder below `data/models`.
        params: the parameters.
    """
    started, folder = time.perf_counter(), Path("data/models") / name
    announce_format()
    model = key_of(folder, code=code_key("infer", params.model.device), packages=packages())
    tasks = [
        Task(
            mode, test_set, read_records(params.samples_file(test_set), Sample), kept_in(model, params, mode, test_set)
        )
        for mode in params.modes
        for test_set in params.sets_of(mode)
    ]
    if left := [task for task in tasks if not task.is_done()]:
        ask_sets(folder, params, left)
    if not is_main_process():
        return
    total, faults = 0, Counter()
    for task in tasks:
        done = answered(task.kept)
        predictions = [done[sample.id] for sample in task.samples]
        total += write_records(predictions_file(name, task.mode, task.test_set), predictions)
        faults.update(prediction.error for prediction in predictions if prediction.error)
    click.echo(f"infer {name}: {total} predictions in {time.perf_counter() - started:.1f} s")
    if faults:
        [(fault, _)] = faults.most_common(1)
        warn(f"{faults.total()} of {total} questions could not be asked, mostly: {fault}")


def kept_in(model: str, params: Params, slug: str, test_set: str) -> Path:
    """The file that keeps a model's predictions on one test set under one mode.

    Args:
        model: key of its weights, of the code that asks it and of the libraries.
        params: the parameters.
        slug: of the mode.
        test_set: its name.
    """
    mode = params.mode[slug]
    key = key_of(
        params.samples_file(test_set),
        model=model,
        prompt=template(mode.prompt),
        image=mode.image,
        decoding=params.decoding.model_dump(),
        settings=params.model.model_dump(),
        seed=params.seed,
    )
    return CACHE / "predictions" / f"{key}.jsonl"


def ask_sets(folder: Path, params: Params, tasks: list[Task]) -> None:
    """Fill the files of `tasks`; without a GPU, the cores share them."""
    from tqdm import tqdm

    from rarl.forks import cores, in_forks
    from rarl.models.features import FeatureStore, offload
    from rarl.models.loading import load

    loaded = load(folder, params.model)
    FeatureStore.load("data/features/benchmarks", loaded).attach(loaded.model)
    offload(loaded.model)
    processes, forks = params.accelerate.processes, 1
    if loaded.device.type == "cpu" and processes == 1:
        forks = min(cores(params.model.threads), len(tasks))
    # The largest first, so that no process waits long for another.
    tasks = sorted(tasks, key=lambda task: -len(task.samples))
    total = sum(len(task.samples) for task in tasks)

    def work(task, advance):
        mode, root = params.mode[task.mode], Path(params.data.root)
        predict(loaded, task.samples, root, mode, params.decoding, params.seed, task.kept, advance)

    with tqdm(total=total, desc=folder.name, unit="q", mininterval=1, disable=not is_main_process()) as bar:
        if forks == 1:
            for task in tasks:
                work(task, lambda asked: bar.update(asked * processes))
        else:
            in_forks(work, tasks, forks, lambda asked: bar.update(asked - bar.n))


def predict(
    loaded: "Loaded",
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
        loaded: the model.
        samples: the questions.
        root: folder that the samples' image paths start from.
        mode: prompt and image.
        decoding: how completions are decoded, and how many for each sample.
        seed: of sampled completions and of shuffled images.
        scratch: file of the finished batches; it is read if it exists, and appended to. Where several processes run,
            each has a file of its own beside it, and takes every n-th batch.
        advance: called after each batch with the number of its questions.
    """
    from accelerate import PartialState

    from rarl.models.generation import Request, ask, in_batches

    processes = PartialState(cpu=loaded.device.type == "cpu")
    mine = scratch if processes.is_main_process else scratch.with_suffix(f".{processes.process_index}.jsonl")
    images = shuffled(samples, seed) if mode.image == "shuffled" else [sample.image for sample in samples]
    by_id = {sample.id: sample for sample in samples}
    requests = [
        Request(sample.id, render(mode.prompt, sample.question), image_file(root, image), mode.image == "blank")
        for sample, image in zip(samples, images)
    ]
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
                    for reply in ask(loaded, batch, decoding.max_new_tokens, decoding.temperature, own_seed):
                        given.setdefault(reply.id, []).append(to_prediction(reply))
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


def to_prediction(reply: "Reply") -> Prediction:
    """A model's completion as a record, with its parts."""
    think, answer = read_completion(reply.text)
    rest = {"tokens": reply.tokens, "truncated": reply.truncated, "error": reply.error}
    return Prediction(id=reply.id, completion=reply.text, think=think, answer=answer, **rest)


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
    """The first of the predictions whose answer most of the others give too; the earliest of equals.

    Answers are compared as `answers.matches` does, without the reference.
    """

    def votes(one: Prediction) -> int:
        kind = kind_of(one.answer, question, choices)
        return sum(matches(other.answer, [one.answer], kind, choices) for other in samples)

    return max(samples, key=votes)
