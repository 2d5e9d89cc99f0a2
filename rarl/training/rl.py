"""GRPO, plain and reasoning-aware: TRL's GRPOTrainer with the paper's objective and rewards.

Plain GRPO and RARL differ in rewards and prompts only (`params.grpo`, `params.rarl`).
"""

import math
import os
from importlib import import_module
from pathlib import Path

from trl import GRPOConfig, GRPOTrainer

from rarl.models.features import FeatureStore
from rarl.models.generation import vision_tokens
from rarl.models.loading import Loaded, choose_device
from rarl.models.patching import without_peft
from rarl.models.quantization import Float32AdapterMixin
from rarl.params import Method, Params, Rl
from rarl.rewards import reward_functions
from rarl.rewards.bertscore import BertScorer
from rarl.sharing.hub_layout import link_base
from rarl.training.checkpoints import FiniteLossMixin
from rarl.training.data import choose, schedule, user_message, with_images
from rarl.training.grpo_trainer import SharedPrefixMixin
from rarl.training.run import FEATURES, Run
from rarl.training.vllm import check_server, sampling_arguments


class Trainer(Float32AdapterMixin, FiniteLossMixin, SharedPrefixMixin, GRPOTrainer):
    """TRL's trainer, with each prompt run once per group, and with a stop at a loss that is not finite."""

    def _generate_and_score_completions(self, inputs):
        """As TRL's, which logs the share of groups without a difference in reward unless the batch scales rewards."""
        batch = super()._generate_and_score_completions(inputs)
        if self.scale_rewards == "batch":
            groups = self.accelerator.gather(batch["advantages"]).view(-1, self.num_generations)
            same = groups.amax(1) == groups.amin(1)
            self._metrics["train"]["frac_reward_zero_std"][-1] = same.float().mean().item()
        return batch


def train_rl(name: str, params: Params) -> dict:
    """Train `grpo` or `rarl` and write `data/models/<name>`. Returns the run's metrics."""
    run, trainer, loaded = prepare(name, params)
    return run.train_to_end(trainer, loaded)


def work_ahead(name: str, params: Params) -> None:
    """Train what `train_rl` will write, as far as time allows (`rarl/running/ahead.py`)."""
    run, trainer, loaded = prepare(name, params)
    run.train_ahead(trainer, loaded)


def prepare(name: str, params: Params) -> tuple[Run, Trainer, Loaded]:
    """The run of `grpo` or `rarl`, its trainer and its model, ready to start."""
    rl, method = params.rl, getattr(params, name)
    settings = {"rl": rl.model_dump(), "reward": params.reward.model_dump(), "encoder": params.encoder.model_dump()}
    # Imported by name: a training without a judge does not depend on its code.
    judged = import_module("rarl.training.judged") if params.reasoning_judge(name) else None
    settings["reward"]["judge"] = judged and judged.depends(params, name)
    run = Run(name, params, {**settings, **method.model_dump()})
    samples = choose(run.train, params.train.samples, params.seed)
    announce(name, method, samples)
    batches = rl.batches(len(samples))
    epochs = math.ceil(batches * rl.prompts_per_step / len(samples))
    rows = [
        {
            **sample.model_dump(include={"question", "answers", "kind", "choices", "reasoning"}),
            "prompt": user_message(prompt, sample.question),
            "path": sample.image,
        }
        for sample, prompt in schedule(samples, method.prompts, epochs, params.seed)
    ]
    functions, weights = reward_functions(
        method.rewards,
        lambda: BertScorer(params.encoder.source, params.encoder.num_layers, str(choose_device(params.model))),
        params.reward,
        judged and judged.grader(params, name, len(samples)),
    )
    loaded = run.load()
    batch = run.batches(rl.prompts_per_step, rl.micro_prompts, "rl.prompts_per_step")
    batch["per_device_train_batch_size"] *= rl.group_size
    if rl.vllm:
        prepare_vllm(run, loaded)
    sampling = sampling_arguments(rl, vision_tokens(loaded.processor))
    config = GRPOConfig(
        **run.common_arguments() | batch | loss_arguments(rl) | sampling,
        max_steps=rl.max_steps if rl.max_steps > 0 else batches * rl.num_iterations,
        learning_rate=run.learning_rate(rl),
        warmup_steps=rl.warmup_ratio,
        reward_weights=weights,
        model_init_kwargs={"revision": run.pointer["revision"]} if params.train.trainable == "full" else None,
        shuffle_dataset=False,
        log_completions=False,
    )
    trainer = Trainer(
        model=loaded.model,
        reward_funcs=functions,
        args=config,
        train_dataset=with_images(rows, Path(params.data.root), "image"),
        processing_class=loaded.processor,
        peft_config=run.lora(),
    )
    if trainer.ref_model is not None:  # full weights: a second model, with the same vision tower
        FeatureStore.load(FEATURES).attach(trainer.accelerator.unwrap_model(trainer.ref_model))
    return run, trainer, loaded


def loss_arguments(rl: Rl) -> dict:
    """Arguments of `GRPOConfig` for the loss.

    Equations (1) to (3) by default; TRL's own defaults are `dapo`, no KL term, and a KL term times the ratio, which
    has the same value on policy but another gradient.

    >>> arguments = loss_arguments(Rl(loss="gspo"))
    >>> arguments["loss_type"], arguments["importance_sampling_level"]
    ('grpo', 'sequence')
    """
    cispo_high = 5.0 if rl.loss == "cispo" else None  # TRL would take epsilon, and clip every ratio
    return {
        "loss_type": "grpo" if rl.loss == "gspo" else rl.loss,
        "importance_sampling_level": "sequence" if rl.loss in ("gspo", "luspo") else "token",
        "scale_rewards": rl.scale_rewards,
        "num_iterations": rl.num_iterations,
        "mask_truncated_completions": rl.mask_truncated,
        "beta": rl.beta,
        "epsilon": rl.epsilon,
        "epsilon_high": rl.epsilon_high or cispo_high,
        "use_bias_correction_kl": False,
    }


def prepare_vllm(run: Run, loaded: Loaded) -> None:
    """Look for the server, or write the folder that vLLM loads: TRL takes its path from the model."""
    rl = run.params.rl
    if rl.vllm == "server":
        check_server(rl.vllm_url)
        return
    folder = run.folder / f"vllm-{os.environ.get('RANK', 0)}"
    link_base(loaded.processor, run.pointer, run.params.model.dtype, folder)
    without_peft(loaded.model).name_or_path = str(folder)


def announce(name: str, method: Method, samples: list) -> None:
    """Print the rewards in use, and whether the reasoning reward has annotations to compare with."""
    weights = {reward: weight for reward, weight in method.rewards.model_dump().items() if weight}
    print(f"{name}: {len(samples)} rows, prompts {', '.join(method.prompts)}, rewards {weights}", flush=True)
    if "reasoning" in weights:
        annotated = sum(sample.reasoning is not None for sample in samples)
        idle = "" if annotated else ": the reasoning reward is idle, which leaves GRPO with these prompts"
        print(f"{name}: {annotated} of {len(samples)} rows are annotated{idle}", flush=True)
