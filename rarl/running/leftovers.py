"""Results of models, judges and benchmarks that `params.yaml` no longer lists."""

import shutil
from pathlib import Path

from rarl.params import Params
from rarl.registry import BENCHMARKS


def remove_leftovers(params: Params) -> list[Path]:
    """Delete the results of what is no longer listed from the workspace, and return what was deleted.

    Stages depend on whole folders: a leftover would make this clone's folder differ from one without it, and each
    would run the stages again. DVC's cache keeps what was committed: if a model is listed again, DVC checks its
    predictions out.
    """
    paths = []
    for name in set(BENCHMARKS) - set(params.benchmarks):
        paths += [Path(f"data/benchmarks/{name}.jsonl"), Path(f"data/benchmarks/pictures/{name}")]
        paths += [Path(f"metrics/benchmark/{name}.json")]
    folders = ("data/predictions", "data/verdicts", "metrics/scores", "metrics/breakdown")
    for pattern in (f"{folder}/[!.]*" for folder in folders):
        paths += [path for path in Path().glob(pattern) if path.stem not in params.models]
    judged = [path for model in params.models for path in Path(f"data/verdicts/{model}").glob("*")]
    paths += [path for path in judged if path.name not in params.judges]
    paths = sorted(path for path in paths if path.exists())
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return paths
