"""Predictions of one model for one set of samples, kept batch by batch so that a stopped run goes on."""

import os
from pathlib import Path

from tqdm import tqdm

from stages.answers import read_completion
from stages.cache import finished
from stages.models.generation import Reply, Request, ask, in_batches
from stages.models.loading import Loaded
from stages.params import Decoding, Mode
from stages.prompts import render
from stages.records import Prediction, Sample


def to_prediction(reply: Reply) -> Prediction:
    think, answer = read_completion(reply.text)
    return Prediction(id=reply.id, completion=reply.text, think=think, answer=answer, tokens=reply.tokens,
                      truncated=reply.truncated, error=reply.error)  # fmt: skip


def predict(
    loaded: Loaded,
    samples: list[Sample],
    root: Path,
    mode: Mode,
    decoding: Decoding,
    seed: int,
    scratch: Path,
    label: str,
) -> list[Prediction]:
    """One prediction per sample, in the samples' order.

    Args:
        root: folder that the samples' image paths start from.
        scratch: file of the finished batches; it is read when it is there and appended to.
    """
    requests = [
        Request(
            sample.id,
            render(mode.prompt, sample.question),
            root / sample.image,
            mode.image == "blank",
        )
        for sample in samples
    ]
    done = {record.id: record for record in finished(scratch, Prediction)}
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with (
        scratch.open("a", encoding="utf-8") as file,
        tqdm(total=len(requests), desc=label, unit="q", mininterval=1) as bar,
    ):
        for batch in in_batches(requests, decoding.batch_size):
            if not all(request.id in done for request in batch):
                replies = ask(loaded, batch, decoding.max_new_tokens, decoding.temperature, seed)
                records = [to_prediction(reply) for reply in replies]
                done |= {record.id: record for record in records}
                file.write("".join(record.model_dump_json() + "\n" for record in records))
                file.flush()
                os.fsync(file.fileno())
            bar.update(len(batch))
    return [done[sample.id] for sample in samples]
