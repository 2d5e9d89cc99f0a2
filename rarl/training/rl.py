"""GRPO, plain and reasoning-aware: TRL's GRPOTrainer with the paper's objective and rewards.

Plain GRPO and RARL differ in rewards and prompts only (`params.grpo`, `params.rarl`).
"""

import math
from pathlib import Path

from trl import GRPOConfig, GRPOTrainer

from rarl.models.features import FeatureStore
from rarl.models.generation import vision_tokens
from rarl.models.loading import Loaded, choose_device
from rarl.params import Method, Params
from rarl.rewards import reward_functions
from rarl.rewards.bertscore import BertScorer
from rarl.training.data import choose, schedule, turn, with_images
from rarl.training.fast import SharedPrompt
from rarl.training.run import FEATURES, Run
from rarl.training.safety import Watched


class Trainer(Watched, SharedPrompt, GRPOTrainer):
    """TRL's trainer, watched, and with each prompt run once for its whole group."""


def train_rl(name: str, params: Params) -> dict:
    """Train `grpo` or `rarl` and write `data/models/<name>`. Returns the run's metrics."""
    run, trainer, loaded = prepare(name, params)
    return run.train_to_end(trainer, loaded)


def prepare(name: str, params: Params) -> tuple[Run, Trainer, Loaded]:
    """The run of `grpo` or `rarl`, its trainer and its model, ready to start."""
    rl, method = params.rl, getattr(params, name)
    run = Run(
        name,
        params,
        {
            "rl": rl.model_dump(),
            **method.model_dump(),
            "reward": params.reward.model_dump(),
            "encoder": params.encoder.model_dump(),
        },
    )
    samples = choose(run.train, params.train.samples, params.seed)
    announce(name, method, samples)
    steps = rl.max_steps if rl.max_steps > 0 else math.ceil(len(samples) * rl.epochs / rl.prompts_per_step)
    epochs = math.ceil(steps * rl.prompts_per_step / len(samples))
    rows = [
        {
            "prompt": turn(prompt, sample.question), "path": sample.image, "answers": list(sample.answers),
            "kind": sample.kind, "choices": list(sample.choices), "reasoning": sample.reasoning,
        }
        for sample, prompt in schedule(samples, method.prompts, epochs, params.seed)
    ]  # fmt: skip
    functions, weights = reward_functions(
        method.rewards,
        lambda: BertScorer(params.encoder.source, params.encoder.num_layers, str(choose_device(params.model))),
        params.reward,
    )
    per_pass, passes = run.batches(rl.prompts_per_step, rl.micro_prompts, "rl.prompts_per_step")
    loaded = run.load()
    trainer = Trainer(
        model=loaded.model,
        reward_funcs=functions,
        args=GRPOConfig(
            **run.common_arguments(),
            max_steps=steps,
            per_device_train_batch_size=per_pass * rl.group_size, gradient_accumulation_steps=passes,
            num_generations=rl.group_size,
            learning_rate=run.learning_rate(rl), warmup_steps=rl.warmup_ratio,
            # Equations (1) to (3). TRL's own defaults are dapo, no KL term, and a KL term times the ratio, which has
            # the same value on policy but another gradient.
            use_bias_correction_kl=False,
            loss_type="grpo", scale_rewards="group", beta=rl.beta, epsilon=rl.epsilon, num_iterations=1,
            temperature=rl.temperature, top_p=rl.top_p, top_k=0, max_completion_length=rl.max_completion_length,
            generation_kwargs={"suppress_tokens": vision_tokens(loaded.processor)},
            model_init_kwargs={"revision": run.pointer["revision"]} if params.train.trainable == "full" else None,
            reward_weights=weights, shuffle_dataset=False, log_completions=False,
        ),
        train_dataset=with_images(rows, Path(params.data.root), "image"),
        processing_class=loaded.processor,
        peft_config=run.lora(),
    )  # fmt: skip
    if trainer.ref_model is not None:  # full weights: a second model, whose tower is the same
        FeatureStore.load(FEATURES).attach(trainer.ref_model)
    return run, trainer, loaded


def announce(name: str, method: Method, samples: list) -> None:
    """Say which rewards are at work, and plainly when the reasoning reward has nothing to compare with."""
    weights = {reward: weight for reward, weight in method.rewards.model_dump().items() if weight}
    print(f"{name}: {len(samples)} rows, prompts {', '.join(method.prompts)}, rewards {weights}", flush=True)
    annotated = sum(sample.reasoning is not None for sample in samples)
    if "reasoning" in weights:
        print(
            f"{name}: {annotated} of {len(samples)} rows are annotated"
            + ("" if annotated else ": the reasoning reward is idle, and what is left is GRPO under these prompts"),
            flush=True,
        )
