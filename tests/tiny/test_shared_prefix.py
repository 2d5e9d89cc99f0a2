"""Shared prefixes against stock TRL: same log-probabilities, gradients, sampled tokens and trained weights."""

import pytest
import torch
from one_step import first_batch, move_adapter, one_row
from transformers import GenerationConfig
from trl import GRPOTrainer, SFTTrainer

from rarl.models.generation import vision_tokens
from rarl.models.shared_prefix import fused_decoder, layers
from rarl.models.shared_prefix.decode import decode, unsupported_settings
from rarl.models.shared_prefix.fused_decoder import FusedDecoder
from rarl.models.shared_prefix.layers import patch_layers
from rarl.models.shared_prefix.layout import group_by_prefix
from rarl.training import grpo_trainer, rl, sft
from rarl.training.checkpoints import FiniteLossMixin
from rarl.training.grpo_trainer import SharedPrefixMixin


class Plain(FiniteLossMixin, GRPOTrainer):
    """Stock TRL."""


class PlainSft(FiniteLossMixin, SFTTrainer):
    """Stock TRL."""


class Fast(SharedPrefixMixin, FiniteLossMixin, GRPOTrainer):
    def _fall_back(self, what, reason):
        raise AssertionError(f"stock TRL was asked: {what}: {reason}")


def prepare(kind, params, monkeypatch, name="grpo"):
    monkeypatch.setattr(rl, "Trainer", kind)
    return rl.prepare(name, params)[1]


def scores(trainer, batch, **kwargs):
    return trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        batch["completion_ids"].shape[1],
        compute_entropy=True,
        **{k: batch[k] for k in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")},
        **kwargs,
    )[:2]


def with_lengths(batch, lengths):
    """The batch with made-up completions of these lengths, padded as TRL does."""
    torch.manual_seed(5)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    kinds = batch["mm_token_type_ids"][:, : batch["prompt_ids"].shape[1]]
    return {
        **batch,
        "completion_ids": torch.randint(20, 300, mask.shape) * mask,
        "completion_mask": mask,
        "mm_token_type_ids": torch.cat([kinds, kinds.new_zeros(mask.shape)], 1),
    }


