"""Replacing the forward pass of single modules of a loaded model."""

from types import MethodType

import torch
from torch.nn.functional import linear

from rarl.models.families import FAMILIES


def without_peft(model):
    """The model below PEFT's wrapper, if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def vision_modules(model) -> list:
    """The vision tower of a plain or PEFT-wrapped model, and its projector where the tower has none of its own."""
    network = without_peft(model)
    return [getattr(network.model, name) for name in FAMILIES[network.config.model_type].vision]


def replace_forward(module, forward, name: str = "forward") -> None:
    """Let the method `name` of this module, and of later copies of it, run `forward(module, ...)`."""
    if getattr(getattr(module, name), "__func__", None) is not forward:
        setattr(module, name, MethodType(forward, module))


def embed_patches(module, pixels: torch.Tensor) -> torch.Tensor:
    """The vision tower's patch embedding as a matrix product: its convolution has a stride of its kernel's size.

    In bfloat16 the convolution takes seconds with some versions of cuDNN. pixels: (patches, patch size).
    """
    weight = module.proj.weight
    return linear(pixels.to(weight.dtype), weight.flatten(1), module.proj.bias)
