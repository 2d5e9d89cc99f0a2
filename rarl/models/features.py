"""The frozen vision tower's output, computed once per distinct image and looked up after that.

A feature is keyed by the hash of the image's patch rows (pixels after scaling and normalisation), so that it cannot be
paired with another image, whatever the order of a batch. The tower stays in the model under its own name: only its
forward pass is replaced by the look-up, which falls back to the tower for an image that is not in the store. Until
then, its weights need not be on the device (`offload`).
"""

import json
import re
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rarl.errors import UserError
from rarl.models.loading import Loaded
from rarl.models.patching import replace_forward, without_peft
from rarl.records import atomic_path, remake

FILE = "features.safetensors"
BY = " by the tower "
"""Between the number and hash of features and what they were computed by, in the file's metadata."""


def patch_keys(pixels: torch.Tensor, grid: torch.Tensor) -> list[str]:
    """Hash of each image's patch rows. pixels: (all patches, patch size), grid: (images, 3)."""
    rows = pixels.detach().to("cpu", torch.float32).contiguous().numpy()
    keys, start = [], 0
    for t, h, w in grid.tolist():
        end = start + t * h * w
        keys.append(f"{xxhash.xxh3_128_hexdigest(rows[start:end])}-{h}x{w}")
        start = end
    return keys


class FeatureStore:
    """Features of images: key -> (image tokens, hidden size).

    Attributes:
        tower: what they were computed by, see `describe`; None for features of no particular tower.
        computed: images that were not in the store and went through the tower.
    """

    def __init__(self, features: dict[str, torch.Tensor] | None = None, tower: dict[str, str | int] | None = None):
        self.features, self.tower, self.computed = features or {}, tower, 0

    @classmethod
    def load(cls, folder: str | Path, loaded: Loaded | None = None) -> "FeatureStore":
        """The store that `save` wrote.

        Args:
            folder: where it is.
            loaded: a model with the tower that the features must be of; None for any.

        Raises:
            UserError: there is none; it is cut, changed or short of images; or it is of another tower.
        """
        path, expected = Path(folder) / FILE, "the features that the stage `encode` wrote"
        try:
            with safe_open(path, "pt") as file:
                noted, _, tower = (file.metadata() or {}).get("content", "").partition(BY)
            store = cls(load_file(path), json.loads(tower or "null"))
        except (OSError, SafetensorError) as error:
            raise UserError(str(path), str(error), expected, remake(path)) from None
        if noted != (found := content(store.features)):
            found += f", where {noted or 'nothing'} is noted in it"
            raise UserError(str(path), found, expected, remake(path))
        if loaded and store.tower and (wanted := describe(loaded)) != store.tower:
            other = [key for key in wanted if wanted[key] != store.tower.get(key)]
            found, expected = (", ".join(f"{key} {of.get(key)}" for key in other) for of in (store.tower, wanted))
            found = f"features of another vision tower: {found}"
            raise UserError(str(path), found, f"those of the model's tower: {expected}", remake(path))
        return store

    def save(self, folder: str | Path) -> None:
        """Write the features, with their number and hash and the tower that they are of."""
        noted = content(self.features) + (BY + json.dumps(self.tower) if self.tower else "")
        with atomic_path(Path(folder) / FILE) as partial:
            try:
                # One entry: the order of several would change from run to run.
                save_file(self.features, partial, {"content": noted})
            except SafetensorError as error:
                if number := re.search(r"os error (\d+)", str(error)):
                    raise OSError(int(number[1]), str(error)) from None
                raise

    def attach(self, model) -> None:
        """Let a (PEFT-wrapped or plain) Qwen2-VL look its image features up here."""
        visual = tower(model)
        compute = type(visual).forward
        store = self

        def forward(visual, hidden_states, grid_thw, **kwargs):
            # The library casts pixels before it calls the tower, the stage `encode` does not.
            keys = patch_keys(hidden_states.to(visual.dtype), grid_thw)
            rows = hidden_states.split(grid_thw.prod(-1).tolist())
            for index, key in enumerate(keys):
                if key not in store.features:
                    _bring_back(visual, hidden_states.device)
                    with torch.no_grad():
                        output = compute(visual, rows[index], grid_thw[index : index + 1], **kwargs)
                    store.features[key] = output.pooler_output.cpu()
                    store.computed += 1
            pooled = torch.cat([store.features[key] for key in keys])
            return BaseModelOutputWithPooling(pooler_output=pooled.to(hidden_states.device, visual.dtype))

        replace_forward(visual, forward)


def describe(loaded: Loaded) -> dict[str, str | int]:
    """What the features of a model's vision tower depend on: its weights and dtype, and the scaling of images.

    Returns:
        `weights` (hash of names and values), `dtype`, and `min_pixels` and `max_pixels` of a scaled image.
    """
    visual, size = tower(loaded.model), loaded.processor.image_processor.size
    return {
        "weights": _digest(visual.state_dict()),
        "dtype": str(visual.dtype).removeprefix("torch."),
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
    }


def content(features: dict[str, torch.Tensor]) -> str:
    """Number and hash of features."""
    return f"{len(features)} images, {_digest(features)}"


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tower(model):
    """The vision tower of a plain or PEFT-wrapped Qwen2-VL."""
    return without_peft(model).model.visual


def offload(model) -> None:
    """Offload the vision tower until a cache miss, except for its first weights, which tell device and dtype."""
    visual = tower(model)
    visual.away = {name: visual._modules.pop(name).cpu() for name in ("blocks", "merger")}


def _bring_back(visual, device: torch.device) -> None:
    for name, part in visual.__dict__.pop("away", {}).items():
        visual.add_module(name, part.to(device, visual.dtype))
