"""A model in the hub's layout, for stock classes: what `rarl merge` writes and vLLM reads."""

import shutil
from pathlib import Path

from rarl.models.families import FAMILIES
from rarl.records import read_json, write_json

#: Files of a base that a merged model has too: all that a tokenizer is read from, and the settings for videos.
COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "video_preprocessor_config.json",
)
#: What families call the number of tokens of an image or tile.
IMAGE_LENGTHS = ("image_seq_len", "image_seq_length")


def link_base(processor, pointer: dict, dtype: str, folder: Path) -> None:
    """Write a folder with links to a base's weights and its settings as in a merged model.

    vLLM then scales images as the pipeline does, and reads the pinned revision. Arguments as for `save_settings`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = base_file(pointer, "config.json").parent
    for file in (*source.glob("*.safetensors*"), *source.glob("generation_config.json")):
        link = folder / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    save_settings(processor, pointer, dtype, folder)


def base_file(pointer: dict, name: str) -> Path | None:
    """A file of the base, downloaded if it is not there; None if the base has no such file."""
    from transformers.utils import cached_file

    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(pointer["source"], name, revision=pointer["revision"], **optional)
    return Path(file) if file else None


def save_settings(processor, pointer: dict, dtype: str, folder: Path) -> None:
    """Save configuration, tokenizer, chat template and image settings in the hub's layout, for stock classes.

    The configuration and the tokenizer's files are the base's, because version 4 of transformers, which vLLM may use,
    cannot read all that version 5 writes. The image settings are the processor's, with the size that was trained with.

    Args:
        processor: of the loaded model.
        pointer: the content of `base.json`.
        dtype: of the merged weights.
        folder: of the merged weights.
    """
    config = _with_dtype({"torch_dtype": dtype} | read_json(base_file(pointer, "config.json")), dtype)
    write_json(folder / "config.json", config)
    for name in COPIED_FILES:
        if file := base_file(pointer, name):
            shutil.copyfile(file, folder / name)
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
    stock = {"processor_class": FAMILIES[config["model_type"]].processor}
    file = folder / "tokenizer_config.json"
    tokenizer = read_json(file) if file.is_file() else {}
    tokenizer.pop("chat_template", None)
    write_json(file, tokenizer | stock)
    write_json(folder / "preprocessor_config.json", _image_settings(processor.image_processor) | stock)
    rest = read_json(file) if (file := base_file(pointer, "processor_config.json")) else {}
    if video := rest.pop("video_processor", None):
        write_json(folder / "video_preprocessor_config.json", video)
    rest = {key: value for key, value in rest.items() if key not in ("image_processor", "tokenizer", *stock)}
    rest |= {key: getattr(processor, key) for key in IMAGE_LENGTHS if hasattr(processor, key)}
    if rest:
        write_json(folder / "processor_config.json", rest | stock)


def _image_settings(processor) -> dict:
    """Return the content of `preprocessor_config.json`."""
    stock = next(kind for kind in type(processor).__mro__ if kind.__module__.startswith("transformers."))
    settings = processor.to_dict() | {"image_processor_type": stock.__name__.removesuffix("Pil")}
    size = settings["size"]
    if {"shortest_edge", "longest_edge"} <= set(size):  # read by older versions
        settings |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    return dict(sorted(settings.items()))


def _with_dtype(config: dict, dtype: str) -> dict:
    """Return a configuration with another dtype, also in its parts.

    >>> _with_dtype({"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}, "float32")
    {'torch_dtype': 'float32', 'text_config': {'dtype': 'float32'}}
    """
    changed = {key: _with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return changed | {key: dtype for key in ("dtype", "torch_dtype") if key in config}
