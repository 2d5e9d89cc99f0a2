"""The frozen vision tower's output, computed once per distinct image and looked up after that.

A feature is keyed by the hash of the image's patch rows (pixels after scaling and normalisation), so
that it cannot be paired with another image, whatever the order of a batch. The tower stays in the
model under its own name: only its forward pass is replaced by the look-up, which falls back to the
tower itself for an image that is not in the store. Until there is one, its weights need not be on
the device (`put_away`).
"""

import re
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rarl.errors import UserError
from rarl.models.patching import replace_forward, without_peft
from rarl.records import atomic_path, remake

FILE = "features.safetensors"


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
    """Features of images: key -> (image tokens, hidden size)."""

    def __init__(self, features: dict[str, torch.Tensor] | None = None):
        self.features = features or {}
        self.computed = 0
        """Images that were not there and went through the tower."""

    @classmethod
    def load(cls, folder: str | Path) -> "FeatureStore":
        """The store that `save` wrote.

        Raises:
            UserError: there is none, or it is cut, changed or short of images.
        """
        path = Path(folder) / FILE
        try:
            with safe_open(path, "pt") as file:
                written = (file.metadata() or {}).get("content")
            features = load_file(path)
        except (OSError, SafetensorError) as error:
            found = str(error)
        else:
            if written == (content := _content(features)):
                return cls(features)
            found = f"{content}, where {written or 'nothing'} is noted in it"
        raise UserError(str(path), found, "the features that the stage `encode` wrote", remake(path)) from None

    def save(self, folder: str | Path) -> None:
        """Write the features, with their number and hash.

        Raises:
            OSError: the file cannot be written.
        """
        with atomic_path(Path(folder) / FILE) as partial:
            try:
                # One entry: the order of several would change from run to run.
                save_file(self.features, partial, {"content": _content(self.features)})
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
            for index, key in enumerate(keys):
                if key not in store.features:
                    _bring_back(visual, hidden_states.device)
                    rows = grid_thw.prod(-1).tolist()
                    start = sum(rows[:index])
                    with torch.no_grad():
                        output = compute(
                            visual, hidden_states[start : start + rows[index]], grid_thw[index : index + 1], **kwargs
                        )
                    store.features[key] = output.pooler_output.cpu()
                    store.computed += 1
            pooled = torch.cat([store.features[key] for key in keys])
            return BaseModelOutputWithPooling(pooler_output=pooled.to(hidden_states.device, visual.dtype))

        replace_forward(visual, forward)


def _content(features: dict[str, torch.Tensor]) -> str:
    """Number and hash of features."""
    digest = xxhash.xxh3_128()
    for key in sorted(features):
        digest.update(key.encode())
        digest.update(features[key].detach().contiguous().view(torch.uint8).numpy())
    return f"{len(features)} images, {digest.hexdigest()}"


def tower(model):
    """The vision tower of a plain or PEFT-wrapped Qwen2-VL."""
    return without_peft(model).model.visual


def put_away(model) -> None:
    """Take the weights of a tower with a store off the device, and out of the model, until an image needs them.

    Its first weights stay, from which the library reads the model's device and dtype.
    """
    visual = tower(model)
    visual.away = {name: visual._modules.pop(name).cpu() for name in ("blocks", "merger")}


def _bring_back(visual, device: torch.device) -> None:
    for name, part in visual.__dict__.pop("away", {}).items():
        visual.add_module(name, part.to(device, visual.dtype))
