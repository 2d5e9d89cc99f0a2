"""RARL of the embedded base with a reasoning reward by a judge: stopped, resumed, and never asking twice."""

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_local_judge import USABLE, make_model

from rarl.errors import UserError
from rarl.judges import llm, local
from rarl.models.base_files import base_pointer
from rarl.models.features import FeatureStore
from rarl.params import Base, Judge
from rarl.records import Sample, read_records, write_json, write_records

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/unit"))

from llm_server import Plan, Server, share_of  # noqa: E402


def graded(material: dict, request: dict) -> str:
    """A grade that depends on the text alone, and differs in a group."""
    score = int(share_of(material["prediction"]["reasoning"]) < 0.5)
    return json.dumps({"evaluation": "Compared.", "reasoning_score": score, "prediction_score": 0})


@pytest.fixture
def judged(project, params):
    """Parameters of 4 steps; every row is annotated, and the base writes think texts. The judge is to be set."""
    write_json("data/models/base/base.json", base_pointer(Base(source=str(ROOT / "data/base"))))
    FeatureStore().save("data/features/training")
    rows = read_records("data/curated/train.jsonl", Sample)
    write_records("data/curated/train.jsonl", [row.model_copy(update={"reasoning": "A bright spot."}) for row in rows])
    params = copy.deepcopy(params)
    params.model.device = "cpu"
    params.rl.max_completion_length, params.rl.learning_rate, params.train.dev_samples = 32, 1e-2, 2
    params.reward.reasoning, params.reward.judge = "judge", "own"
    return params


def at(server: Server, **more) -> Judge:
    return Judge(kind="llm", base_url=server.url, model="tiny-2024-01-01", **more)


def result() -> dict[str, str]:
    files = [*Path("data/models/rarl").glob("*.safetensors"), *Path("metrics/train").glob("rarl.*")]
    assert len(files) == 3
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def forget(*more: str) -> None:
    for folder in (".cache/training", "data/models/rarl", "metrics/train", *more):
        shutil.rmtree(folder, ignore_errors=True)


def start(params) -> subprocess.Popen:
    """The stage, as DVC starts it."""
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "stages.rarl"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(stage: subprocess.Popen) -> str:
    said = stage.communicate(timeout=600)[0]
    assert stage.returncode == 0, said[-3000:]
    return said


@pytest.mark.timeout(1200)
def test_a_killed_training_ends_with_the_same_weights_and_asks_nothing_twice(judged):
    concurrency = 4
    with Server(Plan(reply=graded, latency_s=0.03, faults={"error_500": 0.1, "prose": 0.1})) as server:
        judged.judge["own"] = at(server, concurrency=concurrency)
        said = ended(start(judged))
        whole, calls = result(), len(server.calls)
        assert "rarl: reasoning reward by judge own: at most 32 calls" in said and said.count("sends to http") == 1
        assert calls > 8

        forget()
        ended(start(judged))
        assert result() == whole and len(server.calls) == calls, "the next training asks nothing"

        forget(".cache/llm")
        server.seen.clear()
        stage = start(judged)
        while len(server.calls) < calls + 0.6 * calls:
            assert stage.poll() is None
            time.sleep(0.005)
        stage.send_signal(signal.SIGKILL)
        stage.wait()
        time.sleep(0.3)
        (path,) = Path(".cache/llm").glob("*.jsonl")
        kept = {json.loads(line)["key"] for line in path.read_bytes().split(b"\n")[:-1]}
        before = len(server.calls)
        ended(start(judged))
        assert result() == whole
        again = {llm.key_for(judged.judge["own"], call["messages"]) for call in server.calls[before:]}
        assert again and not again & kept


def test_the_end_of_the_budget_keeps_the_checkpoint_and_more_money_resumes_it(judged):
    from rarl.training.rl import train_rl

    with Server(Plan(reply=graded)) as server:
        judged.judge["own"] = at(server, concurrency=1)
        train_rl("rarl", judged)
        whole, calls = result(), len(server.calls)
        forget(".cache/llm")
        judged.judge["own"] = at(server, concurrency=1, max_calls=calls - 1)
        with pytest.raises(UserError, match=r"raise judge\.own\.max_calls .* resumes from its last checkpoint"):
            train_rl("rarl", judged)
        (folder,) = Path(".cache/training").iterdir()
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
        assert not Path("metrics/train/rarl.json").exists() and not Path("data/models/rarl").exists()
        assert len(server.calls) == 2 * calls - 1
        judged.judge["own"] = at(server, max_calls=calls)
        train_rl("rarl", judged)
        assert result() == whole and len(server.calls) == 2 * calls
        assert [path.name for path in Path(".cache/training").iterdir()] == [folder.name]


def test_a_local_judge_is_loaded_once_and_asked_once(judged, tmp_path, monkeypatch, capsys):
    from rarl.training.rl import train_rl

    asked, loads, respond, load = [], [], local._respond, local._load_once
    monkeypatch.setattr(local, "_respond", lambda t, m, s, chats: asked.extend(chats) or respond(t, m, s, chats))
    monkeypatch.setattr(local, "_load_once", lambda *args: loads.append(load(*args)) or loads[-1])
    folder = make_model(tmp_path / "judge", USABLE)
    judged.judge["own"] = Judge(kind="local", model=str(folder), max_tokens=8, batch_size=32)
    metrics = train_rl("rarl", judged)
    assert metrics["reward_reasoning_last"] > 0 and len(loads) > 1 and len({id(one[1]) for one in loads}) == 1
    assert len({json.dumps(chat) for chat in asked}) == len(asked) > 4
    assert "on this machine" in capsys.readouterr().out
    assert "| judge.own.model | judge |" in Path("data/models/rarl/README.md").read_text()
    whole, count = result(), len(asked)
    (run,) = Path(".cache/training").iterdir()
    shutil.rmtree(run / "checkpoint-4")
    train_rl("rarl", judged)
    assert result() == whole and len(asked) == count and "resuming from" in capsys.readouterr().out


def test_two_processes_share_a_judge(judged):
    with Server(Plan(reply=graded)) as server:
        judged.judge["own"] = at(server)
        judged.accelerate.processes = 2
        judged.rl.max_steps = 2
        said = ended(start(judged))
        assert said.count("sends to http") == 1 and "Another process" not in said
        keys = [llm.key_for(judged.judge["own"], call["messages"]) for call in server.calls]
        assert len(set(keys)) == len(keys) > 1
        assert "reward_reasoning" in Path("metrics/train/rarl.csv").read_text()


def test_a_judge_that_is_not_used_changes_no_key(encoded, params, capsys):
    from rarl.training.rl import train_rl

    params = copy.deepcopy(params)
    train_rl("rarl", params)
    params.reward.judge = "gpt_4o_mini"
    params.judge["gpt_4o_mini"].max_tokens = 99
    train_rl("rarl", params)
    assert "nothing is left to train" in capsys.readouterr().out
