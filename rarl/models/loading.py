"""Loading a model folder: the base that it names, and the adapter or full weights that lie in it.

A model folder (`data/models/<name>/`) always holds `base.json`, which says which base the model stands
on, so that a pointer of a few lines takes the place of gigabytes. Trained ones hold besides a PEFT
adapter (`adapter_config.json`) or, without LoRA, the full weights in `full/`.
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
from transformers import PreTrainedConfig, Qwen2VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from rarl import params as P
from rarl.errors import UserError
from rarl.models.base_files import check_family, fingerprint
from rarl.models.layers import embed_patches, replace_forward
from rarl.models.processor import ImageTextProcessor, load_processor
from rarl.records import read_json


@dataclass
class Loaded:
    model: torch.nn.Module
    processor: ImageTextProcessor
    device: torch.device
    attention: str
    shared: bool = False
    """Whether processes hold a part of the weights each (FSDP, DeepSpeed)."""


def choose_device(model: P.Model) -> torch.device:
    if model.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "model.device = cuda",
            "no CUDA device that this PyTorch can use",
            "a GPU and a CUDA build of torch",
            "set model.device to auto or cpu, or install the CUDA build (README, 'On a GPU')",
        )
    if model.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # One each, where several processes run.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def choose_attention(model: P.Model, device: torch.device) -> str:
    """`auto` takes flash-attn where it is installed, on a CUDA device, in a dtype that it knows; else SDPA."""
    if model.attention != "auto":
        return model.attention
    installed = importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if installed and device.type == "cuda" and model.dtype == "bfloat16" else "sdpa"


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, which asks for the same sizes.

    Given back to the system it returns as fresh pages, up to a sixth of a small model's step. Other systems' C
    libraries are left as they are.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        mallopt(-4, 0)  # M_MMAP_MAX: no block apart


def load(folder: str | Path, model: P.Model, adapter: bool = True, trainable: bool = False) -> Loaded:
    """Load the model of one folder, frozen vision tower, in evaluation mode.

    Args:
        folder: a model folder, see the module's docstring.
        adapter: False leaves the adapter of the folder away.
        trainable: an adapter is to be trained on.

    Raises:
        UserError: the base cannot be found, is of an unsupported family, or has changed since `base.json` was written;
            a weight is missing; the device or package asked for is not there.
    """
    folder = Path(folder)
    torch.set_num_threads(model.threads)
    pointer = read_json(folder / "base.json")
    device = choose_device(model)
    attention = choose_attention(model, device)
    keep_freed_memory()
    if device.type == "cuda":
        # cuDNN's makes a plan for each new shape, tens of milliseconds each, and here shapes are new all the time.
        torch.backends.cuda.enable_cudnn_sdp(False)
    full = adapter and (folder / "full").is_dir()
    source = str(folder / "full") if full else pointer["source"]
    if not full and pointer["sha256"] is not None:
        _check_unchanged(folder, pointer)
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # the hub's: a download of gigabytes must not look like a stop
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=pointer["revision"])
        check_family(source, config)
        network, report = Qwen2VLForConditionalGeneration.from_pretrained(
            source,
            revision=pointer["revision"],
            dtype=getattr(torch, model.dtype),
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in our words
        )
        processor = load_processor(pointer["source"], pointer["revision"], model.min_pixels, model.max_pixels)
    except ImportError as error:
        raise UserError(
            f"model.attention = {model.attention}",
            str(error).splitlines()[0],
            "an attention implementation that is installed",
            "set model.attention to sdpa, or install flash-attn (README, 'On a GPU')",
        ) from None
    except OSError as error:
        raise UserError(
            f"base.source = {pointer['source']}",
            str(error).splitlines()[0],
            "a model folder or a hub id that can be reached",
            "check the name and revision, log in or go online, or set base.source to `embedded`",
        ) from None
    _check_whole(source, {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    network.requires_grad_(True)
    network.model.visual.requires_grad_(False)  # the paper freezes the vision encoder (2.3)
    if device.type == "cuda":
        replace_forward(network.model.visual.patch_embed, embed_patches)
    network.generation_config = _generation_config(network, processor)
    if adapter and (folder / "adapter_config.json").is_file():
        network = _with_adapter(network, folder, trainable)
    return Loaded(network.to(device).eval(), processor, device, attention)


def _check_unchanged(folder: Path, pointer: dict) -> None:
    """An adapter on other weights than those that it was trained on answers at random."""
    found = fingerprint(pointer["source"])
    if found != pointer["sha256"]:
        raise UserError(
            f"{pointer['source']}, the base of {folder}",
            f"files with SHA-256 {found[:12]}...",
            f"{pointer['sha256'][:12]}..., as {folder / 'base.json'} has it",
            "restore the base's files; or, if the new ones are wanted, run `dvc repro`, which trains again",
        )


def _check_whole(source: str, absent: set[str]) -> None:
    """A weight that a file does not hold is random after loading."""
    if absent:
        first = ", ".join(sorted(absent)[:3])
        raise UserError(
            source,
            f"{len(absent)} weights missing or of another shape: {first}{', ...' * (len(absent) > 3)}",
            "every weight of the model that its config.json describes",
            "fetch or write the folder again",
        )


def _with_adapter(network, folder: Path, trainable: bool):
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(
            str(folder), f"no {file.name}", "the adapter's weights", "run `dvc repro`, or copy the folder again"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            network = PeftModel.from_pretrained(network, str(folder), is_trainable=trainable)
        with safe_open(file, "pt") as weights:
            absent = set(get_peft_model_state_dict(network)) - set(weights.keys())
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(
            str(folder),
            " ".join(str(error).split())[:200],
            "an adapter that fits the base named in its base.json",
            "run `dvc repro`, or copy the adapter's folder again",
        ) from None
    _check_whole(str(folder), absent)
    return network


def _generation_config(network, processor):
    """The model's end tokens, and none of the hub's sampling settings: decoding is set in params.yaml."""
    from transformers import GenerationConfig

    old = network.generation_config
    end = old.eos_token_id if old.eos_token_id is not None else processor.tokenizer.eos_token_id
    pad = old.pad_token_id if old.pad_token_id is not None else processor.tokenizer.pad_token_id
    return GenerationConfig(eos_token_id=end, pad_token_id=pad, bos_token_id=old.bos_token_id)
