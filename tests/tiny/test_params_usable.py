"""Parameters at the ends of what `check` lets through: the trainers can be made of them, and take a step."""

import pytest

from rarl.errors import UserError
from rarl.params import Params
from rarl.profiles import put
from rarl.running.preflight import check_adapter, check_context


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2**31 - 1, "lora.r": 128, "lora.alpha": 65_536, "lora.dropout": 0.99},
        {"lora.r": 1, "lora.alpha": 1, "lora.target_modules": ["down_proj", "self_attn.q_proj"]},
        {"lora.target_modules": ["embed_tokens", "gate_proj"], "train.samples": 10**9, "train.dev_samples": 10**9},
        {
            "sft.epochs": 1e-9,
            "sft.batch_size": 1,
            "sft.micro_batch_size": 65_536,
            "sft.warmup_ratio": 0.99,
            "rl.group_size": 2,
            "rl.prompts_per_step": 1,
            "rl.micro_prompts": 65_536,
            "rl.warmup_ratio": 0.99,
        },
        {
            "rl.temperature": 0.01,
            "rl.top_p": 1e-300,
            "rl.beta": 0.0,
            "rl.epsilon": 1e-300,
            "rl.learning_rate": 1e-300,
            "sft.learning_rate": 1e-300,
        },
        {
            "rl.temperature": 100.0,
            "rl.beta": 10_000.0,
            "rl.epsilon": 1.0,
            "rl.learning_rate": 1.0,
            "sft.learning_rate": 1.0,
            "train.max_grad_norm": 1e-300,
        },
        {
            "grpo.rewards.format": 10_000.0,
            "grpo.rewards.accuracy": 0.0,
            "reward.length_per_token": 10_000.0,
            "reward.length_cap": 10_000.0,
            "train.eval_steps": 10**9,
            "train.keep_checkpoints": 10**9,
        },
        {
            "rl.loss": "luspo",
            "rl.epsilon_high": 100.0,
            "rl.num_iterations": 1000,
            "train.eval_steps": 1000,
            "rl.scale_rewards": "none",
        },
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_trainers_take_what_check_lets_through(encoded, params, changes):
    from rarl.training import rl, sft

    values = params.model_dump()
    values["sft"]["epochs"] = 0.25
    for key, value in changes.items():
        put(values, key, value)
    values["benchmarks"] = ["slake"]
    values["rl"]["max_steps"] = 1
    checked = Params.model_validate(values)
    for prepare in (sft.prepare, lambda params: rl.prepare("grpo", params)):
        run, trainer, loaded = prepare(checked)
        config = loaded.model.config.to_dict()
        check_adapter(checked, config, dict(loaded.model.named_modules()).keys())
        check_context(checked, config)
        try:
            assert run.train_to_end(trainer, loaded)["steps"] == 1
        except UserError as error:  # a warm-up's first step, a rate or a norm next to nothing, no difference in reward
            assert "as before training" in error.message or "no difference" in error.message
