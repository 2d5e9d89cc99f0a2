"""Times and memory of the stages: on disk, for the report's page, and for the comparison of experiments."""

import gc
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from rarl.errors import UserError
from rarl.processes import cost
from rarl.running.entry import stage_main

BASELINE = "0123456789" * 4


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder, outside any experiment."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return tmp_path


def script() -> dict:
    text = Path("metrics/cost/cost.js").read_text(encoding="utf-8")
    assert text.startswith("window.RARL_COST = ") and text.endswith(";\n")
    return json.loads(text[len("window.RARL_COST = ") : -2])


def test_a_stage_writes_its_cost_and_the_script_of_all():
    cost.write_cost(["judge", "lexical", "base"], 12.34)
    cost.write_cost(["encode", "test.jsonl", "benchmarks", "benchmarks"], 61)
    assert sorted(script()) == ["encode_benchmarks", "judge_lexical_base"]
    for name, known in script().items():
        assert cost.read_cost(name) == known
    one = cost.read_cost("judge_lexical_base")
    assert one["seconds"] == 12.3 and 10 < one["peak_memory_mb"] < 100_000
    assert 0 < one["processor_seconds"] == round(one["processor_seconds"], 1)
    assert one["python"].split(".")[0] == "3" and one["torch"]
    assert not Path(".cache").exists(), "no experiment"
    assert {file.suffix for file in Path("metrics/cost").iterdir()} == {".json", ".js"}


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_a_cost_says_when_where_and_from_which_code(folder):
    cost.write_cost(["sft"], 1)
    found = cost.read_cost("sft")
    assert datetime.now(UTC) - datetime.fromisoformat(found["finished"]) < timedelta(minutes=5)
    assert found["processor"] and "commit" not in found, "no repository"
    git("init")
    Path("params.yaml").write_text("seed: 7\n")
    git("add", "params.yaml")
    git("commit", "-m", "start")
    cost.write_cost(["grpo"], 1)
    found = cost.read_cost("grpo")
    assert git("rev-parse", "HEAD").startswith(found["commit"]) and found["changed"] is False
    # What the pipeline itself writes is no change of code or parameters.
    Path("dvc.lock").write_text("")
    assert cost.code()["changed"] is False
    Path("params.yaml").write_text("seed: 8\n")
    assert cost.code()["changed"] is True


def test_the_largest_memory_of_all_processes_is_kept_and_the_time_of_the_one_that_waited(monkeypatch):
    """The processes of a stage finish first, in any order; the card is known to them alone."""
    for rank, (host, gpu) in enumerate([(7_000_000, 20), (8_000_000, 10)]):
        with monkeypatch.context() as process:
            process.setenv("RARL_LAUNCHED", "1")
            process.setenv("RANK", str(rank))
            process.setattr(cost, "peak_memory_mb", lambda host=host: host)
            cost.note(card="a card", peak_gpu_memory_mb=gpu)
            cost.write_cost(["sft"], 5)
    assert cost.read_cost("sft") == {}, "no process writes the stage's record"
    cost.write_cost(["sft"], 60)
    found = cost.read_cost("sft")
    assert (found["card"], found["seconds"]) == ("a card", 60)
    assert (found["peak_memory_mb"], found["peak_gpu_memory_mb"]) == (8_000_000, 20)
    cost.write_cost(["sft"], 60)
    assert "card" not in cost.read_cost("sft"), "that was another run"


def test_what_processes_of_a_killed_run_have_left_is_not_taken(monkeypatch):
    Path("metrics/cost").mkdir(parents=True)
    old = {"card": "a card", "finished": "2020-01-01T00:00:00+00:00"}
    Path("metrics/cost/sft.0.process").write_text(json.dumps(old))
    cost.write_cost(["sft"], 60)
    assert "card" not in cost.read_cost("sft") and not list(Path("metrics/cost").glob("*.process"))


def test_processes_of_a_launcher_of_the_users_own_leave_one_record(monkeypatch):
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        cost.write_cost(["sft"], 5 + int(rank))
    assert cost.read_cost("sft")["seconds"] == 5