LENGTHS = {
    "ragged": [1, 12, 5, 9, 2, 7, 12, 3, 1, 1, 8, 4],
    "equal": [6] * 12,
    "one_token": [1] * 12,
    "an_empty_one": [0, 4, 3, 0, 7, 1, 2, 5, 9, 0, 6, 3],
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("rows_a_pass", [12, 4], ids=["one_pass", "passes"])
def test_log_probabilities_and_gradients_are_those_of_separate_rows(
    mixed, monkeypatch, lengths, rows_a_pass, checkpointing
):
    if checkpointing and (rows_a_pass == 4 or lengths is not LENGTHS["ragged"]):
        pytest.skip("once is enough")
    mixed.train.gradient_checkpointing = checkpointing
    trainer = prepare(Fast, mixed, monkeypatch)
    batch = with_lengths(first_batch(trainer), lengths)
    assert len({tuple(ids) for ids in batch["prompt_ids"].tolist()}) == 3
    assert len({tuple(grid) for grid in batch["image_grid_thw"].tolist()}) > 1
    assert not batch["prompt_mask"].bool().all(), "prompts of different lengths"
    model = trainer.model
    move_adapter(model)
    mask = batch["completion_mask"].bool()
    torch.manual_seed(6)
    weights = torch.randn(mask.shape)

    got, entropies = scores(trainer, batch, batch_size=rows_a_pass)
    assert (got[~mask] == 0).all()
    (got * weights).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert gradients and not any("visual" in name for name in gradients)
    model.zero_grad()

    loss = 0.0
    for row in range(len(lengths)):
        expected, entropy = one_row(model, batch, row)
        torch.testing.assert_close(got[row][mask[row]], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropies[row][mask[row]], entropy, atol=1e-5, rtol=0)
        loss = loss + (expected * weights[row][mask[row]]).sum()
    loss.backward()
    biggest = max(float(g.abs().max()) for g in gradients.values())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert float((parameter.grad - gradients[name]).abs().max()) < 1e-5 * biggest, name

    with torch.no_grad(), model.disable_adapter():
        reference, _ = scores(trainer, batch, batch_size=rows_a_pass)
        for row in range(len(lengths)):
            expected, _ = one_row(model, batch, row)
            torch.testing.assert_close(reference[row][mask[row]], expected, atol=1e-5, rtol=0)
    assert float((reference - got.detach()).abs().max()) > 0.01, "the adapter does something"


def test_a_prompt_is_run_once_a_group(mixed, monkeypatch):
    """Counted in tokens that the language model gets, generation, reference and policy apart."""
    trainer = prepare(Fast, mixed, monkeypatch)
    seen = []
    trainer.model.get_base_model().model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    decoding = FusedDecoder.__call__
    monkeypatch.setattr(
        FusedDecoder, "__call__", lambda self, *args: seen.append(len(args[0])) or decoding(self, *args)
    )
    batch = first_batch(trainer)
    prompts = {tuple(ids[real.bool()].tolist()) for ids, real in zip(batch["prompt_ids"], batch["prompt_mask"])}
    prompt_tokens = sum(map(len, prompts))
    lengths = batch["completion_mask"].sum(1)
    steps = [int((lengths > number).sum()) for number in range(1, int(lengths.max()))]
    reference = prompt_tokens - len(prompts) + int(lengths.sum())
    prefill = prompt_tokens - len(prompts) + len(lengths)  # the last token is each row's own
    assert seen == [prefill, *steps, reference]


@pytest.mark.parametrize("top_p, temperature", [(1.0, 1.0), (0.8, 0.7)])
def test_the_same_random_numbers_give_the_same_completions(mixed, monkeypatch, top_p, temperature):
    mixed.rl.top_p, mixed.rl.temperature, mixed.rl.max_completion_length = top_p, temperature, 24
    batches = []
    for kind in (Plain, Fast):
        trainer = prepare(kind, mixed, monkeypatch)
        move_adapter(trainer.model)
        end = trainer.processing_class.tokenizer.eos_token_id
        likely = torch.zeros(len(trainer.processing_class.tokenizer))
        likely[end] = 4.0  # so that some completions end long before others
        head = trainer.model.get_base_model().get_output_embeddings()
        head.register_forward_hook(lambda module, args, logits, likely=likely: logits + likely)
        batches.append(first_batch(trainer))
    plain, quick = batches
    for name in ("prompt_ids", "completion_ids", "completion_mask", "advantages", "image_grid_thw"):
        assert torch.equal(plain[name], quick[name]), name
    lengths = plain["completion_mask"].sum(1)
    assert lengths.min() < lengths.max(), "some ended before the others"
    torch.testing.assert_close(
        plain["ref_per_token_logps"] * plain["completion_mask"],
        quick["ref_per_token_logps"] * quick["completion_mask"],
        atol=1e-5,
        rtol=0,
    )


def test_place_holders_are_never_sampled(mixed, monkeypatch):
    trainer = prepare(Fast, mixed, monkeypatch)
    forbidden = vision_tokens(trainer.processing_class)
    with torch.no_grad():
        head = trainer.model.get_base_model().get_output_embeddings()
        head.register_forward_hook(lambda m, a, out: out.index_fill(-1, torch.tensor(forbidden), 50.0))
    batch = first_batch(trainer)
    assert not torch.isin(batch["completion_ids"], torch.tensor(forbidden)).any()


@pytest.mark.parametrize(
    "name, micro, trainable", [("grpo", 3, "lora"), ("rarl", 1, "lora"), ("grpo", 1, "lora"), ("grpo", 3, "full")]
)
def test_a_training_run_ends_at_the_plain_ones_weights(mixed, monkeypatch, name, micro, trainable):
    mixed.rl.micro_prompts, mixed.rl.max_steps, mixed.train.trainable = micro, 5, trainable
    mixed.seed = 9  # where completions differ in length from the first step on: without a signal Adam follows rounding
    if trainable == "full":
        mixed.rl.learning_rate = 1e-4
    ends = []
    for kind in (Plain, Fast):
        trainer = prepare(kind, mixed, monkeypatch, name)
        start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        completions, generate = [], trainer._generate_single_turn

        def listen(*args, generate=generate, completions=completions, **kwargs):
            result = generate(*args, **kwargs)
            completions.append(result[0])
            return result

        trainer._generate_single_turn = listen
        trainer.train()
        trained = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        ends.append((completions, trained, start))
    (plain_completions, plain, start), (completions, quick, _) = ends
    assert len(completions) == 5 and completions == plain_completions
    moved = max(float((plain[n] - start[n]).abs().max()) for n in plain)
    apart = max(float((plain[n] - quick[n]).abs().max()) for n in plain)
    # Adam divides by the gradient's own size, so that rounding shows where a gradient is next to nothing.
    assert apart < 0.02 * moved
    total = torch.cat([(plain[n] - start[n]).flatten() for n in plain])
    gap = torch.cat([(plain[n] - quick[n]).flatten() for n in plain])
    assert float(gap.norm() / total.norm()) < 1e-3


def test_an_sft_step_has_the_plain_ones_loss_metrics_and_gradients(mixed, monkeypatch):
    mixed.sft.batch_size = mixed.sft.micro_batch_size = 8
    found = {}
    for name, kind in {"plain": PlainSft, "ours": sft.Trainer}.items():
        monkeypatch.setattr(sft, "Trainer", kind)
        trainer = sft.prepare(mixed)[1]
        model = trainer.model
        move_adapter(model)
        batch = first_batch(trainer)
        assert not batch["attention_mask"].all(), "rows of different lengths"
        assert len({tuple(grid) for grid in batch["image_grid_thw"].tolist()}) > 1
        loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(100))
        loss.backward()
        metrics = {key: values[-1] for key, values in trainer._metrics["train"].items()}
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[name] = loss.detach(), metrics, gradients
    (loss, metrics, gradients), (ours, our_metrics, our_gradients) = found.values()
    torch.testing.assert_close(ours, loss, atol=1e-6, rtol=1e-5)
    assert our_metrics == pytest.approx(metrics, abs=1e-5)
    assert gradients.keys() == our_gradients.keys()
    biggest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        assert float((gradient - our_gradients[name]).abs().max()) < 1e-5 * biggest, name


