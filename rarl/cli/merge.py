"""Merge a trained adapter into its base: a folder of whole weights in the hub's layout, which needs no PEFT.

No stage of the pipeline. The sum is done in float32 on the CPU and rounded once, to `model.dtype`.
"""

import shutil
from pathlib import Path

import click

from rarl.cli.ask import model_folder
from rarl.entry import explained, ignore_warnings_between_libraries
from rarl.errors import UserError
from rarl.params import Params, load_params
from rarl.pinning import pin
from rarl.records import read_json, write_json


@click.command(help=__doc__)
@click.option("--model", "name", required=True, help="A name below data/models, or a folder.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="A new folder.")
@explained()
def main(name, output):
    ignore_warnings_between_libraries()
    params = load_params()
    pin(params)
    folder = model_folder(name)
    if not (folder / "adapter_config.json").is_file() and not (folder / "full").is_dir():
        raise UserError(
            f"--model {name}",
            f"{folder} holds no adapter and no trained weights",
            "a trained model",
            "name one that was trained: sft, grpo or rarl",
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f"--output {output}", "something is there already", "a new or empty folder", "name another one"
        )  # fmt: skip
    merge(folder, output, params)
    click.echo(f"merge: {folder} -> {output} ({params.model.dtype}); set base.source to it to use it as a base")  # fmt: skip


def merge(folder: Path, output: Path, params: Params) -> None:
    """Write the merged weights, tokenizer, processor files and card of a trained model.

    The folder appears whole or not at all.
    """
    import torch

    from rarl.model_card import merged_card
    from rarl.models.loading import load

    settings = {"dtype": "float32", "device": "cpu", "attention": "sdpa"}
    loaded = load(folder, params.model.model_copy(update=settings))
    network = loaded.model
    if hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload(safe_merge=True)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        network.to(getattr(torch, params.model.dtype)).save_pretrained(partial)
        save_processor(loaded.processor, partial)
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        (partial / "README.md").write_text(
            merged_card(text, folder.resolve().name, params.model.dtype), encoding="utf-8"
        )
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_processor(processor, folder: Path) -> None:
    """Tokenizer, chat template and image settings under the names that other programs look for.

    Our own processor classes are known here only, so the stock ones are named in their place.
    """
    processor.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
    tokenizer = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", tokenizer | {"processor_class": "Qwen2VLProcessor"})
    images = processor.image_processor.to_dict() | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": processor.image_processor.size["shortest_edge"],
        "max_pixels": processor.image_processor.size["longest_edge"],
    }
    write_json(folder / "preprocessor_config.json", dict(sorted(images.items())))
