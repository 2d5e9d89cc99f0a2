"""Weights that FSDP 2 or DeepSpeed ZeRO stage 3 shards among the processes."""

from collections.abc import Callable
from typing import TypeVar

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from trl.distributed import DistributedBackend

from rarl.processes.launch import is_main_process

T = TypeVar("T")


def shards_weights(accelerator) -> bool:
    """Whether a process has only a part of the weights between forward passes."""
    backend = DistributedBackend(accelerator)
    return backend.is_fsdp or backend.is_zero3


def with_whole_weights(model, work: Callable[[], T]) -> T:
    """Return `work()`, with all weights of the model in this process if FSDP 2 shards them.

    FSDP gathers a layer's weights before the layer's forward pass, and the others before the whole model's. Decoding
    calls parts of the model, and reads the weights themselves.
    """
    if not isinstance(model, FSDPModule):
        return work()

    def gather_and_work() -> T:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
        return work()

    model.gather_and_work = gather_and_work
    register_fsdp_forward_method(model, "gather_and_work")
    try:
        return model.gather_and_work()
    finally:
        del model.gather_and_work


def gathered(model, trainable_only: bool) -> dict:
    """The state dict of a sharded model, on the CPU and in the main process; all processes have to call it."""
    if not any(hasattr(weight, "ds_id") for weight in model.parameters()):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trainable_only)
        return get_model_state_dict(model, options=options)
    import deepspeed

    state = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad or not trainable_only:
            with deepspeed.zero.GatheredParameters([weight]):
                if is_main_process():
                    state[name] = weight.detach().to("cpu", copy=True)
    return state


def count_trainable(model) -> int:
    """Number of trainable parameters, those of other processes included."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
