"""GRPO with shared prefixes against stock TRL over losses, passes, options and adapters: tokens and updates.

Both train two steps of SGD from the same seed. A case passes where every sampled token is the same and the update
differs by less than 1e-5 of its size, whether prefixes were shared or TRL ran.
"""

import copy

import peft
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    GPT2Config,
    GPT2LMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from trl import GRPOConfig, GRPOTrainer

from rarl.experiments.announcements import SAME_ON_POLICY
from rarl.params import LOSSES as NAMES
from rarl.training import rl
from rarl.training.checkpoints import FiniteLossMixin
from rarl.training.run import Run

STEPS = 2


class Plain(FiniteLossMixin, GRPOTrainer):
    """Stock TRL, sampling in evaluation mode: LoKr and LoHa draw a random number per layer in training mode."""

    def _generate_single_turn(self, *args, **kwargs):
        self.model.eval()
        try:
            return super()._generate_single_turn(*args, **kwargs)
        finally:
            self.model.train()


#: Ours, which falls back where it has to.
Fast = rl.Trainer


def train(kind, params, monkeypatch, options: dict, adapter=None):
    """Returns the sampled tokens, the trainable weights' update as one vector, and the trainer."""
    monkeypatch.setattr(rl, "Trainer", kind)
    monkeypatch.setattr(
        rl,
        "GRPOConfig",
        lambda **ours: GRPOConfig(**{**ours, "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no", **options}),
    )
    if adapter is not None:
        monkeypatch.setattr(Run, "lora", lambda self: adapter())
    trainer = rl.prepare("grpo", params)[1]
    torch.manual_seed(3)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # adapters begin at zero, where half of them have no gradient
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    sampled, generate = [], trainer._generate_single_turn

    def listen(*args, **kwargs):
        result = generate(*args, **kwargs)
        sampled.append(result[0])
        return result

    trainer._generate_single_turn = listen
    trainer.train()
    update = torch.cat([(trained[name].detach() - start[name]).flatten() for name in start])
    return sampled, update, trainer


def compare(params, monkeypatch, options, adapter=None, ours=None, stock=None):
    """Both ways, with `ours`, parameters of `rl`, against `stock`, arguments of TRL; returns the fast trainer."""
    tokens, expected, _ = train(Plain, params, monkeypatch, {**options, **(stock or {})}, adapter)
    params.rl = params.rl.model_validate({**params.rl.model_dump(), **(ours or {})})
    ours, update, trainer = train(Fast, params, monkeypatch, options, adapter)
    assert ours == tokens
    size, gap = float(expected.abs().max()), float((update - expected).abs().max())
    largest = max(float(p.abs().max()) for p in trainer.model.parameters() if p.requires_grad)
    print(f"gap {gap:.1e}, update {size:.1e}, gap / update {gap / size:.1e}")
    assert size > 1e-4
    assert gap <= 1e-5 * size + torch.finfo(torch.float32).eps * largest
    return trainer


@pytest.fixture
def small(mixed):
    params = copy.deepcopy(mixed)
    params.rl.max_steps, params.rl.max_completion_length, params.rl.learning_rate = STEPS, 8, 1.0
    params.train.dev_samples, params.train.eval_steps = 0, STEPS
    params.rl.beta, params.rl.warmup_ratio = 0.04, 0.0
    return params


#: `rl.loss` -> arguments of stock TRL.
LOSSES = {
    **{name: {"loss_type": name} for name in ("grpo", "dapo", "dr_grpo", "bnpo", "sapo", "vespo")},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}
PASSES = {
    "one_pass": (3, {}),
    "three_passes": (1, {}),
    "two_iterations": (1, {"num_iterations": 2}),
    "more_steps_per_generation": (1, {"steps_per_generation": 6}),
}
CASES = [(loss, "two_iterations") for loss in LOSSES]
CASES += [("grpo", "one_pass"), ("grpo", "three_passes"), ("bnpo", "three_passes")]
CASES += [("grpo", "more_steps_per_generation"), ("bnpo", "more_steps_per_generation")]


