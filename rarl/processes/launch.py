"""Starting a stage on several processes through Hugging Face Accelerate, if `accelerate.processes` is above 1."""

import importlib.util
import json
import os
import sys
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from rarl.errors import UserError
from rarl.params import Params
from rarl.processes.stopping import run_launcher

#: Set in the processes that this module starts.
STARTED = "RARL_LAUNCHED"


def on_several_processes(params: Params, module: str, arguments: list[str] | None = None) -> bool:
    """Run `python -m <module>` on the configured processes and wait; False if this process should do the work itself.

    Raises:
        UserError: `accelerate.config` is not supported, or a process failed and printed its error.
    """
    settings = params.accelerate
    if os.environ.get(STARTED) or (settings.processes == 1 and settings.config is None):
        return False
    check_config(params)
    environment = {**os.environ, STARTED: "1", "OMP_NUM_THREADS": str(params.model.threads)}
    count = str(settings.processes)
    if settings.config is None and _without_gpu(params):
        # `accelerate launch` starts CPU processes with MPI only: torchrun sets the variables that Accelerate reads.
        environment["ACCELERATE_USE_CPU"] = "true"
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", count]
    else:
        given = ["--config_file", settings.config] if settings.config else ["--multi_gpu"]
        command = ["accelerate.commands.launch", *given, "--num_processes", count]
    command = [sys.executable, "-m", *command, "-m", module, *(arguments or [])]
    if code := run_launcher(command, environment):
        raise UserError(
            f"{module} on {settings.processes} processes",
            f"exit code {code}",
            "exit code 0",
            "look at the first error above; `accelerate.processes: 1` runs the stage on one process",
        )
    return True


def check_config(params: Params) -> None:
    """Check Accelerate's config file, if there is one, for settings that fail later or silently have no effect.

    Raises:
        UserError: the file cannot be read; weights cannot be saved whole (FSDP 1); FSDP or DeepSpeed without a GPU,
            where Accelerate silently runs DDP, or with bitsandbytes; or DeepSpeed is not installed.
    """
    if (path := params.accelerate.config) is None:
        return
    kind, fsdp_version = _read_config(path)
    deepspeed, fsdp = kind == "DEEPSPEED", kind == "FSDP"
    if fsdp and fsdp_version != "2":
        found, expected = f"fsdp_version {fsdp_version}", "fsdp_version 2"
        fix = "use rarl/accelerate/fsdp.yaml, or choose version 2 in `accelerate config`"
    elif (deepspeed or fsdp) and _without_gpu(params):
        found, expected = f"{kind} without a GPU, where Accelerate runs DDP instead", "GPUs, or DDP"
        fix = "set it to null (DDP); on a machine with GPUs set model.device to cuda"
    elif (deepspeed or fsdp) and params.bitsandbytes:
        found, expected = f"{kind} with {params.bitsandbytes}", "DDP, in which each process has all weights"
        fix = f"set it to null (DDP), or unset {params.bitsandbytes.split(' ')[0]}"
    elif deepspeed and importlib.util.find_spec("deepspeed") is None:
        found, expected = "the package deepspeed is not installed", "DeepSpeed"
        fix = "`pip install deepspeed`, or use rarl/accelerate/fsdp.yaml"
    else:
        return
    raise UserError(f"accelerate.config = {path}", found, expected, fix)


def _read_config(path: str) -> tuple[str | None, str]:
    """Distributed type and FSDP version of Accelerate's config file; DeepSpeed's that it names can be read, too."""
    try:
        config = YAML(typ="safe").load(Path(path))
        fsdp, zero = config.get("fsdp_config") or {}, config.get("deepspeed_config") or {}
        if file := zero.get("deepspeed_config_file"):
            json.loads(Path(file).read_text(encoding="utf-8"))
        return config.get("distributed_type"), str(fsdp.get("fsdp_version", 1))
    except (YAMLError, AttributeError, OSError, ValueError) as error:
        found = f"cannot be read: {error}" if os.path.isfile(path) else "no such file"
        expected = "a file that `accelerate config` writes, or one of rarl/accelerate/"
        fix = "correct the file or its path, or set it to null"
        raise UserError(f"accelerate.config = {path}", found, expected, fix) from None


def on_one_cpu_process(params: Params) -> bool:
    """Whether stages compute in one process, without a GPU."""
    settings = params.accelerate
    return settings.processes == 1 and settings.config is None and _without_gpu(params)


def is_main_process() -> bool:
    """Whether this process writes the stage's outputs."""
    return os.environ.get("RANK", "0") == "0"


def _without_gpu(params: Params) -> bool:
    return params.model.device == "cpu" or not _cuda()


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
