"""Asking a model questions about images, in batches."""

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
from rarl.models.loading import Loaded
from rarl.models.patching import without_peft
from rarl.models.processor import chat
from rarl.models.shared_prefix.decode import decode
from rarl.models.shared_prefix.layers import patch_layers
from rarl.models.shared_prefix.layout import group_by_prefix
from rarl.records import batches


@dataclass(frozen=True)
class Request:
    """A question about an image. If `blank`, a grey image of the same size replaces it."""

    id: str
    prompt: str
    image: Path | io.BytesIO
    blank: bool = False


@dataclass(frozen=True)
class Response:
    """A model's response to the request of the same id, or the reason why it could not be asked."""

    id: str
    text: str = ""
    tokens: int = 0
    truncated: bool = False
    error: str | None = None


def in_batches(requests: list[Request], size: int) -> list[list[Request]]:
    """Batches with the questions about an image next to each other, whatever the order of the requests."""
    return list(batches(sorted(requests, key=lambda r: (str(r.image), len(r.prompt), r.id)), size))


@torch.inference_mode()
def ask(
    loaded: Loaded, requests: list[Request], max_new_tokens: int, temperature: float = 0.0, seed: int | str = 0
) -> list[Response]:
    """Generate a response to each request of one batch.

    An image that cannot be opened, or a prompt that is too long for the model, gives a response with `error`. At
    temperature 0 decoding is greedy; otherwise `seed` and the requests' ids are the seed of sampling.
    """
    opened, failed = _open_images(loaded.processor, requests)
    if not opened:
        return failed
    inputs = loaded.processor(
        text=[chat(loaded.processor, request.prompt) for request, _ in opened],
        images=[[image] for _, image in opened],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(loaded.device)
    room = loaded.model.config.get_text_config().max_position_embeddings - max_new_tokens
    lengths = inputs["attention_mask"].sum(-1).tolist()
    if max(lengths) > room:
        limit = f"the model takes {room:,} besides an answer of {max_new_tokens:,}"
        for (request, _), length in zip(opened, lengths):
            if length > room:
                error = f"a prompt of {length:,} tokens (image and question), {limit}"
                failed.append(Response(request.id, error=error))
        fitting = [request for (request, _), length in zip(opened, lengths) if length <= room]
        return ask(loaded, fitting, max_new_tokens, temperature, seed) + failed
    sampling = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        key = f"{seed} {' '.join(request.id for request, _ in opened)}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big"))
    config = copy.deepcopy(loaded.model.generation_config)
    config.update(max_new_tokens=max_new_tokens, suppress_tokens=vision_tokens(loaded.processor), **sampling)
    ends = np.atleast_1d(config.eos_token_id).tolist()
    responses = []
    for (request, _), row in zip(opened, _completions(loaded, inputs, config)):
        stop = next((place for place, token in enumerate(row) if token in ends), None)
        text = loaded.processor.tokenizer.decode(row[:stop], skip_special_tokens=True)
        tokens = len(row) if stop is None else stop + 1
        responses.append(Response(request.id, text.strip(), tokens, stop is None))
    return responses + failed


def _open_images(processor, requests: list[Request]) -> tuple[list[tuple[Request, Image.Image]], list[Response]]:
    """Requests with their images, and responses with `error` to the others."""
    opened, failed = [], []
    placeholders = processor.tokenizer.convert_ids_to_tokens(vision_tokens(processor))
    for request in requests:
        if any(token in request.prompt for token in placeholders):
            failed.append(Response(request.id, error="the question contains a token that stands for an image"))
            continue
        try:
            image = open_rgb(request.image)
        except OSError as error:
            # Pillow's message, and the system's, contains the file's name, which may identify a patient.
            reason = error.strerror or "damaged"
            failed.append(Response(request.id, error=f"the image cannot be opened ({reason})"))
        else:
            opened.append((request, Image.new("RGB", image.size, (128, 128, 128)) if request.blank else image))
    return opened, failed


def _completions(loaded: Loaded, inputs, config: GenerationConfig) -> list[list[int]]:
    """Token ids of each row. An image and the text before the question run once, if the model supports that.

    Shared prefixes have their own attention; `model.attention: eager` uses the library's.
    """
    network = without_peft(loaded.model)
    if loaded.shared or loaded.attention == "eager" or patch_layers(network):
        return loaded.model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
    prefixes, suffixes = group_by_prefix(
        [ids[real.bool()] for ids, real in zip(inputs["input_ids"], inputs["attention_mask"])],
        inputs["pixel_values"],
        inputs.get("image_grid_thw"),
        [1] * len(inputs["input_ids"]),
        network.config.image_token_id,
        inputs.get("pixel_attention_mask"),
    )
    return decode(network, prefixes, suffixes, config)


def vision_tokens(processor) -> list[int]:
    """Placeholder tokens of images, which a completion must not have: the model would look for an image there.

    Gemma 3 has two: one that opens an image, and one that is repeated for its features.
    """
    video = getattr(processor, "video_token_id", None)
    return sorted({processor.image_token_id, *processor.image_token_ids, *([] if video is None else [video])})


def ask_all(loaded: Loaded, requests: list[Request], batch_size: int, max_new_tokens: int) -> Iterator[list[Response]]:
    """`ask` batch by batch."""
    for batch in in_batches(requests, batch_size):
        yield ask(loaded, batch, max_new_tokens)
