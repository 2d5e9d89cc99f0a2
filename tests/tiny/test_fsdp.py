"""FSDP2 on two processes: the losses of one, whole weights in the output, and going on after a kill."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sharded(encoded, params):
    """Parameters of a run on two processes with the shipped FSDP file, in float32."""
    params = params.model_copy(deep=True)
    file = (ROOT / "rarl/accelerate/fsdp.yaml").read_text(encoding="utf-8")
    Path("fsdp.yaml").write_text(file.replace("bf16", "'no'"), encoding="utf-8")
    params.model.device = "auto"  # and no GPU to be seen
    params.accelerate.processes, params.accelerate.config = 2, "fsdp.yaml"
    return params


def train(method, params, **environment):
    """The training's exit code; every weight was a DTensor in each of its steps."""
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "fsdp_on_cpu", method],
        env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done.returncode


def result():
    """Log, metrics and weights of SFT."""
    with open("metrics/train/sft.csv", encoding="utf-8") as file:
        rows = [[float(value or "nan") for value in row.values()] for row in csv.DictReader(file)]
    (weights,) = Path("data/models/sft").rglob("*.safetensors")
    metrics = json.loads(Path("metrics/train/sft.json").read_text(encoding="utf-8"))
    return torch.tensor(rows), metrics, load_file(weights)


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_sft_killed_and_resumed_has_the_steps_of_one_process(sharded, params, trainable):
    from rarl.training.sft import train_sft

    sharded.train.trainable = trainable
    one_process = params.model_copy(update={"train": sharded.train})
    train_sft(one_process)
    rows, metrics, weights = result()
    assert train("sft", sharded, KILL_AFTER="3") != 0
    (checkpoint,) = Path(".cache/training").glob("*/checkpoint-2/pytorch_model_fsdp.bin")
    assert not list(checkpoint.parents[1].glob("checkpoint-4"))
    assert train("sft", sharded) == 0
    sharded_rows, sharded_metrics, sharded_weights = result()
    torch.testing.assert_close(sharded_rows, rows, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert sharded_metrics == metrics and metrics["steps"] == 4
    torch.testing.assert_close(sharded_weights, weights, rtol=0, atol=1e-3)
    base = json.loads(Path("data/models/base/base.json").read_text())["source"]
    if trainable == "lora":
        base = Qwen2VLForConditionalGeneration.from_pretrained(base)
        loaded = PeftModel.from_pretrained(base, "data/models/sft").state_dict()
        for name, value in sharded_weights.items():
            assert torch.equal(loaded[name.replace(".weight", ".default.weight")], value)


def test_grpo_on_full_weights_has_its_reference_sharded_too(sharded):
    sharded.train.trainable = "full"
    assert train("grpo", sharded) == 0
    metrics = json.loads(Path("metrics/train/grpo.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 4 and metrics["dev_score"] is not None
    (weights,) = Path("data/models/grpo").rglob("*.safetensors")
    assert all(value.numel() and value.isfinite().all() for value in load_file(weights).values())
