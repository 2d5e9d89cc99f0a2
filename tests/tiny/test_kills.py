"""Stages that are killed (SIGKILL) at random moments, again and again, end with what an undisturbed run ends with.

The suite kills a few times; `RARL_KILLS=24 pytest tests/tiny/test_kills.py -s` kills that often, and prints a table.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("RARL_KILLS", "2"))
STAGES = {
    "sft": ["stages.sft"],
    "grpo": ["stages.grpo"],
    "rarl": ["stages.rarl"],
    "infer": ["stages.infer", "--model", "sft"],
}
OUTPUTS = {
    name: [f"data/models/{name}/*.safetensors", f"metrics/train/{name}.*"] for name in ("sft", "grpo", "rarl")
} | {"infer": ["data/predictions/sft/*/*.jsonl"]}


def start(name: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *STAGES[name]],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def result(name: str) -> dict[str, str]:
    files = [path for pattern in OUTPUTS[name] for path in sorted(Path().glob(pattern))]
    assert files
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def forget(name: str) -> None:
    """Everything that the stage made, its resumable work included."""
    shutil.rmtree(".cache/predictions" if name == "infer" else ".cache/training", ignore_errors=True)
    for path in OUTPUTS[name]:
        for file in Path().glob(path):
            file.unlink()


@pytest.mark.timeout(3600)
def test_a_killed_stage_ends_with_the_same_bits(encoded, params):
    from rarl.models.features import FeatureStore

    FeatureStore().save("data/features/benchmarks")
    params = params.model_copy(deep=True)
    params.models, params.modes = ["sft", "grpo", "rarl"], ["reasoning", "direct", "blank"]
    params.model.device = "cpu"
    params.sft.epochs = 3
    params.rl.max_steps = 8
    params.decoding.batch_size = 1
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    moments = random.Random(1)
    share = {name: KILLS // 4 + (index < KILLS % 4) for index, name in enumerate(STAGES)}
    print()
    for name, kills in share.items():
        if not kills and name != "sft":
            continue
        began = time.monotonic()
        assert start(name).wait() == 0
        whole, seconds = result(name), time.monotonic() - began
        killed_at, done = [], 0
        forget(name)
        while done < kills:
            stage = start(name)
            # Up to three kills in a row, before the run may end; late ones too, when files are being written.
            delay = moments.uniform(0.2, 1.0) * seconds
            try:
                stage.wait(delay)
            except subprocess.TimeoutExpired:
                os.killpg(stage.pid, signal.SIGKILL)
                stage.wait()
                done += 1
                killed_at.append(round(delay, 1))
                if done < kills and done % 3:
                    continue
            assert start(name).wait() == 0
            assert result(name) == whole, f"{name}, killed after {killed_at} s"
            if done < kills:
                forget(name)
        print(f"| {name} | {seconds:.1f} s undisturbed | {done} kills, after {killed_at} s | equal |")
