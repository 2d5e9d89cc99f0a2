"""The frozen vision tower's output, computed once per distinct image and looked up after that.

A feature is keyed by the hash of the image's pixels after scaling and normalisation, so that it cannot be paired with
another image, whatever the order of a batch. The tower stays in the model under its own name: only one method is
replaced by the look-up, which falls back to the tower for an image that is not in the store. That is the forward pass
of the Qwens' tower, which has its projector in it, and `get_image_features` of other families. Until a cache miss the
tower's weights need not be on the device (`offload`).
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
from rarl.models.families import FAMILIES
from rarl.models.loading import Loaded
from rarl.models.patching import replace_forward, vision_modules, without_peft
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


def _images(pixels: torch.Tensor, mask: torch.Tensor | None) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Pixels of each image, and their mask, as arguments of `get_image_features`.

    pixels: (images, channels, height, width), or (images, tiles, channels, height, width) where an image is cut into
    tiles, padded with tiles of zeros. mask: (images, tiles, height, width) or None.
    """
    if pixels.ndim == 4:
        return [(image[None], None) for image in pixels]
    real = [image.flatten(1).any(1) for image in pixels]
    masks = [None] * len(pixels) if mask is None else [own[here][None] for own, here in zip(mask, real)]
    return [(image[here][None], own) for image, here, own in zip(pixels, real, masks)]


def _key(pixels: torch.Tensor, mask: torch.Tensor | None) -> str:
    digest = xxhash.xxh3_128()
    for tensor in (pixels, mask):
        if tensor is not None:
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy())
    return f"{digest.hexdigest()}-{'x'.join(map(str, pixels.shape[1:]))}"


class FeatureStore:
    """Features of images: key -> (image tokens, hidden size), or (levels, image tokens, hidden size) for Qwen3-VL.

    Attributes:
        tower: what they were computed by, see `describe`; None for features of no particular tower.
        computed: images that were not in the store and went through the tower.
        last: keys of the images that were looked up last.
    """

    def __init__(self, features: dict[str, torch.Tensor] | None = None, tower: dict[str, str | int] | None = None):
        self.features, self.tower, self.computed, self.last = features or {}, tower, 0, []

    @classmethod
    def load(cls, folder: str | Path, loaded: Loaded | None = None, optional: bool = False) -> "FeatureStore":
        """The store that `save` wrote.

        Args:
            folder: where it is.
            loaded: a model with the tower that the features must be of; None for any.
            optional: whether features of another tower give an empty store instead of an error.

        Raises:
            UserError: there is none; it is cut, changed or short of images; or it is of another tower.
        """
        path, expected = Path(folder) / FILE, "the features that the stage `encode` wrote"
        try:
            with safe_open(path, "pt") as file:
                noted, _, tower = (file.metadata() or {}).get("content", "").partition(BY)
            tower = json.loads(tower or "null")
            if optional and tower != describe(loaded):
                return cls()
            store = cls(load_file(path), tower)
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
        """Let a plain or PEFT-wrapped model look its image features up here."""
        network, visual = without_peft(model), tower(model)
        family, backbone = FAMILIES[network.config.model_type], network.model
        if family.grid:
            replace_forward(visual, self._tower_forward(type(visual).forward, family.deepstack))
        else:
            look_up = self._image_features(type(backbone).get_image_features, family.vision[0])
            replace_forward(backbone, look_up, "get_image_features")

    def _tower_forward(self, compute, deepstack: bool):
        """The forward pass of a Qwen's tower, with a look-up."""

        def forward(visual, hidden_states, grid_thw, **kwargs):
            # Cast as by the library, which a caller of the tower itself has not done.
            keys = patch_keys(hidden_states.to(visual.dtype), grid_thw)
            rows = hidden_states.split(grid_thw.prod(-1).tolist())

            def feature(index):
                output = compute(visual, rows[index], grid_thw[index : index + 1], **kwargs)
                if not deepstack:
                    return output.pooler_output
                return torch.stack([output.pooler_output, *output.deepstack_features])

            found = torch.cat(self._found(visual, keys, feature, hidden_states.device), -2)
            found = found.to(hidden_states.device, visual.dtype)
            if not deepstack:
                return BaseModelOutputWithPooling(pooler_output=found)
            from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

            return BaseModelOutputWithDeepstackFeatures(pooler_output=found[0], deepstack_features=list(found[1:]))

        return forward

    def _image_features(self, compute, name: str):
        """The method `get_image_features` of a backbone with the tower `name`, with a look-up."""

        def get_image_features(backbone, pixel_values, pixel_attention_mask=None, **kwargs):
            visual = getattr(backbone, name)
            images = _images(pixel_values.to(visual.dtype), pixel_attention_mask)

            def feature(index):
                return compute(backbone, *filter(torch.is_tensor, images[index]), return_dict=True).pooler_output[0]

            keys = [_key(*image) for image in images]
            found = self._found(visual, keys, feature, pixel_values.device)
            found = [one.to(pixel_values.device, visual.dtype) for one in found]
            return BaseModelOutputWithPooling(pooler_output=torch.stack(found) if pixel_values.ndim == 4 else found)

        return get_image_features

    def _found(self, visual, keys: list[str], feature, device) -> list[torch.Tensor]:
        """The features of some keys; one that is not there is computed on the device by `feature(index)`."""
        self.last = keys
        for index, key in enumerate(keys):
            if key not in self.features:
                _bring_back(visual, device)
                with torch.no_grad():
                    self.features[key] = feature(index).cpu()
                self.computed += 1
        return [self.features[key] for key in keys]


def describe(loaded: Loaded) -> dict[str, str | int]:
    """What the features of a model's vision tower depend on: its weights and dtype, and the scaling of images.

    Returns:
        `weights` (hash of names and values of tower and projector), `dtype`, and of a scaled image `min_pixels` and
        `max_pixels` or, for families other than the Qwens, all settings of `size`.
    """
    modules, processor = vision_modules(loaded.model), loaded.processor.image_processor
    weights = modules[0].state_dict()
    for module in modules[1:]:
        weights |= {f"projector.{name}": value for name, value in module.state_dict().items()}
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    if "shortest_edge" in size:
        size = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    dtype = str(modules[0].dtype).removeprefix("torch.")
    return {"weights": _digest(weights), "dtype": dtype, **size}


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
    """The vision tower of a plain or PEFT-wrapped model."""
    return vision_modules(model)[0]


def offload(model) -> None:
    """Offload the vision tower until a cache miss, except for its first weights, which tell device and dtype."""
    visual = tower(model)
    _, *rest = (name for name, part in visual.named_children() if any(True for _ in part.parameters()))
    visual.away = {name: visual._modules.pop(name).cpu() for name in rest}


def _bring_back(visual, device: torch.device) -> None:
    for name, part in visual.__dict__.pop("away", {}).items():
        visual.add_module(name, part.to(device, visual.dtype))
