"""Asking a model: batched decoding with each image and question kept together."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from stages.models.loading import Loaded
from stages.models.processor import chat
from stages.records import batches


@dataclass(frozen=True)
class Request:
    """One thing to ask. `blank` puts a grey picture of the same size in the image's place."""

    id: str
    prompt: str
    image: Path
    blank: bool = False


@dataclass(frozen=True)
class Reply:
    id: str
    text: str
    tokens: int
    truncated: bool
    error: str | None = None


def open_image(path: Path, blank: bool = False) -> Image.Image:
    """The picture in RGB (CMYK, grey and palette pictures are converted), or a grey one of its size."""
    with Image.open(path) as image:
        return Image.new("RGB", image.size, (128, 128, 128)) if blank else image.convert("RGB")


def in_batches(requests: list[Request], size: int) -> list[list[Request]]:
    """Batches of similar length, so that little is padded; the same for the same requests."""
    return list(batches(sorted(requests, key=lambda r: (len(r.prompt), r.id)), size))


@torch.inference_mode()
def ask(
    loaded: Loaded,
    requests: list[Request],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | str = 0,
) -> list[Reply]:
    """Decode one batch. An image that cannot be opened gives a reply with `error`, the rest go on.

    At temperature 0 decoding is greedy; else it is sampled with a seed made from `seed` and the ids.
    """
    processor, model = loaded.processor, loaded.model
    opened, failed = [], []
    for request in requests:
        try:
            opened.append((request, open_image(request.image, request.blank)))
        except OSError as error:
            failed.append(Reply(request.id, "", 0, False, f"image {request.image}: {error}"))
    if not opened:
        return failed
    inputs = processor(
        text=[chat(processor, request.prompt) for request, _ in opened],
        images=[image for _, image in opened],
        padding=True, padding_side="left", return_tensors="pt",
    ).to(loaded.device)  # fmt: skip
    sampling = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        key = f"{seed} {' '.join(request.id for request, _ in opened)}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big"))
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        suppress_tokens=vision_tokens(processor),
        **sampling,
    )[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ends = torch.tensor([ends] if isinstance(ends, int) else ends, device=output.device)
    replies = []
    for (request, _), row in zip(opened, output):
        stops = torch.isin(row, ends).nonzero()
        length = int(stops[0]) if len(stops) else len(row)
        text = processor.tokenizer.decode(row[:length], skip_special_tokens=True)
        replies.append(Reply(request.id, text.strip(), length + bool(len(stops)), not len(stops)))
    return replies + failed


def vision_tokens(processor) -> list[int]:
    """Place-holder tokens that a completion must not hold: the model would look for an image there."""
    return [processor.image_token_id, processor.video_token_id]


def ask_all(
    loaded: Loaded, requests: list[Request], batch_size: int, max_new_tokens: int, **kwargs
) -> Iterator[list[Reply]]:
    for batch in in_batches(requests, batch_size):
        yield ask(loaded, batch, max_new_tokens, **kwargs)
