"""Data sets: one adapter per release, the audits across splits, and the drawn phantoms.

`ADAPTERS` maps a benchmark's slug to its adapter module, which `release.read` takes. `SOURCES` maps a
training source's slug (`train.source`) to a module with
`training(root, params, pictures) -> {"train", "dev", "test": Release}`.
"""

from importlib import import_module
from types import ModuleType

ADAPTERS: dict[str, ModuleType]
SOURCES: dict[str, ModuleType]

_NAMES = {
    "ADAPTERS": ("slake", "vqa_rad", "vqa_med", "path_vqa", "cv_bench", "own"),
    "SOURCES": ("silvar_med", "own", "sat"),
}


def __getattr__(name: str):
    # Imported on first use: the phantom stage lies in this package and must not depend on the adapters.
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = {slug: import_module(f"{__name__}.{slug}") for slug in _NAMES[name]}
    return globals()[name]
