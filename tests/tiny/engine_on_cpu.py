"""Trains on two processes with FSDP 2 or DeepSpeed, without a GPU: `main`, with the arguments <step> <method> ...

Both processes are killed at this step of the first method, and started again. `accelerate launch` reads the config
file. Two things differ from a run on GPUs: Accelerate takes a CPU for a GPU, since it shards weights among GPUs only;
and the processes are forked, to import the libraries once.
"""

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import wait

import torch.distributed.run
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils.other import get_free_port
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from rarl.params import load_params
from rarl.processes import launch
from rarl.training import rl, sft


def shard_on_cpu() -> None:
    prepare = AcceleratorState.__init__

    def prepare_and_shard(self, *args, fsdp_plugin=None, **kwargs):
        prepare(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = prepare_and_shard


def train(rank: int, methods: list[str], kill_at: int | None) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    params = load_params()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        import deepspeed

        deepspeed.init_distributed("gloo")  # as Accelerate does on GPUs

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            weights = list(model.parameters())
            assert weights and all(isinstance(weight, DTensor) for weight in weights) == trainer.is_fsdp_enabled
            assert trainer.is_fsdp_enabled != trainer.is_deepspeed_enabled
            if state.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    for method in methods:
        run, trainer, loaded = sft.prepare(params) if method == "sft" else rl.prepare(method, params)
        trainer.add_callback(Watch())
        run.train_to_end(trainer, loaded)


def run(args) -> None:
    """Instead of `torch.distributed.run.run`."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ[launch.STARTED] = "1"
    step, *methods = args.training_script_args
    assert not on_two_processes(methods[:1], int(step)), "killed"
    sys.exit(not on_two_processes(methods, None))


def on_two_processes(methods: list[str], kill_at: int | None) -> bool:
    """Whether both have ended without an error."""
    os.environ["MASTER_PORT"] = str(get_free_port())
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train, args=(rank, methods, kill_at)) for rank in (0, 1)]
    for process in processes:
        process.start()
    left = {process.sentinel: process for process in processes}
    while left:
        for sentinel in wait(left):
            ended = left.pop(sentinel)
            ended.join()
            if ended.exitcode:
                for process in left.values():
                    process.kill()
                    process.join()
                return False
    return True


def main() -> None:
    launch._cuda = lambda: True
    launch.check_config(load_params())
    shard_on_cpu()
    torch.distributed.run.run = run
    config = load_params().accelerate.config
    arguments = ["--config_file", config, "--num_processes", "2", "-m", "engine_on_cpu", *sys.argv[1:]]
    launch_command(launch_command_parser().parse_args(arguments))
