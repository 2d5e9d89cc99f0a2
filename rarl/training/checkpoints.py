"""Complete checkpoints only, and a stop before a number that is not finite reaches the weights."""

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from rarl.errors import UserError
from rarl.processes.stopping import StopRequest
from rarl.records import write_json

#: Written into a checkpoint after everything else: file names and sizes.
COMPLETE = "whole.json"


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; newer ones, which a killed process left incomplete, are deleted."""
    while last := get_last_checkpoint(str(folder)):
        mark = Path(last) / COMPLETE
        if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == _sizes(Path(last)):
            return last
        tqdm.write(f"{last} is incomplete and is deleted")
        shutil.rmtree(last)
    return None


def digests(tensors: Iterable[torch.Tensor]) -> set[str]:
    """Hashes of tensors' shapes and values, independent of their dtype.

    >>> digests([torch.ones(2)]) == digests([torch.ones(2).bfloat16()]) != digests([torch.ones(2, 1)])
    True
    """
    rows = (tensor.detach().to("cpu", torch.float32).contiguous().numpy() for tensor in tensors)
    return {f"{xxhash.xxh3_128_hexdigest(row)}{row.shape}" for row in rows}


def check_weights(folder: Path, untrained: set[str]) -> bool:
    """Read the weights that were written into a folder, and return whether training has changed any of them.

    Args:
        folder: of one or more `*.safetensors`, at any depth.
        untrained: `digests` of the weights before the first step.

    Raises:
        UserError: there is no weight, or one that is empty or not finite.
    """
    trained, files = False, sorted(folder.rglob("*.safetensors"))
    if not files:
        raise _unusable(folder, "no weight")
    for path in files:
        with safe_open(path, "pt") as weights:
            names = list(weights.keys())
            if not names:
                raise _unusable(path, "no weight")
            for name in names:
                weight = weights.get_tensor(name)
                if not weight.numel():
                    raise _unusable(path, f"{name} is empty: {tuple(weight.shape)}")
                if not weight.isfinite().all():
                    raise _unusable(path, f"{name} is not finite")
                trained = trained or not digests([weight]) <= untrained
    return trained


def _unusable(path: Path, found: str) -> UserError:
    fix = "if they are not finite, lower the learning rate; else train on one process, with DDP or with "
    fix += "rarl/accelerate/fsdp.yaml (accelerate.config). Nothing was written to data/models"
    return UserError(str(path), found, "complete and finite weights", fix)


class FiniteLossMixin:
    """Mixin for a trainer: stops at a loss that is not finite, and saves its batch.

    `batch` holds the tensors as the model gets them; for GRPO they are those of the sampled completions.
    """

    batch: dict | None = None
    state_name = "training"

    def compute_loss(self, model, inputs, *args, **kwargs):
        """As the trainer's."""
        self.batch = inputs
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss):
            self.stop_for("loss", loss.item())
        return result

    def stop_for(self, name: str, value: float) -> None:
        """Save the batch and raise a UserError; the last checkpoint stays as it is."""
        step = self.state.global_step + 1
        folder = Path(self.args.output_dir) / f"not-finite-step-{step}"
        folder.mkdir(exist_ok=True)
        tensors = {k: v.detach().cpu() for k, v in self.batch.items() if torch.is_tensor(v)}
        torch.save(tensors, folder / "batch.pt")
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        ids = tensors.keys() & {"input_ids", "prompt_ids", "completion_ids"}
        texts = {key: tokenizer.batch_decode(tensors[key]) for key in sorted(ids)}
        scalars = {k: v.tolist() for k, v in tensors.items() if k == "advantages"}
        write_json(folder / "batch.json", {"step": step, name: str(value), **scalars, **texts})
        fix = f"look at the batch in {folder}; then lower the learning rate, or train.max_grad_norm"
        fix += ". The weights were not changed: the run resumes from its last checkpoint"
        raise UserError(f"{self.state_name}, step {step}", f"{name} = {value}", "a finite number", fix)


class CheckpointGuard(TrainerCallback):
    """Marks complete checkpoints, and stops before an optimizer step with a gradient that is not finite."""

    def __init__(self, trainer: FiniteLossMixin):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Check the gradients' norm."""
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self.trainer.stop_for("grad_norm", norm)

    def on_save(self, args, state, control, **kwargs):
        """Mark the checkpoint as complete."""
        self.trainer.accelerator.wait_for_everyone()  # each process writes its random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / COMPLETE, _sizes(folder))


class StopAfterStep(TrainerCallback):
    """Saves a checkpoint and stops training after a step in which one of the processes was asked to."""

    def __init__(self, request: StopRequest, accelerator):
        self.request, self.accelerator = request, accelerator

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop, where RL has used its completions for the last time."""
        if self.accelerator.num_processes > 1:  # the signal may reach them in different steps
            number = torch.tensor(self.request.signal or 0, device=self.accelerator.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.request.signal = int(number) or None
        if self.request.signal and state.global_step % getattr(args, "num_iterations", 1) == 0:
            control.should_save = control.should_training_stop = True