def test_memory_of_a_gpu_has_a_name_of_its_own(monkeypatch):
    cuda = SimpleNamespace(
        is_initialized=lambda: True, get_device_name=lambda: "a card", max_memory_allocated=lambda: 3 << 30
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    cost.write_cost(["sft"], 5)
    found = cost.read_cost("sft")
    assert (found["card"], found["peak_gpu_memory_mb"]) == ("a card", 3072)
    assert found["peak_memory_mb"] == cost.peak_memory_mb() != 3072


def test_a_resumed_run_counts_its_earlier_legs_once():
    cost.note(earlier_seconds=100.25, earlier_processor_seconds=1e6)
    cost.write_cost(["sft"], 5)
    found = cost.read_cost("sft")
    assert found["seconds"] == 105.2 and 1e6 < found["processor_seconds"] < 1.1e6
    assert not any(key.startswith("earlier") for key in found)
    cost.write_cost(["sft"], 5)
    assert cost.read_cost("sft")["seconds"] == 5


def test_a_damaged_file_stops_nothing():
    """The stage has done its work; a killed one may have left anything."""
    Path("metrics/cost").mkdir(parents=True)
    Path("metrics/cost/sft.json").write_text('{"seco')
    cost.write_cost(["grpo"], 5)
    assert cost.read_cost("sft") == {} == cost.read_cost("never_run")
    assert script()["grpo"]["seconds"] == 5


def test_an_experiment_leaves_its_cost_where_it_was_started(folder, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(folder / "repository"))
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", BASELINE)
    monkeypatch.setenv("DVC_EXP_NAME", "tidy-ox")
    cost.write_cost(["sft"], 5)
    assert cost.read_cost("sft")["seconds"] == 5, "in the temporary folder, too"
    os.chdir(folder / "repository")
    assert cost.read_cost("sft", (BASELINE, "tidy-ox"))["seconds"] == 5
    assert cost.read_cost("grpo", (BASELINE, "tidy-ox")) == {}
    assert cost.read_cost("sft", (BASELINE, "other")) == {} == cost.read_cost("sft")


def test_plain_repro_is_no_experiment(folder, monkeypatch):
    """DVC names its root to the command of every stage."""
    monkeypatch.setenv("DVC_ROOT", str(folder / "here"))
    cost.write_cost(["sft"], 5)
    assert not Path(".cache").exists()


def test_no_stage_writes_what_a_machine_measured():
    """Studies and benchmarks hold times, and are written only when a person runs them."""
    text = (Path(cost.__file__).parents[2] / "dvc.yaml").read_text(encoding="utf-8")
    for stage in YAML(typ="safe").load(text)["stages"].values():
        for kind in ("outs", "metrics", "plots"):
            for out in stage.get(kind, []):
                path = next(iter(out)) if isinstance(out, dict) else out
                assert not path.startswith(("metrics/cost/", "metrics/studies", "metrics/bench/"))


def test_memory_is_that_of_the_processes_that_were_waited_for():
    before = cost.peak_memory_mb()
    subprocess.run([sys.executable, "-c", f"x = bytearray({(before + 100) << 20})"], check=True)
    assert cost.peak_memory_mb() >= before + 100


def test_only_a_stage_that_finishes_has_a_cost():
    @click.command()
    @click.option("--model")
    @click.option("--bad", is_flag=True)
    @stage_main
    def main(model, bad):
        if bad:
            raise UserError("file", "nothing", "something", "add it")

    assert CliRunner().invoke(main, ["--model", "rarl", "--bad"]).exit_code == 1
    assert not Path("metrics/cost").exists()
    assert CliRunner().invoke(main, ["--model", "rarl"]).exit_code == 0
    assert list(script()) == ["test_cost_rarl"]


def test_a_stage_calls_no_hub_and_seldom_looks_for_garbage(monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    before = gc.get_threshold()

    @stage_main
    def main():
        return os.environ["HF_HUB_DISABLE_TELEMETRY"], gc.get_threshold()[0]

    try:
        assert main() == ("1", 100_000)
    finally:
        gc.set_threshold(*before)
        del os.environ["HF_HUB_DISABLE_TELEMETRY"]
