"""The real trainers on a random tiny model: what moves, what must not, and going on after a stop."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from stages.models.features import FeatureStore
from stages.models.loading import load
from stages.records import Sample, read_records
from stages.training.data import prompt_of, schedule, target


def test_sft_writes_an_adapter_on_the_language_model_only(encoded, params):
    from stages.training.sft import train_sft

    metrics = train_sft(params)
    weights = load_file("data/models/sft/adapter_model.safetensors")
    assert metrics["steps"] == 4
    assert metrics["trainable_parameters"] == sum(w.numel() for w in weights.values())
    assert all("visual" not in name for name in weights)
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert json.loads(Path("data/models/sft/base.json").read_text())["source"]
    assert max(float(w.abs().max()) for name, w in weights.items() if "lora_B" in name) > 0


@pytest.mark.parametrize("method", ["grpo", "rarl"])
def test_rl_runs_with_its_own_rewards(encoded, params, method):
    from stages.training.rl import train_rl

    metrics = train_rl(method, params)
    expected = {"reward_format_last", "reward_length_last", "reward_accuracy_last"}
    assert expected <= metrics.keys()
    header, *rows = Path(f"metrics/train/{method}.csv").read_text().splitlines()
    assert ("reward_reasoning" in header) == (method == "rarl")
    assert "kl" in header and len(rows) == 4


def test_full_training_moves_the_language_model_and_not_the_tower(encoded, params):
    from stages.training.rl import train_rl

    params = copy.deepcopy(params)
    params.train.trainable = "full"
    params.rl.max_steps = params.train.eval_steps = 2
    train_rl("grpo", params)
    before = load("data/models/base", params.model).model.state_dict()
    after = load("data/models/grpo", params.model).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("visual" not in name for name in moved)
    matrices = {name for name in before if "visual" not in name and name.endswith("_proj.weight")}
    assert matrices <= moved


def test_a_stopped_run_goes_on_to_the_same_weights(encoded, params):
    """Killed after two of four steps, a run ends where an undisturbed one does."""
    from stages.training.sft import train_sft

    train_sft(params)
    whole = load_file("data/models/sft/adapter_model.safetensors")
    (run,) = Path(".cache/training").iterdir()
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    shutil.rmtree(run / "checkpoint-4")
    shutil.rmtree("data/models/sft")
    train_sft(params)
    for name, value in load_file("data/models/sft/adapter_model.safetensors").items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


def test_another_parameter_is_another_run(encoded, params):
    from stages.training.sft import train_sft

    train_sft(params)
    other = copy.deepcopy(params)
    other.lora.r = 4
    train_sft(other)
    assert len(list(Path(".cache/training").iterdir())) == 2
    assert load_file("data/models/sft/adapter_model.safetensors").popitem()[1].numel() > 0


def test_inference_keeps_what_it_has_and_reads_a_cut_line(encoded, params, monkeypatch):
    from ruamel.yaml import YAML

    from stages import infer

    FeatureStore().save("data/features/benchmarks")
    params = copy.deepcopy(params)
    params.models, params.modes = ["base"], ["direct", "blank"]
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    for name in ("stages",):
        Path(name).symlink_to(Path(__file__).parents[2] / name)
    result = CliRunner().invoke(infer.main, ["--model", "base"], catch_exceptions=False)
    assert result.exit_code == 0
    kept = Path("data/predictions/base/direct/silvar_med.jsonl").read_bytes()
    scratch = sorted(Path(".cache/predictions").iterdir())
    for path in scratch:  # as a kill in the middle of a line leaves it
        path.write_bytes(path.read_bytes()[:-40])
    shutil.rmtree("data/predictions")
    CliRunner().invoke(infer.main, ["--model", "base"], catch_exceptions=False)
    assert Path("data/predictions/base/direct/silvar_med.jsonl").read_bytes() == kept
    assert Path("data/predictions/base/blank/silvar_med.jsonl").is_file()


def test_every_sample_meets_every_prompt_once_in_as_many_epochs(project):
    samples = read_records("data/curated/train.jsonl", Sample)
    prompts = ["explanation", "short", "open"]
    rows = schedule(samples, prompts, 3, seed=1)
    assert rows == schedule(samples, prompts, 3, seed=1)
    seen = {}
    for sample, prompt in rows:
        seen.setdefault(sample.id, []).append(prompt)
    assert all(sorted(met) == sorted(prompts) for met in seen.values())
    assert {prompt_of(prompts, i, 0) for i in range(3)} == set(prompts)


def test_target_has_the_think_part_only_where_somebody_wrote_one(project):
    samples = read_records("data/curated/train.jsonl", Sample)
    annotated = next(s for s in samples if s.reasoning)
    bare = next(s for s in samples if not s.reasoning)
    assert (
        target(annotated)
        == f"<think> {annotated.reasoning} </think> <answer> {annotated.answers[0]} </answer>"
    )
    assert target(bare) == f"<answer> {bare.answers[0]} </answer>"


def test_stage_modules_start_without_torch():
    """`python -m stages.<stage> --help` must be quick: no stage imports torch before it needs it."""
    stages = [
        "base",
        "encode",
        "sft",
        "grpo",
        "rarl",
        "infer",
        "judge",
        "score",
        "report",
        "curate",
        "benchmark",
        "phantom",
        "check",
    ]
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module('stages.' + name)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *stages], check=True)