def test_passes_of_a_step_hold_whole_groups(mixed, monkeypatch):
    mixed.rl.micro_prompts = 1
    trainer = prepare(Fast, mixed, monkeypatch)
    first_batch(trainer)
    assert len(trainer._buffered_inputs) == 3
    prompts = set()
    for batch in trainer._buffered_inputs:
        (prompt,) = {tuple(ids) for ids in batch["prompt_ids"].tolist()}
        assert batch["image_grid_thw"].prod(-1).sum() == len(batch["pixel_values"])
        assert len(batch["image_grid_thw"]) == 4 and batch["num_images"] == [1] * 4
        assert abs(float(batch["advantages"].sum())) < 1e-3, "a group's advantages sum to zero"
        images = batch["pixel_values"].split(batch["image_grid_thw"].prod(-1).tolist())
        assert all(torch.equal(image, images[0]) for image in images)
        prompts.add(prompt)
    assert len(prompts) == 3


def test_equal_words_with_another_image_are_another_prompt():
    ids = [torch.tensor([1, 2, 3])] * 4
    grid = torch.tensor([[1, 2, 2]] * 4)
    pixels = torch.arange(4.0).repeat_interleave(4)[:, None] % 2
    prefixes, suffixes = group_by_prefix(ids, pixels, grid, [1] * 4)
    assert [prefix.ids.tolist() for prefix in prefixes] == [[1, 2]] * 2 and suffixes == [3] * 4
    assert [prefix.rows for prefix in prefixes] == [[0, 2], [1, 3]]


