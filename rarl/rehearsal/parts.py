"""The parts of a rehearsal, each run by `python -m rarl.rehearsal.parts <part>` in the project's folder.

A part calls what its stage calls, and writes its seconds and peak memory to `<part>.json`.
"""

import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from rarl.params import Params, load_params
from rarl.records import write_json
from rarl.registry import METHODS
from rarl.running.entry import ignore_warnings_between_libraries


def base(params: Params) -> None:
    """The base's random weights."""
    from rarl.rehearsal.weights import write_weights

    write_weights(Path(params.base.source))


def encode(params: Params) -> None:
    """Features of the training, development and test images."""
    from rarl.encoding import encode

    output = Path("data/features/training")
    encode([Path(f"data/curated/{split}.jsonl") for split in ("train", "dev", "test")], output, params)
    shutil.copytree(output, "data/features/benchmarks")


def sft(params: Params) -> None:
    """One step of SFT."""
    from rarl.training.sft import train_sft

    train_sft(params)


def grpo(params: Params) -> None:
    """One step of GRPO."""
    _one_rl_step("grpo", params)


def rarl(params: Params) -> None:
    """One step of RARL."""
    _one_rl_step("rarl", params)


def _one_rl_step(method: str, params: Params) -> None:
    from rarl.training.rl import prepare

    def number(completions, **_):
        return [float(row) for row in range(len(completions))]

    run, trainer, loaded = prepare(method, params)
    # Completions of random weights get equal rewards, and so no gradient: one reward numbers them instead.
    trainer.reward_funcs[0] = number
    run.train_to_end(trainer, loaded)


def infer(params: Params, model: str) -> None:
    """One batch of a model."""
    from rarl.inference.predictions import infer

    infer(model, params)


#: In the order of the pipeline.
PARTS = {part.__name__: part for part in (base, encode, sft, grpo, rarl)}
PARTS |= {f"infer_{model}": partial(infer, model=model) for model in ("base", *METHODS)}


def peak_bytes() -> int:
    """Peak of the GPU's memory if this process used one, otherwise of the process's resident memory."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(part: str) -> None:
    """Run a part in the present folder."""
    ignore_warnings_between_libraries()
    started = time.perf_counter()
    PARTS[part](load_params())
    write_json(f"{part}.json", {"seconds": time.perf_counter() - started, "peak": peak_bytes()})


if __name__ == "__main__":
    main(sys.argv[1])
