"""Random weights at full size, in the hub's layout."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from rarl.records import read_json, write_json
from rarl.rehearsal.bases import meta_model, parse

SHARD_BYTES = 10**9
#: Random numbers that are repeated; no size of a matrix divides their number, so that its rows differ.
RANDOM = 2**24 - 3


def write_weights(folder: Path) -> None:
    """Write the random bfloat16 weights of a folder's `config.json`, shard by shard, and its image settings.

    Names are those of the hub's files. Matrices are normal with a standard deviation of 0.02, norms are one and biases
    zero.
    """
    config = parse(read_json(folder / "config.json"))
    vision = config.vision_config
    settings = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    settings |= {"temporal_patch_size": vision.temporal_patch_size, "image_processor_type": "Qwen2VLImageProcessor"}
    write_json(folder / "preprocessor_config.json", settings)
    _write_shards(published_tensors(config), folder)


def published_tensors(config) -> dict[str, torch.Tensor]:
    """Meta tensors by their names in the hub's files, tied weights once."""
    model = meta_model(config)
    tied = model.all_tied_weights_keys
    return revert_weight_conversion(model, {name: t for name, t in model.state_dict().items() if name not in tied})


def _write_shards(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.numel() * 2 > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.numel() * 2
    where, numbers = {}, torch.empty(RANDOM).normal_(0, 0.02, generator=torch.manual_seed(0)).bfloat16()
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard = {name: _filled(name, tensors[name].shape, numbers) for name in names}
        save_file(shard, folder / file, {"format": "pt"})
        del shard  # before the next one is made
        where |= dict.fromkeys(names, file)
    total = sum(tensor.numel() for tensor in tensors.values()) * 2
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _filled(name: str, shape: torch.Size, numbers: torch.Tensor) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return tensor.fill_(0.0 if name.endswith("bias") else 1.0)
    for part in tensor.view(-1).split(len(numbers)):
        part.copy_(numbers[: len(part)])
    return tensor
