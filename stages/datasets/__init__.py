"""Data sets: one adapter per release, the audits across splits, and the drawn phantoms.

`ADAPTERS` maps a benchmark's slug to its adapter module. Each has `FOLDERS` (the spellings of its
folder below `data.root`) and `read(root, split) -> Release`.
"""

from types import ModuleType

ADAPTERS: dict[str, ModuleType]


def __getattr__(name: str):
    # Imported on first use: the phantom stage lies in this package and must not depend on the adapters.
    if name != "ADAPTERS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stages.datasets import cv_bench, path_vqa, slake, vqa_med, vqa_rad

    globals()["ADAPTERS"] = {
        "slake": slake,
        "vqa_rad": vqa_rad,
        "vqa_med": vqa_med,
        "path_vqa": path_vqa,
        "cv_bench": cv_bench,
    }
    return globals()["ADAPTERS"]
