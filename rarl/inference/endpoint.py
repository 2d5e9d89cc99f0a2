"""Asking a rival at an OpenAI-compatible endpoint every question of the test sets.

A request has the image, as a PNG of at most `model.max_pixels` pixels without the metadata of its file, and the prompt
in one user message. Completions are kept in `.cache/llm` (`rarl/chat/journal.py`), so that nothing is paid for twice;
if all are there, neither key nor consent nor network is needed. `decoding.samples` does not apply: one completion per
question. A question without a completion has an `error`, and is asked again by the next run.
"""

import asyncio
import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import click
from PIL import Image

from rarl.chat.client import BYTES_PER_TOKEN, IMAGE_TOKENS, Client
from rarl.chat.journal import TOO_LONG, Answer, Journal, Messages, key_of
from rarl.chat.remote import Remote, address
from rarl.images import open_rgb
from rarl.inference.local import requests_for, to_prediction
from rarl.models.generation import Request, Response
from rarl.params import Params, Rival
from rarl.rivals import ROLE

#: Tokens of a usual completion with reasoning, for the estimate.
USUAL_COMPLETION = 200
#: Encoded images that are kept, because an image's questions are mostly next to each other.
NEIGHBOURS = 32
#: (image, whether a grey one replaces it) -> data URL.
Encode = Callable[[Path, bool], str]


@dataclass
class Question:
    """A request, the key of its completion in the journal, and why it cannot be asked or got no completion."""

    request: Request
    key: str | None = None
    error: str | None = None


def ask_endpoint(slug: str, params: Params, tasks: list) -> None:
    """Append the predictions to the file `kept` of each task (`rarl.inference.predictions.Task`).

    Raises:
        UserError: consent, key or budget are missing, or the endpoint cannot be asked.
    """
    rival = params.rival[slug]
    remote, most_tokens = Remote(ROLE, slug, rival), rival.max_tokens or params.decoding.max_new_tokens
    encode = lru_cache(NEIGHBOURS)(partial(data_url, max_pixels=params.model.max_pixels))
    with Journal(address(rival), rival.model, partial(key_for, rival, most_tokens)) as journal:
        questions = []
        for task in tasks:
            root, mode = Path(params.data.root), params.mode[task.mode]
            requests = requests_for(task.samples, root, mode, params.seed, rival.prompt)
            questions.append([_question(request, encode, journal) for request in requests])
        asked = {one.key: one for of_task in questions for one in of_task if one.key}
        ahead = [one for key, one in asked.items() if journal.get(key) is None]
        failures = {}
        if ahead:
            found = _ask(remote, journal, ahead, len(asked), most_tokens, encode)
            failures = {ahead[number].key: why for number, why in found.items()}
        for task, of_task in zip(tasks, questions):
            task.kept.parent.mkdir(parents=True, exist_ok=True)
            with task.kept.open("a", encoding="utf-8") as file:
                for one in of_task:
                    answer = one.key and journal.get(one.key)
                    error = one.error or failures.get(one.key, "the endpoint was not asked")
                    prediction = to_prediction(_response(one.request.id, answer, error), rival.reads)
                    file.write(prediction.model_dump_json() + "\n")


def _question(request: Request, encode: Encode, journal: Journal) -> Question:
    try:
        return Question(request, journal.key_for(messages_of(request, encode)))
    except OSError as error:
        # Without the file's name, which may identify a patient.
        return Question(request, error=f"the image cannot be opened ({error.strerror or 'damaged'})")


def _ask(
    remote: Remote, journal: Journal, ahead: list[Question], total: int, most_tokens: int, encode: Encode
) -> dict[int, str]:
    remote.check()
    click.echo(remote.disclosure(len(ahead)))
    texts = (len(one.request.prompt.encode()) // BYTES_PER_TOKEN for one in ahead)
    sent = sum(max(text + IMAGE_TOKENS, journal.usual_input) for text in texts)
    received = min(most_tokens, USUAL_COMPLETION) * len(ahead)
    click.echo(remote.estimate(len(ahead), total, sent, received, journal))

    def pending(one: Question) -> Messages | None:
        return None if journal.get(one.key) else messages_of(one.request, encode)

    failures = asyncio.run(Client(remote, journal, pending, most_tokens).run(ahead))
    click.echo(f"{remote.title}: {journal.calls} calls on record, {journal.cost(remote.settings):.4f} USD")
    return failures


def _response(id: str, answer: Answer | None, error: str) -> Response:
    """The completion of a question; a refusal is a completion too."""
    if answer is None:
        return Response(id, error=error)
    text, too_long = answer.refusal or answer.text, answer.text == TOO_LONG
    return Response(id, "" if too_long else text.strip(), answer.output_tokens, answer.cut or too_long)


def messages_of(request: Request, encode: Encode) -> Messages:
    """The chat of a request; an OSError if its image cannot be opened."""
    url = encode(request.image, request.blank)
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.prompt}]
    return [{"role": "user", "content": parts}]


def data_url(path: Path, blank: bool, max_pixels: int) -> str:
    """An image of at most `max_pixels`, or a grey one of its size if `blank`, as a PNG in a data URL."""
    image = open_rgb(path)
    if blank:
        image = Image.new("RGB", image.size, (128, 128, 128))
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    if scale < 1:
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def key_for(rival: Rival, most_tokens: int, messages: Messages) -> str:
    """Key of one completion: everything that determines it. The image counts by its pixels, not by its compression."""
    [message] = messages
    image, text = message["content"]
    return key_of(
        endpoint=address(rival),
        model=rival.model,
        temperature=rival.temperature,
        max_tokens=most_tokens,
        image=_pixels(image["image_url"]["url"]),
        text=text["text"],
    )


@lru_cache(NEIGHBOURS)
def _pixels(url: str) -> str:
    """Hash of size and pixels of an image in a data URL."""
    image = open_rgb(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return f"{image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"
