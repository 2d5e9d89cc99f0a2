"""What makes a run safe to leave alone: whole checkpoints only, and a stop before bad numbers reach the weights."""

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
from rarl.records import write_json

#: Written into a checkpoint when everything else is there: file names and sizes.
WHOLE = "whole.json"


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != WHOLE
    }


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; newer ones that a kill cut short are deleted."""
    while last := get_last_checkpoint(str(folder)):
        mark = Path(last) / WHOLE
        if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == _sizes(Path(last)):
            return last
        tqdm.write(f"{last} was cut short and is deleted")
        shutil.rmtree(last)
    return None


def digests(tensors: Iterable[torch.Tensor]) -> set[str]:
    """Hashes of tensors' values, whatever their dtype."""
    rows = (tensor.detach().to("cpu", torch.float32).contiguous().numpy() for tensor in tensors)
    return {f"{xxhash.xxh3_128_hexdigest(row)}{row.shape}" for row in rows}


def check_weights(folder: Path, untrained: set[str]) -> bool:
    """Read the weights that were written into `folder`; returns whether training has changed any of them.

    Args:
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
    return UserError(
        str(path),
        found,
        "whole and finite weights",
        "where they are not finite, lower the learning rate; else train on one process, by DDP or by "
        "rarl/accelerate/fsdp.yaml (accelerate.config). Nothing was written to data/models",
    )


class Watched:
    """Mixin for a trainer: remembers the batch that the loss is computed of.

    `batch` holds the tensors as the model gets them; for GRPO they are those of the sampled completions.
    """

    batch: dict | None = None

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.batch = inputs
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss):
            self.stop_for("loss", loss.item())
        return result

    def stop_for(self, name: str, value: float) -> None:
        """Write the batch aside and end the run; the last checkpoint stays as it was.

        Raises:
            UserError: always.
        """
        step = self.state.global_step + 1
        aside = Path(self.args.output_dir) / f"not-finite-step-{step}"
        aside.mkdir(exist_ok=True)
        tensors = {k: v.detach().cpu() for k, v in self.batch.items() if torch.is_tensor(v)}
        torch.save(tensors, aside / "batch.pt")
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        texts = {
            key: tokenizer.batch_decode(tensors[key])
            for key in ("input_ids", "prompt_ids", "completion_ids")
            if key in tensors
        }
        scalars = {k: v.tolist() for k, v in tensors.items() if k == "advantages"}
        write_json(aside / "batch.json", {"step": step, name: str(value), **scalars, **texts})
        raise UserError(
            f"{self.state_name}, step {step}",
            f"{name} = {value}",
            "a finite number",
            f"look at the batch in {aside}; then lower the learning rate, or train.max_grad_norm. The weights were "
            "not touched: the run goes on from its last checkpoint",
        )

    state_name = "training"


class Safety(TrainerCallback):
    """Marks whole checkpoints, and stops before an optimizer step that is not finite."""

    def __init__(self, trainer: Watched):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self.trainer.stop_for("grad_norm", norm)

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()  # each process writes its random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / WHOLE, _sizes(folder))
