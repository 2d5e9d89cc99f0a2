"""Loading a model folder: the base that it points to, with its adapter or its full weights.

A model folder (`data/models/<name>/`) has `base.json`, a pointer to the base instead of a copy of gigabytes. A trained
one also has a PEFT adapter (`adapter_config.json`) or, without LoRA, the full weights in `full/`.
"""

import contextlib
import ctypes
import importlib.util
import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.utils import enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging as transformers_logging

from rarl import params as P
from rarl.errors import UserError, no_cuda
from rarl.models.base_files import fingerprint
from rarl.models.families import FAMILIES
from rarl.models.patching import embed_patches, replace_forward, vision_modules
from rarl.models.processor import load_processor
from rarl.models.quantization import keep_layout, quantization
from rarl.records import read_json

#: Names of the Qwens' modules before transformers 4.52, as many published adapters have them -> present ones. PEFT
#: translates those of other families.
OLDER_NAMES = {r"^visual": "model.visual", r"^model(?!\.(language_model|visual))": "model.language_model"}


@dataclass
class Loaded:
    """A model with what it needs to be asked."""

    model: torch.nn.Module
    processor: ProcessorMixin
    device: torch.device
    attention: str
    shared: bool = False
    """Whether each process has only a part of the weights (FSDP, DeepSpeed)."""


def choose_device(model: P.Model) -> torch.device:
    """The device of this process; a UserError if `model.device` is cuda, and there is none."""
    if model.device == "cuda" and not torch.cuda.is_available():
        raise no_cuda(torch.__version__)
    if model.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def choose_attention(model: P.Model, device: torch.device) -> str:
    """`model.attention`; `auto` is flash-attn if it is installed and supports device and dtype, otherwise SDPA."""
    if model.attention != "auto":
        return model.attention
    installed = importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if installed and device.type == "cuda" and model.dtype == "bfloat16" else "sdpa"


