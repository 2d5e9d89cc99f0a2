"""Model folders: find one, load it, name its base, read its scores, and merge an adapter into the base."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rarl.errors import UserError
from rarl.params import Params
from rarl.records import read_json, write_json
from rarl.sharing.hub_layout import save_settings
from rarl.sharing.model_card import base_name, merged_card
from rarl.sharing.model_index import with_results

MODELS = Path("data/models")


def find(name: str) -> Path:
    """Find a model folder: one in `data/models`, or the folder itself; a UserError if neither has a model."""
    for folder in (MODELS / name, Path(name)):
        if (folder / "base.json").is_file() or (folder / "config.json").is_file():
            return folder
    known = sorted(path.parent.name for path in MODELS.glob("*/base.json"))
    found = "a folder with neither base.json nor config.json" if folder.is_dir() else "no such model"
    expected = f"a model in {MODELS} (there: {', '.join(known) or 'none'}), a copy of one, or a merged model"
    raise UserError(f"model {name}", found, expected, "make it with `dvc repro`, or fetch it with `dvc pull`")


def open_model(folder: Path, params: Params):
    """Load a model folder of the pipeline, or whole weights in the hub's layout; a UserError if files are damaged."""
    from rarl.models.loading import load

    try:
        if (folder / "base.json").is_file():
            return load(folder, params.model)
        with TemporaryDirectory() as pointer:
            write_json(Path(pointer) / "base.json", {"source": str(folder), "revision": None, "sha256": None})
            return load(pointer, params.model)
    except json.JSONDecodeError as error:
        raise UserError(str(folder), str(error), "whole files of a model", "copy or fetch the folder again") from None


def base_of(folder: Path) -> tuple[str, str | None]:
    """Return (name, revision) of a model folder's base; for merged weights, as the model card says."""
    if (folder / "base.json").is_file():
        pointer = read_json(folder / "base.json")
        return base_name(pointer), pointer["revision"]
    from huggingface_hub import ModelCard

    text = _card(folder)
    named = ModelCard(text).data.get("base_model") if text.startswith("---\n") else None
    return named if isinstance(named, str) else folder.as_posix(), None


def measured(folder: Path) -> dict:
    """Return a model's scores of the stage `score`: mode -> test set -> judge -> cell.

    Raises:
        UserError: it is not scored, or its scores are of another state of its weights, the data, code or parameters.
    """
    file, expected = Path("metrics/scores") / f"{folder.name}.json", "the scores of this model as it is"
    fix = "run `dvc repro`; or leave the scores out with --no-scores"
    if folder.parent != MODELS or not file.is_file():
        raise UserError(f"scores of {folder}", f"missing: no {file} of this model", expected, fix)
    command = [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", f"score@{folder.name}"]
    done = subprocess.run(command, capture_output=True, text=True)
    changed = [f"an error: {done.stderr.strip()}"] if done.returncode else json.loads(done.stdout)
    if changed:
        raise UserError(str(file), f"stale: `dvc status` reports {', '.join(sorted(changed))}", expected, fix)
    return read_json(file)


def _card(folder: Path) -> str:
    card = folder / "README.md"
    return card.read_text(encoding="utf-8") if card.is_file() else ""


def is_adapter(folder: Path) -> bool:
    """Whether a model folder has an adapter rather than full weights; a UserError if it was not trained."""
    if (folder / "adapter_config.json").is_file():
        return True
    if (folder / "full").is_dir():
        return False
    found = f"neither an adapter nor trained weights in {folder}"
    raise UserError(f"model {folder.name}", found, "a trained model", "name one that was trained: sft, grpo or rarl")


def merge(name: str, output: Path, params: Params, results: list | None = None) -> Path:
    """Write the merged weights, tokenizer, processor files and card of a trained model, and return its folder.

    The merge is computed in float32 on the CPU and rounded once, to `model.dtype`. If it fails, no output is left.

    Args:
        name: of a model in `data/models`, or its folder.
        output: a new or empty folder.
        params: of the pipeline.
        results: for the card's metadata, as returned by `model_index.eval_results`.

    Raises:
        UserError: the model was not trained, or the output folder is not empty.
    """
    folder = find(name)
    is_adapter(folder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}", "it exists already", "a new or empty folder", "name another folder")
    import torch

    from rarl.models.loading import load

    settings = {"dtype": "float32", "device": "cpu", "attention": "sdpa", "quantization": None}
    loaded = load(folder, params.model.model_copy(update=settings))
    network = loaded.model
    if hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload(safe_merge=True)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        network.to(getattr(torch, params.model.dtype)).save_pretrained(partial)
        save_settings(loaded.processor, read_json(folder / "base.json"), params.model.dtype, partial)
        source = folder.resolve().name
        card = with_results(merged_card(_card(folder), source, params.model.dtype), source, results or [])
        (partial / "README.md").write_text(card, encoding="utf-8")
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