def test_sampling_has_no_dropout(mixed, monkeypatch):
    sampled = []
    for dropout in (0.0, 0.5):
        mixed.lora.dropout = dropout
        trainer = prepare(Fast, mixed, monkeypatch)
        move_adapter(trainer.model)
        sampled.append(first_batch(trainer)["completion_ids"])
        assert trainer.model.training
    assert torch.equal(*sampled)


@pytest.mark.parametrize("merges", [True, False])
def test_the_step_of_decoding_is_the_librarys(mixed, monkeypatch, merges):
    """With adapters merged into copies of the weights, and apart from them as on a GPU."""
    if not merges:
        monkeypatch.setattr(fused_decoder, "merges_adapters", lambda weight: False)
        mixed.lora.target_modules = ["q_proj", "v_proj", "down_proj"]
    model = prepare(Fast, mixed, monkeypatch).model
    move_adapter(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    network = model.get_base_model()
    assert patch_layers(network) is None and FusedDecoder.fits(network)
    ids = [torch.randint(20, 300, (n,)) for n in (9, 9, 4)]
    prefixes, suffixes = group_by_prefix([ids[0], *ids])
    config = GenerationConfig(max_new_tokens=9, eos_token_id=[1])
    quick = decode(network, prefixes, suffixes, config)
    monkeypatch.setattr(FusedDecoder, "fits", lambda model: False)
    assert quick == decode(network, prefixes, suffixes, config) and quick[0] == quick[1]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_step_of_decoding_leaves_other_models_to_the_library(mixed, monkeypatch):
    model = prepare(Fast, mixed, monkeypatch).model.get_base_model()
    assert FusedDecoder.fits(model)
    layer = model.model.language_model.layers[0].self_attn.q_proj
    layer.lora_variant["default"] = object()  # DoRA, say: no sum of two matrices
    assert not FusedDecoder.fits(model)
    layer.lora_variant.clear()
    assert FusedDecoder.fits(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert not FusedDecoder.fits(model)  # weights would have to be cast first
    layer.base_layer.__class__ = type("Quantized", (torch.nn.Linear,), {})
    assert not FusedDecoder.fits(model)
    layer.base_layer.__class__ = torch.nn.Linear
    layer.base_layer.bfloat16()
    assert not FusedDecoder.fits(model)


def test_another_kind_of_model_is_left_to_stock_trl(mixed, monkeypatch, capsys):
    class Careful(SharedPrefixMixin, FiniteLossMixin, GRPOTrainer):
        """With the real fall-back."""

    monkeypatch.setattr(layers, "MODELS", ("qwen2_5_vl",))
    mixed.rl.max_steps = 1
    prepare(Careful, mixed, monkeypatch).train()
    said = capsys.readouterr().out
    for what in ("generation", "log-probabilities"):
        assert said.count(f"{what}: a model of type qwen2_vl; stock TRL does it") == 1


def test_what_is_not_known_goes_to_stock_trl_and_says_so(mixed, monkeypatch, capsys):
    assert unsupported_settings({"do_sample": True, "top_p": 0.9, "min_p": None}) == []
    assert unsupported_settings({"do_sample": True, "min_p": 0.1}) == ["min_p"]
    assert unsupported_settings({"do_sample": True, "repetition_penalty": 1.2}) == ["repetition_penalty"]

    class Careful(SharedPrefixMixin, FiniteLossMixin, GRPOTrainer):
        """With the real fall-back."""

    mixed.rl.max_steps = 2
    trainer = prepare(Careful, mixed, monkeypatch)
    trainer.generation_kwargs["min_p"] = trainer.generation_config.min_p = 0.01
    monkeypatch.setattr(grpo_trainer, "patch_layers", lambda network: "sliding attention")
    trainer.train()
    said = capsys.readouterr().out
    assert said.count("generation: min_p; stock TRL") == 1
    assert said.count("log-probabilities: sliding attention; stock TRL") == 1