def keep_freed_memory(quantized: bool = False) -> None:
    """Let glibc keep what a step frees, since the next step allocates the same sizes.

    Memory that returns to the system costs page faults later, up to a sixth of a small model's step. Layers in 4 bits
    are dequantized for each product: there, large blocks return to the system instead of fragmenting the heap. Other
    systems' C libraries are not changed.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if quantized:
            mallopt(-3, 2**20)  # M_MMAP_THRESHOLD: separate blocks from 1 MiB on
            return
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        mallopt(-4, 0)  # M_MMAP_MAX: no separate blocks


def load(folder: str | Path, model: P.Model, trainable: bool = False) -> Loaded:
    """Load the model of a folder in evaluation mode, with a frozen vision tower.

    Args:
        folder: a model folder, see the module's docstring.
        model: the parameters of the device and the dtype.
        trainable: whether the folder's adapter will be trained.

    Raises:
        UserError: the base is missing, of an unsupported family, or changed since `base.json` was written; the adapter
            is another base's; a weight is missing; or the device or package that is asked for is missing.
    """
    folder = Path(folder)
    adapted = (folder / "adapter_config.json").is_file()
    if adapted:
        check_adapter_base(folder)
    torch.set_num_threads(model.threads)
    keep_freed_memory(model.quantization is not None)
    device = choose_device(model)
    if device.type == "cuda":
        # cuDNN's attention plans each new shape, in tens of milliseconds, and nearly every shape here is new.
        torch.backends.cuda.enable_cudnn_sdp(False)
    attention = choose_attention(model, device)
    network, processor = _load_base(folder, model, attention)
    keep_layout(network)
    for weight in network.parameters():
        weight.requires_grad_(weight.is_floating_point())
    for module in vision_modules(network):
        module.requires_grad_(False)  # the paper freezes the vision encoder (2.3)
        if device.type == "cuda" and hasattr(module, "patch_embed"):
            replace_forward(module.patch_embed, embed_patches)
    network.generation_config = _generation_config(network, processor)
    if adapted:
        network = _with_adapter(network, folder, trainable)
    return Loaded(network.to(device).eval(), processor, device, attention)


def _load_base(folder: Path, model: P.Model, attention: str):
    """The base of a model folder, or its full weights, and the base's processor."""
    pointer = read_json(folder / "base.json")
    full = (folder / "full").is_dir()
    source, revision = str(folder / "full") if full else pointer["source"], pointer["revision"]
    if not full and pointer["sha256"] is not None:
        _check_unchanged(folder, pointer)
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # the hub's: a download of gigabytes shows its progress
    try:
        processor = load_processor(pointer["source"], revision, model.min_pixels, model.max_pixels)
        network, report = AutoModelForImageTextToText.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, model.dtype),
            attn_implementation=attention,
            output_loading_info=True,
            **quantization(model, choose_device(model)),
            ignore_mismatched_sizes=True,  # `_check_complete` reports them
        )
    except (ImportError, OSError, SafetensorError) as error:
        where, expected = f"base.source = {pointer['source']}", "a model folder or a hub id that can be reached"
        fix = "check the name and revision, log in or go online, or set base.source to `embedded`"
        if isinstance(error, ImportError) and attention == "flash_attention_2":
            where, expected = f"model.attention = {model.attention}", "an attention implementation that is installed"
            fix = "set model.attention to sdpa, or install flash-attn (README, 'On a GPU')"
        elif isinstance(error, ImportError):
            expected, fix = "the packages that this base needs", "install what is named, or choose another base"
        elif isinstance(error, SafetensorError):
            expected, fix = "whole weights", "copy or fetch the folder again"
        raise UserError(where, " ".join(str(error).split())[:300], expected, fix) from None
    _check_complete(source, {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    return network, processor


def _check_unchanged(folder: Path, pointer: dict) -> None:
    """Refuse a base with other weights than those that the folder's adapter was trained on."""
    if (sha256 := fingerprint(pointer["source"])) != pointer["sha256"]:
        where, found = f"{pointer['source']}, the base of {folder}", f"files with SHA-256 {sha256[:12]}..."
        expected = f"{pointer['sha256'][:12]}..., as in {folder / 'base.json'}"
        fix = "restore the base's files; or, to use the new ones, run `dvc repro`, which trains again"
        raise UserError(where, found, expected, fix)


def _check_complete(source: str, absent: set[str]) -> None:
    """Refuse a file without all weights, since a missing weight is random after loading."""
    if absent:
        first = ", ".join(sorted(absent)[:3]) + ", ..." * (len(absent) > 3)
        found = f"{len(absent)} weights missing or of another shape: {first}"
        expected = "every weight of the model that its config.json describes"
        raise UserError(source, found, expected, "fetch or write the folder again")


def check_adapter_base(folder: Path) -> None:
    """Refuse an adapter whose own configuration names another base: families share names and shapes of layers."""
    adapter, pointer = read_json(folder / "adapter_config.json"), read_json(folder / "base.json")
    if pointer["sha256"] is not None or Path(pointer["source"]).is_dir():
        return  # local files, which `_check_unchanged` compares, may be in a folder of any name
    for key, of_base in (("base_model_name_or_path", pointer["source"]), ("revision", pointer["revision"])):
        if (of_adapter := adapter.get(key)) and of_base and Path(of_adapter).name != Path(of_base).name:
            found, expected = f"an adapter of {of_adapter}", f"an adapter of {of_base}, as in {folder / 'base.json'}"
            raise UserError(
                str(folder / "adapter_config.json"), found, expected, "name the adapter's base in base.json"
            )


def _with_adapter(network, folder: Path, trainable: bool):
    from peft import PeftModel

    file, fix = folder / "adapter_model.safetensors", "run `dvc repro`, or copy the adapter's folder again"
    names = OLDER_NAMES if FAMILIES[network.config.model_type].grid else None
    if not file.is_file():
        raise UserError(str(folder), f"no {file.name}", "the adapter's weights", fix)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            network = PeftModel.from_pretrained(network, str(folder), is_trainable=trainable, key_mapping=names)
            # Again, for the report, which from_pretrained does not return.
            report = network.load_adapter(str(folder), "default", is_trainable=trainable, key_mapping=names)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        found = " ".join(str(error).split())[:200]
        raise UserError(str(folder), found, "an adapter that fits the base in its base.json", fix) from None
    _check_complete(str(folder), set(report.missing_keys))
    if extra := sorted(report.unexpected_keys):
        found = f"{len(extra)} weights that the base has no layer for: {', '.join(extra[:3])}"
        raise UserError(str(folder), found, "an adapter of the base in its base.json", fix)
    return network


def _generation_config(network, processor):
    """The model's special tokens only: params.yaml sets decoding, not the hub."""
    from transformers import GenerationConfig

    old, tokenizer = network.generation_config, processor.tokenizer
    end = old.eos_token_id if old.eos_token_id is not None else tokenizer.eos_token_id
    pad = old.pad_token_id if old.pad_token_id is not None else tokenizer.pad_token_id
    return GenerationConfig(eos_token_id=end, pad_token_id=pad, bos_token_id=old.bos_token_id)
