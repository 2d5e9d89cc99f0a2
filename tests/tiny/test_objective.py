"""Equations (1) to (3) of the paper, worked out row by row in plain tensors, against what the trainer does."""

import contextlib
import copy
import json
import math
from pathlib import Path

import pytest
import torch
from one_step import first_batch, move_adapter, one_row
from trl import GRPOTrainer, SFTTrainer

from rarl.errors import UserError
from rarl.training import rl, sft


@pytest.fixture
def prepared(encoded, params):
    """A trainer at its first step, the batch that it sampled, and its adapter moved off the reference."""
    params = copy.deepcopy(params)
    params.rarl.rewards.length = 50.0  # rewards that differ within a group, from a random model
    _, trainer, _ = rl.prepare("rarl", params)
    batch = first_batch(trainer)
    move_adapter(trainer.model)
    return trainer, batch, params


def log_probs(model, batch, row, adapter=True):
    """Per-token log-probabilities [tokens] of one completion, with the adapter or without it."""
    with contextlib.nullcontext() if adapter else model.disable_adapter():
        return one_row(model, batch, row)[0]


@pytest.mark.parametrize("moved", [False, True], ids=["on_policy", "old_policy_differs"])
def test_the_loss_is_the_papers(prepared, moved):
    trainer, batch, params = prepared
    model, rl_params = trainer.model, params.rl
    if moved:  # as in a second pass over the same completions: ratios beyond the clipping range
        torch.manual_seed(4)
        policy = trainer._get_per_token_logps_and_entropies(
            model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            batch["completion_ids"].size(1),
            **{
                k: batch[k]
                for k in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
                if k in batch
            },
        )[0].detach()
        batch["old_per_token_logps"] = policy + 0.4 * torch.randn_like(policy)

    rows = []
    for row in range(len(batch["completion_ids"])):
        new = log_probs(model, batch, row)
        with torch.no_grad():
            reference = log_probs(model, batch, row, adapter=False)
        old = batch["old_per_token_logps"][row][batch["completion_mask"][row].bool()] if moved else new.detach()
        ratio, advantage = torch.exp(new - old), batch["advantages"][row]
        clipped = ratio.clamp(1 - rl_params.epsilon, 1 + rl_params.epsilon)
        kl = torch.exp(reference - new) - (reference - new) - 1  # equation (2)
        objective = torch.minimum(ratio * advantage, clipped * advantage) - rl_params.beta * kl
        rows.append(objective.mean())
    by_hand = -torch.stack(rows).mean()  # equation (1)
    by_hand.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    loss, by_hand = loss.detach(), by_hand.detach()
    assert abs(float(loss) - float(by_hand)) < 1e-5
    assert abs(float(by_hand)) > 1e-4, "a loss of zero would prove nothing"
    biggest = max(float(g.abs().max()) for g in expected.values())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert float((parameter.grad - expected[name]).abs().max()) < 1e-5 * biggest, name


def test_the_reference_is_the_model_without_its_adapter(prepared):
    trainer, batch, _ = prepared
    # The batch was sampled before the adapter was moved: then policy and reference were the same.
    for row in range(3):
        with torch.no_grad():
            reference = log_probs(trainer.model, batch, row, adapter=False)
        kept = batch["ref_per_token_logps"][row][batch["completion_mask"][row].bool()]
        torch.testing.assert_close(kept, reference, atol=1e-5, rtol=0)


