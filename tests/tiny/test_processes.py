"""Two processes that talk by gloo give what one gives: the same losses, the same predictions."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]


def write_params(params):
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)


def run(module, params, *arguments):
    """One stage, as DVC starts it, in the project folder that the test works in."""
    write_params(params)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def losses():
    with open("metrics/train/sft.csv", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.fixture
def short(encoded, params):
    params = params.model_copy(deep=True)
    params.model.device = "cpu"
    params.models, params.modes = ["base", "sft", "grpo"], ["direct"]
    return params


def test_sft_on_two_processes_has_the_losses_of_one(short, monkeypatch):
    """With a file of settings on a machine without a GPU, which nobody has told the parameters.

    `test_live.py` has the losses of two processes without a file.
    """
    from rarl.training.sft import train_sft

    train_sft(short)
    one, key = losses(), json.loads(Path("metrics/train/sft.json").read_text())
    shutil.rmtree("data/models/sft")
    shutil.rmtree("metrics/train")
    file = (ROOT / "rarl/accelerate/ddp.yaml").read_text(encoding="utf-8")
    Path("engine.yaml").write_text(file.replace("bf16", "'no'"), encoding="utf-8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    short.accelerate.processes, short.accelerate.config, short.model.device = 2, "engine.yaml", "auto"
    run("stages.sft", short)
    assert len(one) == 4 and losses() == pytest.approx(one, rel=1e-4)
    assert json.loads(Path("metrics/train/sft.json").read_text()) == key
    assert Path("data/models/sft/adapter_model.safetensors").is_file()


def test_grpo_and_inference_on_two_processes(short):
    from rarl.models.features import FeatureStore
    from stages import infer

    FeatureStore().save("data/features/benchmarks")
    short.decoding.batch_size = 2
    write_params(short)
    assert CliRunner().invoke(infer.main, ["--model", "base"], catch_exceptions=False).exit_code == 0
    one = Path("data/predictions/base/direct/silvar_med.jsonl").read_bytes()
    for path in Path(".cache/predictions").iterdir():
        path.unlink()
    short.accelerate.processes = 2
    run("stages.infer", short, "--model", "base")
    assert Path("data/predictions/base/direct/silvar_med.jsonl").read_bytes() == one
    assert len(list(Path(".cache/predictions").iterdir())) == 2, "each process has a file of its own"
    run("stages.grpo", short)
    metrics = json.loads(Path("metrics/train/grpo.json").read_text())
    assert metrics["steps"] == 4 and metrics["dev_score"] is not None


def test_a_batch_that_cannot_be_shared_out_is_refused(short):
    from rarl.errors import UserError
    from rarl.training import sft

    short.accelerate.processes = 3
    with pytest.raises(UserError, match=r"sft\.batch_size"):
        sft.prepare(short)


def test_a_trainer_on_another_number_of_processes_is_refused(short):
    """As where a launcher of one's own started the stage: its steps would have other rows."""
    from rarl.errors import UserError
    from rarl.training.sft import train_sft

    short.accelerate.processes = 2
    with pytest.raises(UserError, match=r"accelerate\.processes = 2"):
        train_sft(short)
