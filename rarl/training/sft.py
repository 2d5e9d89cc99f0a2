"""Supervised fine-tuning, the paper's first baseline: TRL's SFTTrainer on annotated reasoning and answers."""

import math
from functools import partial
from pathlib import Path

import torch
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from rarl.models.loading import Loaded
from rarl.models.patching import without_peft
from rarl.models.quantization import Float32AdapterMixin
from rarl.models.shared_prefix.layers import patch_layers
from rarl.models.shared_prefix.layout import group_by_prefix
from rarl.params import Params
from rarl.training.checkpoints import FiniteLossMixin
from rarl.training.data import choose, schedule, target, user_message, with_images
from rarl.training.log_probs import frozen_head, frozen_head_scores
from rarl.training.run import Run


class CompletionsOnlyMixin:
    """Mixin for `SFTTrainer`: padding does not run, and the last layer and the head run for completions only.

    Loss, metrics and gradients are TRL's (`tests/tiny/test_shared_prefix.py`). What does not fit falls back to TRL.
    """

    def compute_loss(self, model, inputs, *args, **kwargs):
        """As TRL's."""
        network, completion = without_peft(model), inputs["labels"] != -100
        fits = (
            network is without_peft(self.accelerator.unwrap_model(model))
            and len(inputs.get("image_grid_thw", inputs.get("pixel_values", ()))) == len(inputs["input_ids"])
            and patch_layers(network) is None
            and frozen_head(network) is not None
            and completion.any()
            and (inputs["attention_mask"].bool() & ~completion).sum(1).min() > 1
        )
        return super().compute_loss(partial(_completion_scores, network) if fits else model, inputs, *args, **kwargs)


def _completion_scores(
    network, input_ids, attention_mask, labels, pixel_values, image_grid_thw=None, pixel_attention_mask=None, **_
) -> FusedCausalLMOutput:
    """The output of TRL's fused head, each field (completion tokens of all rows,).

    input_ids, attention_mask, labels: (rows, tokens), labels -100 before the completion. One image per row.
    """
    real, completion = attention_mask.bool(), labels != -100
    prompts = [ids[here] for ids, here in zip(input_ids, real & ~completion)]
    images = pixel_values, image_grid_thw, [1] * len(prompts)
    prefixes, suffixes = group_by_prefix(prompts, *images, pixel_mask=pixel_attention_mask)
    completions = [ids[here] for ids, here in zip(input_ids, completion)]
    log_probs, entropy, is_top1 = frozen_head_scores(network, prefixes, suffixes, completions, 1.0)
    mask = torch.ones_like(is_top1)
    return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)


class Trainer(Float32AdapterMixin, FiniteLossMixin, CompletionsOnlyMixin, SFTTrainer):
    """TRL's trainer, without work on tokens that have no loss, and with a stop at a loss that is not finite."""


def train_sft(params: Params) -> dict:
    """Train and write `data/models/sft`. Returns the run's metrics."""
    run, trainer, loaded = prepare(params)
    return run.train_to_end(trainer, loaded)


def prepare(params: Params) -> tuple[Run, Trainer, Loaded]:
    """The run, its trainer and its model, ready to start."""
    sft = params.sft
    run = Run("sft", params, sft.model_dump())
    samples = choose(run.train, params.train.samples, params.seed)
    rows = [
        {
            "prompt": user_message(prompt, sample.question),
            "completion": [{"role": "assistant", "content": target(sample)}],
            "path": sample.image,
        }
        for sample, prompt in schedule(samples, ["reasoning"], math.ceil(sft.epochs), params.seed)
    ]
    loaded = run.load()
    config = SFTConfig(
        **run.common_arguments(),
        **run.batches(sft.batch_size, sft.micro_batch_size, "sft.batch_size"),
        max_steps=math.ceil(len(samples) * sft.epochs / sft.batch_size),
        learning_rate=run.learning_rate(sft),
        warmup_steps=sft.warmup_ratio,
        dataloader_num_workers=1,  # prepares the next step's images and tokens during the present one
        completion_only_loss=True,
        max_length=None,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = Trainer(
        model=loaded.model,
        args=config,
        train_dataset=with_images(rows, Path(params.data.root), "images"),
        processing_class=loaded.processor,
        peft_config=run.lora(),
    )
    if reason := patch_layers(without_peft(trainer.model)):  # before evaluation, too
        print(f"sft: {reason}; stock TRL does it, slower", flush=True)
    return run, trainer, loaded
