"""Follow CONTRIBUTING's recipes for a benchmark, a reward and a judge in a copy of the project, up to the report."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from rarl.profiles import round_trip

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^ *```\w+ title="(?P<file>[^"]+)"(?: into="(?P<table>\w+)")?\n(?P<text>.*?)^ *```$', re.M | re.S)
STAGES = """
curate
benchmark --set spots
audit
base
encode --records data/curated/train.jsonl --records data/curated/dev.jsonl --output data/features/training
encode --records data/curated/test.jsonl --benchmarks data/benchmarks --output data/features/benchmarks
grpo
infer --model base
infer --model grpo
judge --model base
judge --model grpo
score --model base
score --model grpo
report
"""
RUN = """
import importlib, sys
for line in sys.stdin.read().strip().splitlines():
    name, *arguments = line.split()
    importlib.import_module(f"stages.{name}").main(arguments, standalone_mode=False)
"""
#: What makes a run of seconds of the shipped parameters.
SHORT = {
    "data": {"root": "data/raw"},
    "train": {"source": "own", "eval_steps": 2, "dev_samples": 2},
    "rl": {"max_steps": 2, "group_size": 2, "prompts_per_step": 2, "micro_prompts": 2, "max_completion_length": 12},
    "models": ["base", "grpo"],
    "modes": ["reasoning"],
    "decoding": {"max_new_tokens": 12},
    "report": {"main_judge": "strict"},
}


def update(params: dict, changes: dict) -> None:
    """Set keys of nested mappings; everything else stays."""
    for key, value in changes.items():
        if isinstance(value, dict) and key in params:
            update(params[key], value)
        else:
            params[key] = value


def spot(file: Path, place: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (112, 112), 60)
    ImageDraw.Draw(image).ellipse((place, place, place + 20, place + 20), fill=220)
    image.save(file)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with what CONTRIBUTING's blocks add, and two small releases."""
    root = tmp_path_factory.mktemp("extended")
    for folder in ("rarl", "stages", "data/base"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", root)
    yaml, params = round_trip(), round_trip().load(ROOT / "params.yaml")
    update(params, SHORT)
    for block in BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        path, text = root / block["file"], textwrap.dedent(block["text"])
        if block["table"]:
            line = textwrap.indent(text, "    ")
            registry = path.read_text(encoding="utf-8")
            head = f"\n{block['table']} = {{\n"
            assert head in registry
            path.write_text(registry.replace(head, head + line), encoding="utf-8")
        elif path.name == "params.yaml":
            update(params, yaml.load(text))
        else:
            assert not path.exists(), f"{path} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)

    rows = [{"id": str(i), "image": f"{i}.png", "question": "Is there a spot?", "answer": "yes"} for i in range(4)]
    for i in range(4):
        spot(root / f"data/raw/spots/{i}.png", 20 * i)
    (root / "data/raw/spots/test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (root / "data/raw/own").mkdir()
    with (root / "data/raw/own/rows.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "question", "answer", "split"])
        for i, split in enumerate(["train"] * 6 + ["dev"] * 2 + ["test"] * 4):
            spot(root / f"data/raw/own/{i}.png", 3 * i)
            table.writerow([f"{i}.png", "What is bright?", "a spot", split])
    return root


def run(root: Path, *command: str, text: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        input=text, text=True, capture_output=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_recipes_reach_the_report(extended):
    run(extended, "-c", RUN, text=STAGES)
    audit = json.loads((extended / "metrics/audit.json").read_text(encoding="utf-8"))
    assert audit["sets"]["spots"]["test"]["read"] == 4
    assert "Spots" in (extended / "data/audit/data_card.html").read_text(encoding="utf-8")
    scores = json.loads((extended / "metrics/scores/grpo.json").read_text(encoding="utf-8"))
    assert scores["reasoning"]["spots"]["strict"]["n"] == 4
    with (extended / "metrics/train/grpo.csv").open(encoding="utf-8") as file:
        rewards = [row["reward_brevity"] for row in csv.DictReader(file)]
    assert any(rewards)
    report = (extended / "data/report/report.html").read_text(encoding="utf-8")
    for words in ("Spots", "Brevity", "letter for letter"):
        assert words in report


def test_tests_of_the_recipes_pass(extended):
    assert "5 passed" in run(extended, "-m", "pytest", "-q", "tests", "--doctest-modules", "rarl/rewards/brevity.py")
