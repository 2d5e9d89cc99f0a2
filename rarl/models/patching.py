"""Replacing the forward pass of single modules of a loaded model."""

from types import MethodType

import torch
from torch.nn.functional import linear


def without_peft(model):
    """The model below PEFT's wrapper, if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def replace_forward(module, forward) -> None:
    """Let this module, and later copies of it, run `forward(module, ...)`."""
    if getattr(module.forward, "__func__", None) is not forward:
        module.forward = MethodType(forward, module)


def embed_patches(module, pixels: torch.Tensor) -> torch.Tensor:
    """The vision tower's patch embedding as a matrix product: its convolution has a stride of its kernel's size.

    In bfloat16 the convolution takes seconds with some versions of cuDNN. pixels: (patches, patch size).
    """
    weight = module.proj.weight
    return linear(pixels.to(weight.dtype), weight.flatten(1), module.proj.bias)
