"""Training rows: which sample under which prompt, in which order."""

import random
from functools import lru_cache
from pathlib import Path

from datasets import Dataset

from rarl.models.generation import open_image
from rarl.prompts import render
from rarl.records import Sample, image_file


def choose(samples: list[Sample], count: int | None, seed: int) -> list[Sample]:
    """The first `count` samples of a seeded shuffle (all when None), so that larger sets hold the smaller ones."""
    shuffled = random.Random(f"{seed}/samples").sample(samples, len(samples))
    return shuffled if count is None else shuffled[:count]


def prompt_of(prompts: list[str], index: int, epoch: int) -> str:
    """The prompt of a sample in an epoch: each sample meets all prompts in turn (paper, 3.3).

    Deterministic in the sample's place and the epoch; within an epoch the prompts are mixed evenly.
    """
    return prompts[(index + epoch) % len(prompts)]


def schedule(samples: list[Sample], prompts: list[str], epochs: int, seed: int) -> list[tuple[Sample, str]]:
    """Every sample once an epoch, in an order shuffled anew for each epoch, with its prompt."""
    rows = []
    for epoch in range(epochs):
        order = list(range(len(samples)))
        random.Random(f"{seed}/order/{epoch}").shuffle(order)
        rows += [(samples[i], prompt_of(prompts, i, epoch)) for i in order]
    return rows


def target(sample: Sample) -> str:
    """What SFT learns to write: the annotated reasoning and the answer; the answer alone where there is no reasoning."""
    answer = f"<answer> {sample.answers[0]} </answer>"
    return f"<think> {sample.reasoning} </think> {answer}" if sample.reasoning else answer


def with_images(rows: list[dict], root: Path, key: str) -> Dataset:
    """A dataset whose images are opened when a row is read; `key` is the column that the trainer expects."""
    opened = lru_cache(maxsize=512)(lambda path: open_image(image_file(root, path)))

    def add(batch: dict) -> dict:
        images = [opened(path) for path in batch["path"]]
        return {**batch, key: images if key == "image" else [[image] for image in images]}

    return Dataset.from_list(rows).with_transform(add)


def turn(prompt: str, question: str) -> list[dict]:
    return [{"role": "user", "content": render(prompt, question)}]
