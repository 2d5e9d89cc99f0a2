"""Starts a training on real FSDP2 without a GPU: `python -m fsdp_on_cpu <method>` beside a project's params.yaml.

Accelerate shards weights among GPUs only. Here a CPU counts as a GPU, for Accelerate and for `rarl.launch`.
"""

import os
import signal
import sys

from rarl import launch
from rarl.params import load_params


def shard_on_cpu() -> None:
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    prepare = AcceleratorState.__init__

    def prepare_and_shard(self, *args, fsdp_plugin=None, **kwargs):
        prepare(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = prepare_and_shard


def main(method: str) -> None:
    params = load_params()
    launch._cuda = lambda: True
    if launch.on_several_processes(params, "fsdp_on_cpu", [method]):
        return
    from torch.distributed.tensor import DTensor
    from transformers import TrainerCallback

    from rarl.training import rl, sft

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            weights = list(model.parameters())
            assert weights and all(isinstance(weight, DTensor) for weight in weights)
            if state.global_step == int(os.environ.get("KILL_AFTER", "-1")):
                os.kill(os.getpid(), signal.SIGKILL)

    shard_on_cpu()
    run, trainer, loaded = sft.prepare(params) if method == "sft" else rl.prepare(method, params)
    trainer.add_callback(Watch())
    run.train_to_end(trainer, loaded)


if __name__ == "__main__":
    main(*sys.argv[1:])
