"""Data sets: one adapter per release.

`ADAPTERS` maps a benchmark's slug to its adapter module, which `release.read` takes. `SOURCES` maps a
training source's slug (`train.source`) to a module with
`training(root, params, images) -> {"train", "dev", "test": Release}`.
"""

from types import ModuleType

from rarl.data.adapters import cv_bench, own, path_vqa, sat, silvar_med, slake, vqa_med, vqa_rad

ADAPTERS: dict[str, ModuleType] = {
    "slake": slake,
    "vqa_rad": vqa_rad,
    "vqa_med": vqa_med,
    "path_vqa": path_vqa,
    "cv_bench": cv_bench,
    "own": own,
}
SOURCES: dict[str, ModuleType] = {"silvar_med": silvar_med, "own": own, "sat": sat}