@pytest.mark.parametrize("loss, passes", CASES, ids=map("-".join, CASES))
def test_losses_and_passes(small, monkeypatch, loss, passes):
    small.rl.micro_prompts, options = PASSES[passes]
    iterations = {"num_iterations": options.get("num_iterations", 1)}
    compare(small, monkeypatch, options, ours={"loss": loss, **iterations}, stock=LOSSES[loss])


def test_every_loss_of_the_parameters_is_compared():
    assert LOSSES.keys() == {*NAMES}


PARAMETERS = {  # of `rl`, and the arguments of stock TRL
    "scaled_by_the_batch": ({"scale_rewards": "batch"}, {"scale_rewards": "batch"}),
    "not_scaled": ({"scale_rewards": "none"}, {"scale_rewards": "none"}),
    "truncated_ones_masked": ({"mask_truncated": True}, {"mask_truncated_completions": True}),
    "clipped_higher": (
        {"num_iterations": 2, "epsilon": 0.001, "epsilon_high": 0.02},
        {"num_iterations": 2, "epsilon": 0.001, "epsilon_high": 0.02},
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(small, monkeypatch, name):
    ours, stock = PARAMETERS[name]
    log = compare(small, monkeypatch, {}, ours=ours, stock=stock).state.log_history
    if name == "scaled_by_the_batch":  # TRL logs whether the batch has a difference
        assert log[0]["frac_reward_zero_std"] == pytest.approx(2 / 3)
    if name == "clipped_higher":  # on both sides of the range, or the case proves nothing
        assert log[1]["clip_ratio/low_mean"] > 0 < log[1]["clip_ratio/high_mean"]


def test_which_losses_are_the_same_on_policy(small, monkeypatch):
    small.rl.max_steps = small.train.eval_steps = 1
    for same in SAME_ON_POLICY:
        updates = []
        for small.rl.loss in sorted(same):
            updates.append(train(Fast, small, monkeypatch, {})[1])
        size = float(updates[0].abs().max())
        assert all(float((one - updates[0]).abs().max()) < 1e-5 * size for one in updates)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "vespo"])
def test_only_truncated_completions_change_nothing(small, monkeypatch, loss):
    small.rl.loss, small.rl.mask_truncated, small.rl.max_completion_length, small.rl.micro_prompts = loss, True, 2, 1
    _, update, trainer = train(Fast, small, monkeypatch, {})
    log = trainer.state.log_history
    assert [row["completions/clipped_ratio"] for row in log[:STEPS]] == [1] * STEPS
    assert not update.any() and all(row["loss"] == 0 for row in log[:STEPS])


