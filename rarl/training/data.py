"""Training rows: which sample with which prompt, in which order."""

import random
from functools import lru_cache
from pathlib import Path

from datasets import Dataset

from rarl.images import open_rgb
from rarl.prompts import render
from rarl.records import Sample, image_file


def choose(samples: list[Sample], count: int | None, seed: int) -> list[Sample]:
    """The first `count` samples of a seeded shuffle, or all if None; a larger selection contains the smaller ones."""
    shuffled = random.Random(f"{seed}/samples").sample(samples, len(samples))
    return shuffled if count is None else shuffled[:count]


def with_share(samples: list[Sample], share: float, seed: int) -> list[Sample]:
    """The samples with the reasoning of a share of the annotated ones; a larger share contains the smaller ones."""
    annotated = [index for index, sample in enumerate(samples) if sample.reasoning is not None]
    random.Random(f"{seed}/annotated").shuffle(annotated)
    without = {*annotated[round(share * len(annotated)) :]}
    return [s.model_copy(update={"reasoning": None}) if i in without else s for i, s in enumerate(samples)]


def prompt_of(prompts: list[str], index: int, epoch: int) -> str:
    """The prompt of the sample at `index` in an epoch: each sample meets one prompt after the other (paper, 3.3).

    >>> [prompt_of(["a", "b"], index, epoch) for epoch in (0, 1) for index in (0, 1, 2)]
    ['a', 'b', 'a', 'b', 'a', 'b']
    """
    return prompts[(index + epoch) % len(prompts)]


def schedule(samples: list[Sample], prompts: list[str], epochs: int, seed: int) -> list[tuple[Sample, str]]:
    """Every sample with its prompt, once per epoch, in an order that is shuffled per epoch."""
    rows = []
    for epoch in range(epochs):
        order = list(range(len(samples)))
        random.Random(f"{seed}/order/{epoch}").shuffle(order)
        rows += [(samples[i], prompt_of(prompts, i, epoch)) for i in order]
    return rows


def target(sample: Sample) -> str:
    """The completion that SFT trains on: annotated reasoning and answer, or the answer if there is no reasoning."""
    answer = f"<answer> {sample.answers[0]} </answer>"
    return f"<think> {sample.reasoning} </think> {answer}" if sample.reasoning else answer


def with_images(rows: list[dict], root: Path, key: str) -> Dataset:
    """A dataset that opens images when a row is read, into the column that the trainer expects."""
    opened = lru_cache(maxsize=512)(lambda path: open_rgb(image_file(root, path)))

    def add(batch: dict) -> dict:
        images = [opened(path) for path in batch["path"]]
        return {**batch, key: images if key == "image" else [[image] for image in images]}

    return Dataset.from_list(rows).with_transform(add)


def user_message(prompt: str, question: str) -> list[dict]:
    """A conversation of one user message, the question under the prompt."""
    return [{"role": "user", "content": render(prompt, question)}]
