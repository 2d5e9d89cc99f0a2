"""vLLM: rollouts through TRL with a stand-in for the engine, and the real server where RARL_VLLM names its program."""

import copy
from pathlib import Path

import pytest
import torch
from one_step import first_batch
from trl.trainer import grpo_trainer

from rarl.models.loading import load
from rarl.records import read_json
from rarl.training.rl import prepare, train_rl


class Engine:
    """Stands in for `trl.generation.vllm_generation.VLLMGeneration`; a token's log-probability tells which it is."""

    def __init__(self, model, mode, generation_kwargs, **settings):
        self.model, self.mode, self.kwargs, self.settings, self.synced = model, mode, generation_kwargs, settings, 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        assert len(images) == len(prompts) and all(len(shown) == 1 for shown in images)
        generator = torch.Generator().manual_seed(self.synced)
        lengths = torch.randint(2, 12, [len(prompts)], generator=generator).tolist()
        completions = [torch.randint(5, 500, [length], generator=generator).tolist() for length in lengths]
        return prompts, completions, [[[log_prob(token)] for token in row] for row in completions], None


def log_prob(token):
    return -6 - token / 1000


@pytest.fixture
def engine(mixed, monkeypatch):
    """Parameters of a colocated engine that is not there."""
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Engine)
    params = copy.deepcopy(mixed)
    params.rl.vllm, params.rl.micro_prompts = "colocate", 1
    return params


def test_rollouts_of_vllm_are_corrected_by_importance_sampling(engine, capsys):
    """Row by row, after the rows of a step were put into passes of whole groups."""
    _, trainer, _ = prepare("grpo", engine)
    batch = first_batch(trainer)
    assert trainer.vllm_generation.synced == 1 and "stock TRL" not in capsys.readouterr().err
    mask = batch["completion_mask"].bool()
    given, own = batch["sampling_per_token_logps"], batch["old_per_token_logps"]
    torch.testing.assert_close(given[mask], log_prob(batch["completion_ids"][mask]))
    ratio = ((own - given) * mask).sum(-1, keepdim=True).exp()
    torch.testing.assert_close(batch["importance_sampling_ratio"], ratio.masked_fill(ratio > 3, 0))
    assert len({ids.tobytes() for ids in batch["prompt_ids"].numpy()}) == 1, "one prompt a pass"


def test_vllm_loads_the_pinned_base_with_the_size_of_images_that_is_trained(engine):
    _, trainer, loaded = prepare("grpo", engine)
    folder = Path(loaded.model.name_or_path)
    settings = read_json(folder / "preprocessor_config.json")
    assert settings["max_pixels"] == engine.model.max_pixels and settings["processor_class"] == "Qwen2VLProcessor"
    assert (folder / "model.safetensors").resolve() == Path(
        read_json("data/models/base/base.json")["source"], "model.safetensors"
    )
    blocked = trainer.vllm_generation.kwargs["logit_bias"]
    assert set(blocked.values()) == {-100.0} and loaded.processor.image_token_id in blocked


def test_a_run_with_vllm_ends_with_an_adapter(engine):
    metrics = train_rl("grpo", engine)
    assert metrics["steps"] == engine.rl.max_steps
    assert load("data/models/grpo", engine.model)
    assert "vllm" not in Path("data/models/grpo/adapter_config.json").read_text()