OPTIONS = {
    "no_reference": {"beta": 0.0},
    "kl_correction": {"use_bias_correction_kl": True},
    "entropy_bonus": {"entropy_coef": 0.5},
    "adaptive_entropy": {"use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 1e9},
    "high_entropy_tokens": {"top_entropy_quantile": 0.5},
    "truncated_ones_masked": {"mask_truncated_completions": True},
    "activation_checkpointing": {"activation_checkpointing": True},
    "min_p": {"min_p": 0.01},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_with_three_passes(small, monkeypatch, name):
    small.rl.micro_prompts = 1
    compare(small, monkeypatch, OPTIONS[name])


@pytest.mark.parametrize("name", ["entropy_bonus", "truncated_ones_masked"])
def test_options_with_one_pass(small, monkeypatch, name):
    compare(small, monkeypatch, OPTIONS[name])


PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
TOWER = r".*visual.*"


def lora(**settings):
    settings = {"target_modules": PROJECTIONS, "exclude_modules": TOWER, **settings}
    return peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)


ADAPTERS = {
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "embeddings": lambda: lora(target_modules=[*PROJECTIONS, "embed_tokens"]),
    "trained_head": lambda: lora(modules_to_save=["lm_head"]),
    "trained_norms": lambda: lora(modules_to_save=["norm"]),
    "tower": lambda: lora(target_modules=[*PROJECTIONS, "qkv"], exclude_modules=None),
    "ia3": lambda: peft.IA3Config(
        target_modules=PROJECTIONS, feedforward_modules=["down_proj"], exclude_modules=TOWER, task_type="CAUSAL_LM"
    ),
    "oft": lambda: peft.OFTConfig(
        oft_block_size=4, target_modules=PROJECTIONS, exclude_modules=TOWER, task_type="CAUSAL_LM"
    ),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=4, total_step=100, target_modules=PROJECTIONS, exclude_modules=TOWER, task_type="CAUSAL_LM"
    ),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=PROJECTIONS, exclude_modules=TOWER, task_type="CAUSAL_LM"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(small, monkeypatch, name):
    small.rl.micro_prompts = 1
    compare(small, monkeypatch, {"learning_rate": 10.0}, ADAPTERS[name])


def test_full_weights_with_a_synchronised_reference(small, monkeypatch):
    small.rl.micro_prompts, small.train.trainable = 1, "full"
    compare(small, monkeypatch, {"sync_ref_model": True, "ref_model_sync_steps": 1, "learning_rate": 1.0})


def by_length(completions, **_):
    """A reward for text and for messages."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float(len(text) % 7) for text in texts]


def compare_models(make, processing, rows, tmp_path):
    """As `compare`, for a model and rows of one's own, two passes a step."""
    ends = []
    for kind in (Plain, Fast):
        torch.manual_seed(0)
        model = make()
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trainer = kind(
            model=model,
            reward_funcs=by_length,
            args=GRPOConfig(
                output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=4,
                gradient_accumulation_steps=2, num_generations=4,
                max_completion_length=6, learning_rate=1.0, optim="sgd", use_cpu=True, seed=1,
                save_strategy="no", report_to="none", bf16=False, remove_unused_columns=False,
            ),
            processing_class=processing,
            train_dataset=Dataset.from_list(rows),
        )  # fmt: skip
        trainer.train()
        ends.append({name: p.detach() - start[name] for name, p in model.named_parameters()})
    expected, update = (torch.cat([x.flatten() for x in end.values()]) for end in ends)
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(update, expected, atol=1e-6, rtol=0)


def test_a_model_without_a_backbone_called_model(random_base, tmp_path, capsys):
    tokenizer = random_base[2].tokenizer
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    rows = [{"prompt": text} for text in ("Is there a spot", "Where", "a spot in the image", "Is")]
    compare_models(lambda: GPT2LMHeadModel(config), tokenizer, rows, tmp_path)
    assert "log-probabilities: a model of type gpt2; stock TRL" in capsys.readouterr().out


def test_prompts_of_one_token(random_base, tmp_path, capsys):
    _, model, processor = random_base
    rows = [{"prompt": text} for text in ("a", "b", "c", "a")]
    assert len(processor.tokenizer(rows[0]["prompt"]).input_ids) == 1
    compare_models(lambda: copy.deepcopy(model).train(), processor.tokenizer, rows, tmp_path)
    assert "log-probabilities: a prompt of one token; stock TRL" in capsys.readouterr().out


def test_a_model_without_image_grid_thw(random_base, tmp_path, capsys):
    tokenizer = random_base[2].tokenizer
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{{ '<|image_pad|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=template,
        image_token="<|image_pad|>", num_additional_image_tokens=1,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 32,
        },
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"), image_seq_length=4,
    )  # fmt: skip
    rows = [
        {"prompt": [{"role": "user", "content": f"Spot {i}?"}], "image": Image.new("RGB", (28, 28), (9 * i, 0, 99))}
        for i in range(4)
    ]
    compare_models(lambda: LlavaForConditionalGeneration(copy.deepcopy(config)), processor, rows, tmp_path)
    assert "order of rows: a model without image_grid_thw; stock TRL" in capsys.readouterr().out


def test_dropout_in_attention_is_left_to_stock_trl(small, monkeypatch, capsys):
    load = Run.load

    def with_dropout(self):
        loaded = load(self)
        loaded.model.config.get_text_config().attention_dropout = 0.5
        return loaded

    monkeypatch.setattr(Run, "load", with_dropout)
    train(Fast, small, monkeypatch, {})
    assert "the model has dropout in its attention; stock TRL" in capsys.readouterr().out
