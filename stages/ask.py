"""Ask one model one question about one image, and see its reasoning. No stage of the pipeline."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from stages.errors import UserError
from stages.params import Params, load_params
from stages.pinning import pin
from stages.records import write_json
from stages.training.card import NOT_CLINICAL

MODELS = Path("data/models")
DICOM = (".dcm", ".dicom")


@click.command(help=__doc__)
@click.option("--model", "name", required=True, help="base, a name below data/models, or a folder.")
@click.option("--image", required=True, type=click.Path(path_type=Path), help="PNG, JPEG, ... or DICOM (.dcm).")  # fmt: skip
@click.option("--question", required=True)
@click.option("--mode", "slug", default="reasoning", help="Whose prompt is used: reasoning or direct.")  # fmt: skip
@click.option("--choices", multiple=True, help="One option of a multiple-choice question; may be given often.")  # fmt: skip
def main(name, image, question, slug, choices):
    params = load_params()
    pin(params)
    if slug not in params.mode:
        raise UserError(
            f"--mode {slug}", "no such mode", f"one of {', '.join(params.mode)}", "name one of these"
        )  # fmt: skip
    folder = model_folder(name)
    picture = readable(image)

    from stages.models.generation import Request, ask
    from stages.models.inference import to_prediction
    from stages.prompts import render

    mode = params.mode[slug]
    prompt = render(mode.prompt, with_choices(question, choices))
    request = Request("asked", prompt, picture, mode.image == "blank")
    (reply,) = ask(
        open_model(folder, params),
        [request],
        params.decoding.max_new_tokens,
        params.decoding.temperature,
        params.seed,
    )
    prediction = to_prediction(reply)
    limit = ", cut off at the limit of decoding.max_new_tokens" if prediction.truncated else ""
    click.echo(f"Reasoning: {prediction.think or '(none)'}")
    click.echo(f"Answer:    {prediction.answer or '(none)'}")
    click.echo(f"Tokens:    {prediction.tokens}{limit}")
    click.echo(NOT_CLINICAL)


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
    """Load a model folder of the pipeline, or whole weights in the hub's layout."""
    from stages.models.loading import load

    if (folder / "base.json").is_file():
        return load(folder, params.model)
    with TemporaryDirectory() as pointer:
        write_json(
            Path(pointer) / "base.json", {"source": str(folder), "revision": None, "sha256": None}
        )
        return load(pointer, params.model)


def readable(image: Path) -> Path | io.BytesIO:
    """The image, found and able to be opened; a DICOM file as PNG.

    Raises:
        UserError: it is missing, or cannot be read as a picture.
    """
    from PIL import Image

    where = f"--image {image}"
    if not image.is_file():
        raise UserError(
            where, "no such file", "a picture: PNG, JPEG, TIFF or DICOM", "check the path"
        )
    try:
        picture = image
        if image.suffix.lower() in DICOM:
            from stages.datasets.dicom import to_png

            picture = io.BytesIO(to_png(image))
        with Image.open(picture) as opened:
            opened.load()
    except (OSError, ValueError) as error:
        raise UserError(
            where,
            str(error),
            "a picture: PNG, JPEG, TIFF or DICOM (.dcm)",
            "save it in one of these formats",
        ) from None
    return picture


def with_choices(question: str, choices: tuple[str, ...]) -> str:
    """The question with its options under letters, worded as CV-Bench does."""
    if not choices:
        return question
    options = "\n".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(choices))
    return f"{question} Select from the following choices.\n{options}"


if __name__ == "__main__":
    main()
