"""Ask one model one question about one image. The answer goes to stdout; its reasoning, and which base the model
stands on, to stderr. No stage of the pipeline."""

import io
from json import JSONDecodeError
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from rarl.entry import ignore_warnings_between_libraries
from rarl.errors import UserError
from rarl.model_card import EMBEDDED, NOT_CLINICAL, base_name
from rarl.params import Params, load_params
from rarl.pinning import pin
from rarl.records import read_json, write_json

MODELS = Path("data/models")


@click.command(help=__doc__)
@click.option("--model", "name", required=True, help="base, a name below data/models, or a folder.")
@click.option("--image", required=True, type=click.Path(path_type=Path), help="PNG, JPEG, ... or DICOM, opened as the pipeline does.")  # fmt: skip
@click.option("--question", required=True)
@click.option("--mode", "slug", default="reasoning", help="Whose prompt is used: reasoning or direct.")  # fmt: skip
@click.option("--choices", multiple=True, help="One option of a multiple-choice question; may be given often.")  # fmt: skip
def main(name, image, question, slug, choices):
    ignore_warnings_between_libraries()
    params = load_params()
    pin(params)
    if slug not in params.mode:
        raise UserError(
            f"--mode {slug}", "no such mode", f"one of {', '.join(params.mode)}", "name one of these"
        )  # fmt: skip
    if not question.strip() or any("\ud800" <= mark <= "\udfff" for mark in question):
        found = "text that is not UTF-8" if question.strip() else "no text"
        raise UserError("--question", found, "a question about the image", "write one")
    if any("\ud800" <= mark <= "\udfff" for mark in "".join(choices)):
        raise UserError("--choices", "text that is not UTF-8", "options", "write them in UTF-8")
    folder = model_folder(name)
    picture = readable(image)

    from transformers.utils import logging

    from rarl.inference import to_prediction
    from rarl.models.generation import Request, ask
    from rarl.prompts import render

    mode = params.mode[slug]
    prompt = render(mode.prompt, with_choices(question, choices))
    request = Request("asked", prompt, picture, mode.image == "blank")
    logging.set_verbosity_error()
    loaded = open_model(folder, params)
    (reply,) = ask(loaded, [request], params.decoding.max_new_tokens, params.decoding.temperature, params.seed)
    if reply.error:
        raise UserError("--question", reply.error, "a question that the model can take", "change or shorten it")
    prediction = to_prediction(reply)
    click.echo(f"{about_base(folder, loaded.model)} {NOT_CLINICAL}", err=True)
    click.echo(f"Reasoning: {prediction.think or '(none)'}", err=True)
    if prediction.truncated:
        click.echo(f"Cut off after {prediction.tokens} tokens (decoding.max_new_tokens).", err=True)
    click.echo(prediction.answer)


def model_folder(name: str) -> Path:
    """The folder of a model: one below `data/models`, or the folder itself.

    Raises:
        UserError: there is none, or it holds no model.
    """
    here = sorted(path.parent.name for path in MODELS.glob("*/base.json"))
    for folder in (MODELS / name, Path(name)):
        if (folder / "base.json").is_file() or (folder / "config.json").is_file():
            return folder
    folder = Path(name)
    raise UserError(
        f"--model {name}",
        "a folder with neither base.json nor config.json" if folder.is_dir() else "no such model",
        f"a model below {MODELS} (there: {', '.join(here) or 'none'}), a copy of one, or a merged model",
        "make it with `dvc repro`, or fetch it with `dvc pull`",
    )


def open_model(folder: Path, params: Params):
    """Load a model folder of the pipeline, or whole weights in the hub's layout.

    Raises:
        UserError: it cannot be loaded; a copy may be cut.
    """
    from safetensors import SafetensorError

    from rarl.models.loading import load

    try:
        if (folder / "base.json").is_file():
            return load(folder, params.model)
        with TemporaryDirectory() as pointer:
            write_json(Path(pointer) / "base.json", {"source": str(folder), "revision": None, "sha256": None})
            return load(pointer, params.model)
    except (SafetensorError, JSONDecodeError) as error:
        raise UserError(str(folder), str(error), "whole files of a model", "copy or fetch the folder again") from None


def about_base(folder: Path, model) -> str:
    """Which base a model stands on, and what it has seen, in a sentence or two."""
    name, revision = base_of(folder)
    if name == EMBEDDED:
        count = sum(w.numel() for key, w in model.named_parameters() if "lora_" not in key)
        return (
            f"Base: {name}, the embedded one: {count / 1e6:.1f} million parameters, trained on synthetic images only. "
            "What it says about a real image has no meaning."
        )
    return f"Base: {name}{f' at {revision[:7]}' if revision else ''}; its model card says what it has seen."


def base_of(folder: Path) -> tuple[str, str | None]:
    """(name, revision) of the base of a model folder; of merged weights as their card says."""
    if (folder / "base.json").is_file():
        pointer = read_json(folder / "base.json")
        return base_name(pointer), pointer["revision"]
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    named = ModelCard(text).data.get("base_model") if text.startswith("---\n") else None
    return named if isinstance(named, str) else folder.as_posix(), None


def readable(image: Path) -> io.BytesIO:
    """The image as the pipeline opens it: DICOM, by its mark, as PNG, and what `curate` refuses is refused.

    Raises:
        UserError: it is missing, or the pipeline would not use it.
    """
    from rarl.data.dicom import to_png
    from rarl.data.release import decode, is_dicom

    where, expected = f"--image {image}", "an image: PNG, JPEG, TIFF or DICOM"
    if not image.is_file():
        found = "a folder" if image.is_dir() else "no such file"
        raise UserError(where, found, expected, "name one file" if image.is_dir() else "check the path")  # fmt: skip
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
    """The question with its options under letters, worded as CV-Bench does."""
    if not choices:
        return question
    options = "\n".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices))
    return f"{question} Select from the following choices.\n{options}"
