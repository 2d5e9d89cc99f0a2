"""The log of a training while it runs, its trackers, and an end by Ctrl-C or SIGTERM."""

import copy
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from rarl.errors import UserError
from rarl.processes.status import STAGE, read_status
from rarl.processes.stopping import Stopped
from rarl.records import Sample, read_records
from rarl.training.groups import row_key, spreads
from rarl.training.live import LIVE, Live, trackers


def train(method: str, params):
    from rarl.training.rl import train_rl
    from rarl.training.sft import train_sft

    return train_sft(params) if method == "sft" else train_rl(method, params)


def outputs(method: str) -> dict:
    folders = Path("data/models") / method, Path("metrics/train")
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def groups_files() -> list[bytes]:
    return [path.read_bytes() for path in Path(".cache/training").glob("*/groups.jsonl")]


def column(method: str, name: str) -> list[float]:
    with open(f"metrics/train/{method}.csv", encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def steps(method: str) -> list[int]:
    return [int(step) for step in column(method, "step")]


@pytest.fixture
def short(encoded, params):
    params = copy.deepcopy(params)
    params.train.eval_steps, params.rl.learning_rate = 3, 1e-2
    return params


@pytest.fixture
def signalled(monkeypatch):
    """Sends this process a signal while it logs a step."""

    def at(step: int, number: int) -> None:
        on_log, sent = Live.on_log, []

        def send(live, args, state, control, **kwargs):
            on_log(live, args, state, control, **kwargs)
            if state.global_step == step and not sent:
                sent.append(os.kill(os.getpid(), number))

        monkeypatch.setattr(Live, "on_log", send)

    return at


@pytest.mark.parametrize("method", ["sft", "rarl"])
def test_each_step_is_logged_at_once_and_the_end_is_the_same(short, monkeypatch, method):
    """What grew step by step is, byte for byte, what the run writes at its end."""
    seen, on_log, on_end = [], Live.on_log, Live.on_train_end

    def look(live, args, state, control, **kwargs):
        on_log(live, args, state, control, **kwargs)
        status = json.loads((LIVE / f"{method}.json").read_text())
        metrics = json.loads(Path(f"metrics/train/{method}.json").read_text())
        seen.append((steps(method), status["step"], metrics["steps"], len(status["completions"])))

    def end(live, args, state, control, **kwargs):
        on_end(live, args, state, control, **kwargs)
        seen.append(live.csv.read_bytes())

    monkeypatch.setattr(Live, "on_log", look)
    monkeypatch.setattr(Live, "on_train_end", end)
    train(method, short)
    *during, whole = seen
    shown = 0 if method == "sft" else 3
    assert during[:4] == [([*range(1, step + 1)], step, step, shown) for step in range(1, 5)]
    assert whole == Path(f"metrics/train/{method}.csv").read_bytes()
    status = json.loads((LIVE / f"{method}.json").read_text())
    assert status["outcome"] == "finished" and status["best_step"] in (3, 4) and status["memory_mb"] > 0
    if method == "rarl":
        best, middle, worst = (one["advantage"] for one in status["completions"])
        assert best >= middle >= worst
        assert set(status["completions"][0]["rewards"]) == {"format", "length", "accuracy", "reasoning"}


@pytest.mark.parametrize("iterations", [1, 2])
def test_the_spread_of_accuracy_is_recorded_for_each_row(short, monkeypatch, iterations):
    """For `rarl annotate --order useful`: as the reward gave it, under the rows that were asked about."""
    given = []

    def reward(completions, completion_ids, **columns):
        """Differs within a group, which the accuracy of an untrained model does not."""
        rewards = [sum(ids) % 97 / 97 for ids in completion_ids]
        given.append((columns["path"], columns["question"], rewards))
        return rewards

    monkeypatch.setattr("rarl.rewards.accuracy.make_reward", lambda *_: reward)
    short.rl.num_iterations = iterations
    train("grpo", short)
    size, expected = short.rl.group_size, {}
    for images, questions, rewards in given:
        for first in range(0, len(rewards), size):
            row = images[first], questions[first]
            expected.setdefault(row, []).append(statistics.pstdev(rewards[first : first + size]))
    rows, found = {}, spreads()
    for sample in read_records("data/curated/train.jsonl", Sample):
        key = row_key(sample.image, sample.question, sample.choices, sample.answers)
        rows[sample.image, sample.question] = found.get(key, [])
    assert {row for row, spread in rows.items() if spread} == expected.keys()
    for row, spread in expected.items():
        assert rows[row] == pytest.approx(spread, abs=1e-4)
    assert len(given) == 4 // iterations and any(max(spread) > 0 for spread in expected.values())


@pytest.mark.parametrize("method, number", [("sft", signal.SIGTERM), ("grpo", signal.SIGINT)])
def test_a_signal_ends_after_the_step_with_a_checkpoint_and_the_next_run_ends_with_the_same_bits(
    short, signalled, method, number, capfd, monkeypatch
):
    with monkeypatch.context():
        train(method, short)
        whole, recorded = outputs(method), groups_files()
        assert len(recorded) == (method == "grpo")
        for folder in (".cache", f"data/models/{method}", "metrics"):
            shutil.rmtree(folder)
        signalled(1, number)
        with pytest.raises(
            Stopped, match=rf"{method}: stopped after 2 of 4 steps; its last checkpoint is checkpoint-2\."
        ) as stop:
            train(method, short)
    assert stop.value.status == 128 + number and "ends after this step" in capfd.readouterr().err
    assert steps(method) == [1, 2] and not Path(f"data/models/{method}").exists()
    assert json.loads((LIVE / f"{method}.json").read_text())["outcome"] == "stopped"
    assert [path.parent.name for path in Path(".cache/training").glob("*/*/whole.json")] == ["checkpoint-2"]
    seen, on_begin = [], Live.on_train_begin

    def look(live, *args, **kwargs):
        on_begin(live, *args, **kwargs)
        seen.append(steps(method))

    monkeypatch.setattr(Live, "on_train_begin", look)
    train(method, short)
    assert seen == [[1, 2]] and outputs(method) == whole and groups_files() == recorded


def test_a_signal_in_the_last_step_stops_the_pipeline_too(short, signalled):
    """Otherwise DVC would start the next stage."""
    signalled(4, signal.SIGINT)
    with pytest.raises(Stopped, match="4 of 4 steps"):
        train("sft", short)
    assert train("sft", short)["steps"] == 4


def test_completions_of_one_batch_end_with_it(short, signalled):
    """Completions that are used twice are in no checkpoint, so the run goes on to the end of their use."""
    short.rl.num_iterations = 2
    signalled(2, signal.SIGINT)
    with pytest.raises(Stopped, match="stopped after 4 of 4 steps"):
        train("grpo", short)


def test_steps_after_the_checkpoint_are_not_logged_twice(short):
    """A kill after step 4 of a run whose last checkpoint is that of step 3, with a development score of step 4."""
    short.train.eval_steps = 2
    train("sft", short)
    whole = outputs("sft")
    (run,) = Path(".cache/training").iterdir()
    shutil.rmtree(run / "checkpoint-4")
    assert train("sft", short) and outputs("sft") == whole and steps("sft") == [1, 2, 3, 4]


def test_a_run_that_ends_with_an_error_leaves_no_metrics(short):
    short.sft.learning_rate = 1e-60
    with pytest.raises(UserError, match="as before training"):
        train("sft", short)
    assert not Path("metrics/train/sft.json").exists()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_trackers_get_one_curve_of_a_resumed_run(short, signalled, monkeypatch):
    pytest.importorskip("tensorboard")
    pytest.importorskip("dvclive")
    monkeypatch.setenv("RARL_REPORT_TO", "tensorboard, dvclive")
    Path("dvc.yaml").write_text("stages: {}\n")
    with monkeypatch.context():
        signalled(1, signal.SIGTERM)
        with pytest.raises(Stopped):
            train("grpo", short)
    train("grpo", short)
    (folder,) = (LIVE / "tensorboard").iterdir()
    found = scalars(folder)
    with open("metrics/train/grpo.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for theirs, ours in (
        ("train/reward", "reward"),
        ("train/rewards/accuracy/mean", "reward_accuracy"),
        ("train/dev_score", "dev_score"),
    ):
        logged = [(int(row["step"]), float(row[ours])) for row in rows if row[ours]]
        assert [step for step, _ in found[theirs]] == [step for step, _ in logged]
        assert [value for _, value in found[theirs]] == pytest.approx([value for _, value in logged], rel=1e-5)
        with open(f"dvclive/grpo/plots/metrics/{ours}.tsv", encoding="utf-8") as file:
            assert [(int(row["step"]), float(row[ours])) for row in csv.DictReader(file, delimiter="\t")] == logged
    assert json.loads(Path("dvclive/grpo/metrics.json").read_text())["step"] == 4
    assert Path("dvc.yaml").read_text() == "stages: {}\n"


def test_trackers_get_the_steps_of_a_run_that_is_finished_already(short, monkeypatch):
    """As where it was trained ahead of its stage; and the variable is in no key."""
    pytest.importorskip("tensorboard")
    train("sft", short)
    before = outputs("sft")
    monkeypatch.setenv("RARL_REPORT_TO", "tensorboard")
    train("sft", short)
    (folder,) = (LIVE / "tensorboard").iterdir()
    assert [step for step, _ in scalars(folder)["train/loss"]] == [1, 2, 3, 4]
    assert outputs("sft") == before and len(list(Path(".cache/training").iterdir())) == 1


def test_a_tracker_that_fails_ends_no_training(short, monkeypatch, capsys):
    from transformers import TrainerCallback

    from rarl.training import live

    class Broken(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            raise ConnectionError("no route to host")

    monkeypatch.setitem(live.INTEGRATION_TO_CALLBACK, "wandb", Broken)
    monkeypatch.setattr(live, "trackers", lambda: ["wandb"])
    monkeypatch.setattr("rarl.training.run.trackers", lambda: ["wandb"])
    assert train("sft", short)["steps"] == 4
    assert capsys.readouterr().out.count("sft: wandb fails, and gets nothing more of this run: no route to host") == 1
    assert os.environ["WANDB_MODE"] == "offline"


@pytest.mark.parametrize("value, reason", [("tensorbord", "tensorbord"), ("dvclive,mlflow", "mlflow, whose package")])
def test_an_unknown_or_missing_tracker_is_refused_before_anything_is_loaded(short, monkeypatch, value, reason):
    from rarl.training import live
    from rarl.training.run import Run

    monkeypatch.setenv("RARL_REPORT_TO", value)
    monkeypatch.setattr(live.importlib.util, "find_spec", lambda name: None if name == "mlflow" else name)
    monkeypatch.setattr(Run, "load", lambda run: pytest.fail("loaded the model"))
    with pytest.raises(UserError, match=reason):
        train("sft", short)


def test_no_tracker_is_the_default(monkeypatch):
    monkeypatch.delenv("RARL_REPORT_TO", raising=False)
    assert trackers() == []
    monkeypatch.setenv("RARL_REPORT_TO", "none")
    assert trackers() == []


def test_every_tracker_has_a_callback():
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    from rarl.training.live import TRACKERS

    assert set(TRACKERS) <= set(INTEGRATION_TO_CALLBACK)


ROOT = Path(__file__).parents[2]
PIPELINE = """
stages:
  sft:
    cmd: python -m stages.sft
    outs: [data/models/sft]
    metrics: [metrics/train/sft.json: {cache: false}]
    plots: [metrics/train/sft.csv: {cache: false, x: step, y: loss}]
"""


@pytest.fixture
def as_stage(short):
    """Writes params.yaml, and gives the environment of a stage that computes nothing ahead."""
    short.model.device, short.sft.epochs, short.train.eval_steps = "cpu", 6, 8
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(short.model_dump(), file)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = {"HOME": str(Path.cwd()), "DVC_SITE_CACHE_DIR": str(Path("site").absolute()), "SHELL": "/bin/sh"}
    yield os.environ | home | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": path, "DVC_NO_ANALYTICS": "1"}
    os.sched_setaffinity(0, cpus)


def start(command: list[str], environment: dict) -> subprocess.Popen:
    with open("log", "wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_for_steps(process: subprocess.Popen) -> None:
    while read_status("sft").get("step", 0) < 2:
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="cores are chosen on Linux only")
def test_ctrl_c_in_dvc_repro_and_plots_meanwhile(as_stage, short):
    """The real `dvc` in a terminal: it shows the curve while the stage runs, and goes on after Ctrl-C."""
    train("sft", short)
    whole = outputs("sft")
    for folder in (".cache", "data/models/sft", "metrics"):
        shutil.rmtree(folder)
    Path("dvc.yaml").write_text(PIPELINE)

    def dvc(*arguments: str) -> str:
        return subprocess.run(["dvc", *arguments], env=as_stage, capture_output=True, text=True, check=True).stdout

    dvc("init", "--no-scm", "--quiet")
    repro = start(["dvc", "repro"], as_stage)
    wait_for_steps(repro)
    stage = psutil.Process(read_status(STAGE)["pid"])
    stage.suspend()  # this test waits for DVC's page, and the training for this test
    seen = steps("sft")
    page = dvc("plots", "show", "--json")
    stage.resume()
    os.killpg(repro.pid, signal.SIGINT)  # as a terminal does
    assert repro.wait(60) != 0
    text = Path("log").read_text()
    assert "ends after this step" in text and "Run the same command again to go on." in text
    assert "failed to reproduce 'sft'" in text  # exit status 130, or that of the shell in between, by the same signal
    assert "Traceback" not in text
    assert seen[:2] == [1, 2] and f'"step": "{seen[-1]}"' in page and f'"step": "{seen[-1] + 1}"' not in page
    stopped = steps("sft")
    assert stopped == [*range(1, len(stopped) + 1)] and len(seen) <= len(stopped) < 24
    assert "resuming from" in dvc("repro")
    card = Path("data/models/sft/README.md")  # names what dvc.lock has
    assert outputs("sft") | {card: b""} == whole | {card: b""}


def test_sigterm_of_a_whole_job_ends_it_in_order(as_stage):
    """As Slurm sends it: the worker that prepares the rows gets it too, dies, and may take its batch along."""
    stage = start([sys.executable, "-m", "stages.sft"], as_stage)
    wait_for_steps(stage)
    os.killpg(stage.pid, signal.SIGTERM)
    assert stage.wait(60) == 143, Path("log").read_text()
    text, last = Path("log").read_text(), steps("sft")[-1]
    saved = [path.parent.name for path in Path(".cache/training").glob("*/*/whole.json")]
    saved = f"its last checkpoint is {max(saved)}" if saved else "it has no checkpoint yet"
    assert f"sft: stopped after {last} of 24 steps; {saved}." in text and "Traceback" not in text


def test_two_processes_have_the_losses_of_one_and_stop_after_the_same_step(as_stage, short):
    """Ctrl-C reaches them one after the other, by way of the launcher."""
    train("sft", short)
    one = column("sft", "loss")
    for folder in (".cache", "metrics"):
        shutil.rmtree(folder)
    short.accelerate.processes = 2
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(short.model_dump(), file)
    stage = start([sys.executable, "-m", "stages.sft"], as_stage)
    wait_for_steps(stage)
    os.killpg(stage.pid, signal.SIGINT)
    assert stage.wait(60) == 130
    assert Path("log").read_text().count("ends after this step") == 1
    last = steps("sft")[-1]
    assert column("sft", "loss") == pytest.approx(one[:last], rel=1e-4)
    (mark,) = Path(".cache/training").glob(f"*/checkpoint-{last}/whole.json")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= json.loads(mark.read_text()).keys()
    assert last < 24 and read_status("sft")["outcome"] == "stopped" and read_status(STAGE)["outcome"] == "stopped"
