"""Starting a stage on several processes through Hugging Face Accelerate, where `accelerate.processes` asks for them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from rarl.errors import UserError
from rarl.params import Params

#: Set in the processes that were started here.
STARTED = "RARL_LAUNCHED"


def on_several_processes(params: Params, module: str, arguments: list[str] | None = None) -> bool:
    """Run `python -m <module>` on the processes asked for and wait; False where this process is to do the work itself.

    Raises:
        UserError: `accelerate.config` asks for what is not supported, or a process failed: its error stands above.
    """
    settings = params.accelerate
    if os.environ.get(STARTED) or (settings.processes == 1 and settings.config is None):
        return False
    check_config(params)
    environment = {**os.environ, STARTED: "1", "OMP_NUM_THREADS": str(params.model.threads)}
    count = str(settings.processes)
    if settings.config is None and (params.model.device == "cpu" or not _cuda()):
        # `accelerate launch` starts processes without GPUs by MPI only: torchrun sets up what Accelerate reads.
        environment["ACCELERATE_USE_CPU"] = "true"
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", count]
    else:
        given = ["--config_file", settings.config] if settings.config else ["--multi_gpu"]
        command = ["accelerate.commands.launch", *given, "--num_processes", count]
    command = [sys.executable, "-m", *command, "-m", module, *(arguments or [])]
    code = subprocess.run(command, env=environment).returncode
    if code:
        raise UserError(
            f"{module} on {settings.processes} processes",
            f"exit code {code}",
            "every process at its end",
            "look at the first error above; `accelerate.processes: 1` runs the same on one",
        )
    return True


def check_config(params: Params) -> None:
    """Read Accelerate's config file, if there is one, for what would fail later or silently do something else.

    Raises:
        UserError: no such file; weights that cannot be saved whole (ZeRO stage 3, FSDP 1); FSDP or DeepSpeed without a
            GPU, where Accelerate runs DDP and does not say so; or DeepSpeed is not installed.
    """
    path = params.accelerate.config
    if path is None:
        return
    written = "a file that `accelerate config` writes, or one of rarl/accelerate/"
    if not os.path.isfile(path):
        raise _refused(path, "no such file", written, "correct the path, or set it to null")
    try:
        config = YAML(typ="safe").load(Path(path))
        kind = config.get("distributed_type")
        fsdp_version = (config.get("fsdp_config") or {}).get("fsdp_version", 1)
        zero_stage = _zero_stage(config.get("deepspeed_config") or {})
    except (YAMLError, AttributeError, OSError, ValueError) as error:
        raise _refused(path, f"cannot be read: {error}", written, "correct the file") from None
    if kind == "DEEPSPEED" and str(zero_stage) == "3":
        raise _refused(
            path,
            "DeepSpeed ZeRO stage 3, whose weights cannot be saved whole here",
            "ZeRO stage 1 or 2, or FSDP 2, which shards the weights as stage 3 does",
            "take rarl/accelerate/fsdp.yaml, or set zero_stage to 2",
        )
    if kind == "FSDP" and str(fsdp_version) != "2":
        raise _refused(
            path,
            f"fsdp_version {fsdp_version}",
            "fsdp_version 2",
            "take rarl/accelerate/fsdp.yaml, or choose version 2 in `accelerate config`",
        )
    if kind in ("FSDP", "DEEPSPEED") and (params.model.device == "cpu" or not _cuda()):
        raise _refused(
            path,
            f"{kind} without a GPU, where Accelerate runs DDP instead",
            "GPUs, or DDP",
            "set it to null (DDP); on a machine with GPUs set model.device to cuda",
        )
    if kind == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise _refused(
            path,
            "the package deepspeed is not installed",
            "DeepSpeed",
            "`pip install deepspeed`, or take rarl/accelerate/fsdp.yaml",
        )


def _refused(path: str, found: str, expected: str, fix: str) -> UserError:
    return UserError(f"accelerate.config = {path}", found, expected, fix)


def _zero_stage(config: dict) -> int | None:
    """The stage in Accelerate's block `deepspeed_config`, or in DeepSpeed's own file where the block names one."""
    if path := config.get("deepspeed_config_file"):
        own = json.loads(Path(path).read_text(encoding="utf-8"))
        return own.get("zero_optimization", {}).get("stage")
    return config.get("zero_stage")


def is_main_process() -> bool:
    """Whether this process is to write the stage's outputs."""
    return os.environ.get("RANK", "0") == "0"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
