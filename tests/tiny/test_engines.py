"""FSDP 2 and DeepSpeed on two processes: the losses of one, shared prompts, whole weights in the output, resuming."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

ROOT = Path(__file__).parents[2]
without_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
#: As in a stage, PEFT does not import bitsandbytes, which takes seconds.
MAIN = "import sys; sys.modules['bitsandbytes'] = None; import engine_on_cpu; engine_on_cpu.main()"
_one_process = {}


def sharded(params, engine, trainable):
    """Parameters of a run on two processes with a shipped file, in float32."""
    params = params.model_copy(deep=True)
    file = (ROOT / f"rarl/accelerate/{engine}.yaml").read_text(encoding="utf-8")
    Path("engine.yaml").write_text(file.replace("bf16", "'no'"), encoding="utf-8")
    params.model.device = "auto"  # and no GPU to be seen
    params.accelerate.processes, params.accelerate.config = 2, "engine.yaml"
    params.train.trainable = trainable
    return params


def train(params, *arguments):
    """The trainings' exit code and output; `engine_on_cpu` asserts in each step that the weights are sharded."""
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", MAIN, *arguments], env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return done.returncode, done.stdout + done.stderr


def result(method):
    """Log, metrics and weights of a training."""
    with open(f"metrics/train/{method}.csv", encoding="utf-8") as file:
        rows = [[float(value or "nan") for value in row.values()] for row in csv.DictReader(file)]
    (weights,) = Path(f"data/models/{method}").rglob("*.safetensors")
    metrics = json.loads(Path(f"metrics/train/{method}.json").read_text(encoding="utf-8"))
    return torch.tensor(rows), metrics, load_file(weights)


@pytest.fixture
def one_process(encoded, params):
    """What SFT on one process gives, once for all engines."""
    from rarl.training.sft import train_sft

    def run(trainable):
        if trainable not in _one_process:
            one = params.model_copy(deep=True)
            one.train.trainable = trainable
            train_sft(one)
            _one_process[trainable] = result("sft")
            shutil.rmtree(".cache")
        return _one_process[trainable]

    return run


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize(
    "engine",
    ["fsdp", *(pytest.param(name, marks=without_deepspeed) for name in ("deepspeed", "zero3"))],
)
def test_an_engine_trains_as_one_process_does(one_process, params, engine, trainable):
    rows, metrics, weights = one_process(trainable)
    params = sharded(params, engine, trainable)
    code, output = train(params, "3", "sft", "grpo")
    assert code == 0 and "stock TRL" not in output
    assert set(re.findall(r"resuming from .*/(checkpoint-\d+)", output)) == {"checkpoint-2"}
    sft_rows, sft_metrics, sft_weights = result("sft")
    torch.testing.assert_close(sft_rows, rows, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert sft_metrics == metrics and metrics["steps"] == 4
    torch.testing.assert_close(sft_weights, weights, rtol=0, atol=1e-3)
    _, grpo_metrics, grpo_weights = result("grpo")
    assert grpo_metrics["steps"] == 4 and grpo_metrics["dev_score"] is not None
    assert all(value.numel() and value.isfinite().all() for value in grpo_weights.values())
    if trainable == "lora":
        for method, trained in (("sft", sft_weights), ("grpo", grpo_weights)):
            assert_plain_peft_loads(method, trained)


def assert_plain_peft_loads(method, weights):
    base = json.loads(Path("data/models/base/base.json").read_text())["source"]
    base = Qwen2VLForConditionalGeneration.from_pretrained(base)
    loaded = PeftModel.from_pretrained(base, f"data/models/{method}").state_dict()
    assert weights
    for name, value in weights.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], value)
