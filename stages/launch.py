"""Starting a stage on several processes through Hugging Face Accelerate, where `accelerate.processes` asks for them."""

import os
import subprocess
import sys

from stages.errors import UserError
from stages.params import Params

#: Set in the processes that were started here.
STARTED = "RARL_LAUNCHED"


def on_several_processes(params: Params, module: str, arguments: list[str] | None = None) -> bool:
    """Run `python -m <module>` on the processes asked for and wait; False where this process is to do the work itself.

    Raises:
        UserError: a process failed. What it said stands above.
    """
    settings = params.accelerate
    if os.environ.get(STARTED) or (settings.processes == 1 and settings.config is None):
        return False
    if settings.config is not None and not os.path.isfile(settings.config):
        raise UserError(
            f"accelerate.config = {settings.config}",
            "no such file",
            "a file that `accelerate config` writes, or one of stages/accelerate/",
            "correct the path, or set accelerate.config to null",
        )
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


def is_main_process() -> bool:
    """Whether this process is to write the stage's outputs."""
    return os.environ.get("RANK", "0") == "0"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
