"""Supervised fine-tuning, the paper's first baseline: TRL's SFTTrainer on annotated reasoning and answers."""

import math
from pathlib import Path

from trl import SFTConfig, SFTTrainer

from rarl.models.layers import without_peft
from rarl.models.loading import Loaded
from rarl.models.shared_prompt import prepare_layers
from rarl.params import Params
from rarl.training.data import choose, schedule, target, turn, with_images
from rarl.training.fast import CompletionsOnly
from rarl.training.run import Run
from rarl.training.safety import Watched


class Trainer(Watched, CompletionsOnly, SFTTrainer):
    """TRL's trainer, watched, and without work on tokens that have no loss."""


def train_sft(params: Params) -> dict:
    """Train and write `data/models/sft`. Returns the run's metrics."""
    run, trainer, loaded = prepare(params)
    return run.train_to_end(trainer, loaded)


def prepare(params: Params) -> tuple[Run, Trainer, Loaded]:
    """The run, its trainer and its model, ready to start."""
    sft = params.sft
    run = Run("sft", params, sft.model_dump())
    samples = choose(run.train, params.train.samples, params.seed)
    epochs = math.ceil(sft.epochs)
    rows = [
        {
            "prompt": turn(prompt, sample.question),
            "completion": [{"role": "assistant", "content": target(sample)}],
            "path": sample.image,
        }
        for sample, prompt in schedule(samples, ["reasoning"], epochs, params.seed)
    ]
    per_pass, passes = run.batches(sft.batch_size, sft.micro_batch_size, "sft.batch_size")
    loaded = run.load()
    trainer = Trainer(
        model=loaded.model,
        args=SFTConfig(
            **run.common_arguments(),
            max_steps=math.ceil(len(samples) * sft.epochs / sft.batch_size),
            per_device_train_batch_size=per_pass, gradient_accumulation_steps=passes,
            learning_rate=run.learning_rate(sft), warmup_steps=sft.warmup_ratio,
            dataloader_num_workers=1,  # images and tokens of the next step, beside the present one
            completion_only_loss=True, max_length=None, train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=with_images(rows, Path(params.data.root), "images"),
        processing_class=loaded.processor,
        peft_config=run.lora(),
    )  # fmt: skip
    # A model that this cannot take runs as the library has it.
    prepare_layers(without_peft(trainer.model))
    return run, trainer, loaded
