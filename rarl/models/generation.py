"""Asking a model: batched decoding with each image and question kept together."""

import copy
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig

from rarl.images import open_rgb
from rarl.models.decode import decode
from rarl.models.layers import without_peft
from rarl.models.loading import Loaded
from rarl.models.processor import chat
from rarl.models.shared_prompt import prepare_layers, shared_prompts
from rarl.records import batches


@dataclass(frozen=True)
class Request:
    """One thing to ask. `blank` puts a grey picture of the same size in the image's place."""

    id: str
    prompt: str
    image: Path | io.BytesIO
    blank: bool = False


@dataclass(frozen=True)
class Reply:
    id: str
    text: str
    tokens: int
    truncated: bool
    error: str | None = None


def open_image(path: Path, blank: bool = False) -> Image.Image:
    """The image as `rarl.images` opens it, or a grey one of its size."""
    image = open_rgb(path)
    return Image.new("RGB", image.size, (128, 128, 128)) if blank else image


def in_batches(requests: list[Request], size: int) -> list[list[Request]]:
    """Batches with the questions about an image beside each other, so that they share it; the same for the same requests."""
    return list(batches(sorted(requests, key=lambda r: (str(r.image), len(r.prompt), r.id)), size))


@torch.inference_mode()
def ask(
    loaded: Loaded, requests: list[Request], max_new_tokens: int, temperature: float = 0.0, seed: int | str = 0
) -> list[Reply]:
    """Decode one batch. An image that cannot be opened, or a prompt that the model cannot hold, gives a reply with
    `error`, and the rest go on.

    At temperature 0 decoding is greedy; else it is sampled with a seed made from `seed` and the ids.
    """
    processor, model = loaded.processor, loaded.model
    opened, failed = [], []
    for request in requests:
        if any(token in request.prompt for token in (processor.image_token, processor.video_token)):
            reason = "the question holds a token that stands for an image"
            failed.append(Reply(request.id, "", 0, False, reason))
            continue
        try:
            opened.append((request, open_image(request.image, request.blank)))
        except OSError as error:
            # The message of Pillow, and of the system, holds the file's name, which may say whose image it is.
            reason = error.strerror or "damaged"
            failed.append(Reply(request.id, "", 0, False, f"the image cannot be opened ({reason})"))
    if not opened:
        return failed
    inputs = processor(
        text=[chat(processor, request.prompt) for request, _ in opened],
        images=[image for _, image in opened],
        padding=True, padding_side="left", return_tensors="pt",
    ).to(loaded.device)  # fmt: skip
    room = model.config.get_text_config().max_position_embeddings - max_new_tokens
    lengths = inputs["attention_mask"].sum(-1).tolist()
    if max(lengths) > room:
        fitting = [request for (request, _), length in zip(opened, lengths) if length <= room]
        for (request, _), length in zip(opened, lengths):
            if length > room:
                reason = (
                    f"a prompt of {length:,} tokens (image and question), the model takes {room:,} "
                    f"besides an answer of {max_new_tokens:,}"
                )
                failed.append(Reply(request.id, "", 0, False, reason))
        return ask(loaded, fitting, max_new_tokens, temperature, seed) + failed
    sampling = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        key = f"{seed} {' '.join(request.id for request, _ in opened)}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big"))
    config = copy.deepcopy(model.generation_config)
    config.update(max_new_tokens=max_new_tokens, suppress_tokens=vision_tokens(processor), **sampling)
    ends = np.atleast_1d(config.eos_token_id).tolist()
    replies = []
    for (request, _), row in zip(opened, _completions(loaded, inputs, config)):
        stop = next((place for place, token in enumerate(row) if token in ends), None)
        text = processor.tokenizer.decode(row[:stop], skip_special_tokens=True)
        tokens = len(row) if stop is None else stop + 1
        replies.append(Reply(request.id, text.strip(), tokens, stop is None))
    return replies + failed


def _completions(loaded: Loaded, inputs, config: GenerationConfig) -> list[list[int]]:
    """Token ids of each row: with each image and what is before the question run once, where the model allows it.

    A layout of shared prompts has attention of its own; `model.attention: eager` asks for the library's.
    """
    model = loaded.model
    network = without_peft(model)
    if loaded.shared or loaded.attention == "eager" or prepare_layers(network):
        return model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
    prompts, rests = shared_prompts(
        [ids[real.bool()] for ids, real in zip(inputs["input_ids"], inputs["attention_mask"])],
        inputs["pixel_values"],
        inputs["image_grid_thw"],
        [1] * len(inputs["input_ids"]),
        by_image=network.config.image_token_id,
    )
    return decode(network, prompts, rests, config)


def vision_tokens(processor) -> list[int]:
    """Place-holder tokens that a completion must not hold: the model would look for an image there."""
    return [processor.image_token_id, processor.video_token_id]


def ask_all(
    loaded: Loaded, requests: list[Request], batch_size: int, max_new_tokens: int, **kwargs
) -> Iterator[list[Reply]]:
    for batch in in_batches(requests, batch_size):
        yield ask(loaded, batch, max_new_tokens, **kwargs)