def test_advantages_are_rewards_standardised_within_the_group(prepared, monkeypatch):
    """Equation (3); the library adds 1e-4 to the deviation, so that equal rewards divide by no zero."""
    trainer, batch, params = prepared
    rewards = {name: list(values) for name, values in trainer._logs["rewards"].items()}
    weights = params.rarl.rewards.model_dump()
    size = params.rl.group_size
    count = len(next(iter(rewards.values())))
    total = [
        sum(weights[n] * v[i] for n, v in rewards.items() if v[i] is not None and not math.isnan(v[i]))
        for i in range(count)
    ]  # fmt: skip
    expected = []
    for start in range(0, count, size):
        group = torch.tensor(total[start : start + size])
        expected += ((group - group.mean()) / (group.std() + 1e-4)).tolist()
    # The trainer shuffles the rows of a batch: compare them as sets.
    torch.testing.assert_close(
        torch.sort(batch["advantages"])[0], torch.sort(torch.tensor(expected))[0], atol=1e-4, rtol=0
    )
    assert max(map(abs, expected)) > 0.1


@pytest.mark.parametrize("where", ["loss", "grad_norm"])
def test_numbers_that_are_not_finite_stop_the_run_and_leave_the_weights(encoded, params, where, monkeypatch):
    params = copy.deepcopy(params)
    params.sft.warmup_ratio = 0.0  # so that the first step moves the weights
    run, trainer, loaded = sft.prepare(params)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    if where == "loss":
        compute = SFTTrainer.compute_loss

        def second_loss_is_spoilt(self, *args, **kwargs):
            loss = compute(self, *args, **kwargs)
            return loss * float("nan") if self.state.global_step == 1 else loss

        monkeypatch.setattr(SFTTrainer, "compute_loss", second_loss_is_spoilt)
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    if where == "grad_norm":
        parameter.register_hook(
            lambda gradient: gradient * float("inf") if trainer.state.global_step == 1 else gradient
        )
    with pytest.raises(UserError, match=where):
        run.train_to_end(trainer, loaded)
    (aside,) = run.folder.glob("not-finite-*")
    assert aside.name.endswith("-2") and (aside / "batch.pt").is_file()
    text = json.loads((aside / "batch.json").read_text(encoding="utf-8"))
    assert any("spot" in words for words in text["input_ids"])
    assert not Path("data/models/sft").exists()
    for name, parameter in trainer.model.named_parameters():
        assert torch.isfinite(parameter).all(), name
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_a_checkpoint_cut_short_is_not_gone_on_from(encoded, params):
    """The kill came while the newest checkpoint was being written."""
    from safetensors.torch import load_file

    from rarl.training.checkpoints import COMPLETE

    sft.train_sft(params)
    whole = load_file("data/models/sft/adapter_model.safetensors")
    (folder,) = Path(".cache/training").iterdir()
    newest = folder / "checkpoint-4"
    (newest / COMPLETE).unlink()
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:100])
    sft.train_sft(params)
    for name, value in load_file("data/models/sft/adapter_model.safetensors").items():
        assert torch.equal(value, whole[name]), name
    sizes = json.loads((folder / "checkpoint-4" / COMPLETE).read_text())
    assert sizes["optimizer.pt"] > 100


def test_training_never_looks_at_the_test_split(encoded, params):
    """Without test rows and their pictures, the three methods run as before."""
    for path in (Path("data/curated/test.jsonl"), *Path(params.data.root).glob("pictures/test*")):
        path.unlink()
    sft.train_sft(params)
    for name in ("grpo", "rarl"):
        rl.train_rl(name, params)
        assert json.loads(Path(f"metrics/train/{name}.json").read_text())["dev_score"] is not None


def test_a_loss_of_rl_that_is_not_finite_stops_the_run(encoded, params, monkeypatch):
    run, trainer, loaded = rl.prepare("rarl", params)
    monkeypatch.setattr(GRPOTrainer, "compute_loss", lambda *args, **kwargs: torch.tensor(math.nan))
    with pytest.raises(UserError, match="loss"):
        run.train_to_end(trainer, loaded)
    (aside,) = run.folder.glob("not-finite-*")
    said = json.loads((aside / "batch.json").read_text(encoding="utf-8"))
    rows = params.rl.group_size * params.rl.prompts_per_step
    assert len(said["completion_ids"]) == len(said["advantages"]) == rows
