"""Work ahead of later stages: it ends where the stage alone does, and nothing of it is left running or written."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rarl.inference import predictions
from rarl.judges import verdicts
from rarl.models.features import FeatureStore
from rarl.planning import memory as memory_plan
from rarl.records import write_json
from rarl.running import ahead
from rarl.running.ahead import ahead_of_later_stages, later_work, work_after_last
from rarl.training.groups import spreads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def work(method: str, params, which=later_work) -> list[str]:
    return [f"{task.func.__name__} {task.args[0]}" for task in which(method, params)]


def test_later_trainings_come_first_and_models_that_are_ready_are_asked(params):
    assert work("sft", params) == ["train grpo", "train rarl", "ask base", "judge base"]
    ready = ["base", "sft", "grpo", "seed_11"]
    assert work("rarl", params) == [f"{task} {model}" for task in ("ask", "judge") for model in ready]
    assert work("grpo", params, work_after_last) == []
    assert work("rarl", params, work_after_last) == ["ask rarl", "judge rarl"]


def test_what_params_do_not_list_or_what_starts_from_this_training_is_left(params):
    few = params.model_copy(update={"models": ["sft", "rarl"]})
    assert work("sft", few) == ["train rarl"]
    few.train = params.train.model_copy(update={"start": "sft"})
    assert work("sft", few) == [] and work("grpo", few) == ["train rarl", "ask sft", "judge sft"]
    few.models = ["base", "sft"]
    assert work("sft", few, work_after_last) == ["ask sft", "judge sft"]


def test_no_judge_is_asked_ahead(params):
    """It may cost money, for a training that is then not run."""
    params = params.model_copy(deep=True)
    params.reward.reasoning, params.reward.judge = "judge", "gpt_4o_mini"
    assert work("sft", params) == ["train grpo", "ask base", "judge base"]


def test_what_has_no_room_in_memory_is_left(project, params, monkeypatch):
    """A large rival is left out beside the last training, small models are asked."""
    write_json("data/models/seed_11/base.json", {"source": "qwen2_vl_2b", "revision": None, "sha256": None})
    monkeypatch.setattr(memory_plan, "available", lambda device: 4.0)
    assert work("rarl", params) == [f"{do} {one}" for do in ("ask", "judge") for one in ("base", "sft", "grpo")]
    monkeypatch.setattr(memory_plan, "available", lambda device: 1.0)
    assert work("sft", params) == work("rarl", params, work_after_last) == []


def outputs() -> dict:
    files = [*Path("data/models/grpo").rglob("*"), *Path("metrics/train").glob("grpo.*")]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


def test_a_training_that_began_ahead_ends_with_the_same_bits(encoded, params, monkeypatch, capfd):
    """It is stopped between two checkpoints of the schedule, writes no output, and its stage goes on from there."""
    from rarl.training.rl import train_rl

    params = copy.deepcopy(params)
    params.models = ["sft", "grpo"]
    params.rl.max_steps, params.train.eval_steps, params.rl.learning_rate = 40, 20, 1e-2
    monkeypatch.setattr(ahead, "cores", lambda threads: 2)
    monkeypatch.setattr(os, "nice", lambda level: None)
    with ahead_of_later_stages("sft", params):
        while not list(Path(".cache/training").glob("*/checkpoint-20/whole.json")):
            time.sleep(0.02)
    last = max(int(path.name.rpartition("-")[2]) for path in Path(".cache/training").glob("*/checkpoint-*"))
    assert 20 < last < 40 and outputs() == {}
    assert "grpo" in ahead.LOG.read_text()
    train_rl("grpo", params)
    assert f"resuming from .cache/training/{next(Path('.cache/training').iterdir()).name}" in capfd.readouterr().out
    resumed, recorded = outputs(), spreads()
    for folder in (".cache", "data/models/grpo", "metrics"):
        shutil.rmtree(folder)
    train_rl("grpo", params)
    assert resumed == outputs()
    assert recorded == spreads() and sum(map(len, recorded.values())) == 40 * params.rl.prompts_per_step


def test_predictions_that_were_made_ahead_are_not_made_again(encoded, params, monkeypatch):
    params = copy.deepcopy(params)
    params.models, params.modes = ["base"], ["direct"]
    FeatureStore().save("data/features/benchmarks")
    monkeypatch.setattr(ahead, "cores", lambda threads: 2)
    with ahead_of_later_stages("rarl", params):
        while len("".join(path.read_text() for path in Path(".cache/predictions").glob("*")).splitlines()) < 6:
            time.sleep(0.05)
    assert not Path("data/predictions").exists()
    monkeypatch.setattr(predictions, "ask_sets", lambda *args: pytest.fail("asked again"))
    predictions.infer("base", params)
    assert len(Path("data/predictions/base/direct/silvar_med.jsonl").read_text().splitlines()) == 6


def test_the_last_training_asks_and_judges_its_model_for_the_stages_that_follow(encoded, params, monkeypatch):
    params = copy.deepcopy(params)
    params.models, params.modes, params.judges = ["rarl"], ["direct"], ["semantic"]
    FeatureStore().save("data/features/benchmarks")
    monkeypatch.setattr(ahead, "cores", lambda threads: 2)
    with ahead_of_later_stages("rarl", params):
        shutil.copytree("data/models/base", "data/models/rarl")  # what a training writes
    assert not any(Path(path).exists() for path in ("data/predictions", "data/verdicts", ahead.SCRATCH))
    monkeypatch.setattr(predictions, "ask_sets", lambda *args: pytest.fail("asked again"))
    monkeypatch.setattr(verdicts, "keep_verdicts", lambda *args: pytest.fail("judged again"))
    monkeypatch.setattr(verdicts, "judged", lambda *args, **kwargs: pytest.fail("judged again"))
    predictions.infer("rarl", params)
    verdicts.judge_model(params, "semantic", "rarl")
    assert len(Path("data/verdicts/rarl/semantic/direct/silvar_med.jsonl").read_text().splitlines()) == 6


def test_predictions_are_not_written_for_judges_without_a_text_encoder(params, monkeypatch):
    monkeypatch.setattr(predictions, "finish", lambda *args: pytest.fail("asked"))
    ahead.judge("base", params.model_copy(update={"judges": ["lexical"]}))


def test_a_training_that_fails_asks_nothing(encoded, params, monkeypatch):
    monkeypatch.setattr(ahead, "cores", lambda threads: 2)
    monkeypatch.setattr(ahead, "work_after_last", lambda *args: [Path("asked").touch])
    with pytest.raises(ZeroDivisionError), ahead_of_later_stages("rarl", params.model_copy(update={"models": []})):
        raise ZeroDivisionError
    assert not Path("asked").exists()


def test_two_processes_do_not_train_in_one_folder(encoded, params):
    """What runs ahead leaves a run that another process trains; a stage waits for it."""
    from rarl.training.rl import prepare, work_ahead

    run, _, _ = prepare("grpo", params)
    with run.alone(wait=False):
        work_ahead("grpo", params)
    assert not list(run.folder.glob("checkpoint-*"))


@pytest.mark.parametrize(("count", "switch"), [(1, "1"), (2, "0")])
def test_nothing_runs_ahead_on_one_core_or_in_a_study(tmp_path, params, monkeypatch, count, switch):
    monkeypatch.setenv("RARL_AHEAD", switch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ahead, "cores", lambda threads: count)
    with ahead_of_later_stages("sft", params):
        assert not psutil.Process().children()
    assert not ahead.LOG.exists()


def test_a_task_that_fails_holds_up_no_other_and_none_outlives_the_block(tmp_path, params, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ahead, "cores", lambda threads: 2)

    def second():
        Path("second").touch()
        time.sleep(60)

    monkeypatch.setattr(ahead, "later_work", lambda *args: [lambda: 1 / 0, second])
    before = set(psutil.Process().children())
    with ahead_of_later_stages("sft", params):
        while not Path("second").exists():
            time.sleep(0.02)
    assert set(psutil.Process().children()) <= before
    assert "ZeroDivisionError" in ahead.LOG.read_text()


def test_processes_end_with_a_killed_stage(tmp_path):
    code = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from rarl.running import ahead\n"
        "from rarl.params import load_params\n"
        "ahead.cores = lambda threads: 2\n"
        "ahead.later_work = lambda *_: [lambda: (Path(str(os.getpid())).touch(), time.sleep(60))]\n"
        f"params = load_params(r'{Path('params.yaml').resolve()}')\n"
        "with ahead.ahead_of_later_stages('sft', params):\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as stage:
        while not (started := [path for path in tmp_path.iterdir() if path.name.isdecimal()]):
            assert stage.poll() is None
            time.sleep(0.05)
        stage.send_signal(signal.SIGKILL)
    children = [psutil.Process(int(path.name)) for path in started if psutil.pid_exists(int(path.name))]
    assert not psutil.wait_procs(children, timeout=30)[1]
