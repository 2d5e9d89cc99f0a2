"""Data sets: one module per release, `rarl/data/adapters/<name>.py`, under its name in `rarl/registry.py`.

A benchmark's module defines what `rarl.data.release.read` takes: its folders, splits, published counts and rows. A
training source's module defines `training(root, params, images) -> {"train", "dev", "test": Release}`.
"""

from importlib import import_module
from types import ModuleType


def load_adapter(name: str) -> ModuleType:
    """Import the adapter of a data set."""
    return import_module(f"{__name__}.{name}")
