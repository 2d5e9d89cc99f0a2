"""Ask a model one question about one image, outside the pipeline (`rarl ask`)."""

import io
from pathlib import Path

from rarl.errors import UserError
from rarl.params import Params
from rarl.records import Prediction
from rarl.sharing.model_card import EMBEDDED
from rarl.sharing.model_folder import base_of, find, open_model


def ask_once(
    name: str, image: Path, question: str, slug: str, choices: tuple[str, ...], params: Params
) -> tuple[str, Prediction]:
    """Return (a sentence about the base, the prediction); a UserError if an argument of `rarl ask` cannot be used."""
    if slug not in params.mode:
        raise UserError(f"--mode {slug}", "no such mode", f"one of {', '.join(params.mode)}", "name one of these")
    if not question.strip():
        raise UserError("--question", "no text", "a question about the image", "write one")
    for option, text in (("--question", question), ("--choices", "".join(choices))):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(option, "text that is not UTF-8", "text in UTF-8", "write it in UTF-8")
    rival = params.rival.get(name)
    if rival and rival.base_url:
        found, expected = "a rival at an endpoint", "a model whose weights are here"
        raise UserError(f"--model {name}", found, expected, "list it under `models`: `dvc repro` asks it")
    folder, data = find(name), read_image(image)

    from transformers.utils import logging

    from rarl.inference.local import to_prediction
    from rarl.inference.predictions import decoding_of
    from rarl.models.generation import Request, ask
    from rarl.prompts import template

    mode, decoding = params.mode[slug], decoding_of(params, rival)
    prompt = (rival and rival.prompt) or template(mode.prompt)
    text = prompt.replace("{question}", with_choices(question, choices))
    request = Request("asked", text, data, mode.image == "blank")
    logging.set_verbosity_error()
    loaded = open_model(folder, params)
    (response,) = ask(loaded, [request], decoding.max_new_tokens, decoding.temperature, params.seed)
    if response.error:
        raise UserError("--question", response.error, "a question that the model can take", "change or shorten it")
    return about_base(folder, loaded.model), to_prediction(response, rival.reads if rival else "tags")


def about_base(folder: Path, model) -> str:
    """Name the base of a model and the data that it was trained on, in a sentence or two."""
    name, revision = base_of(folder)
    if name == EMBEDDED:
        count = sum(w.numel() for key, w in model.named_parameters() if "lora_" not in key)
        return (
            f"Base: {name}, the embedded one: {count / 1e6:.1f} million parameters, trained on synthetic images only. "
            "What it says about a real image has no meaning."
        )
    return f"Base: {name}{f' at {revision[:7]}' if revision else ''}; its model card names its training data."


def read_image(image: Path) -> io.BytesIO:
    """Read an image as the pipeline does, DICOM as PNG; a UserError if it is missing or `curate` would refuse it."""
    from rarl.data.dicom import to_png
    from rarl.data.release import decode, is_dicom

    where, expected = f"--image {image}", "an image: PNG, JPEG, TIFF or DICOM"
    if not image.exists():
        raise UserError(where, "no such file", expected, "check the path")
    if not image.is_file():
        found = "a folder" if image.is_dir() else "not a regular file but a device, pipe or socket"
        raise UserError(where, found, expected, "name one file")
    try:
        data = to_png(image) if is_dicom(image) else image.read_bytes()
        fault = decode(data).fault
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except ValueError as error:
        fault = str(error)
    if fault:
        raise UserError(where, fault, expected, "save it as an 8-bit PNG of a usual size")
    return io.BytesIO(data)


def with_choices(question: str, choices: tuple[str, ...]) -> str:
    """Append lettered options to a question, in CV-Bench's wording.

    >>> print(with_choices("What is it?", ("Effusion", "Nodule")))
    What is it? Select from the following choices.
    (A) Effusion
    (B) Nodule
    """
    if not choices:
        return question
    options = "\n".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices))
    return f"{question} Select from the following choices.\n{options}"
