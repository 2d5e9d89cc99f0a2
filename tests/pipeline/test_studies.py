"""`rarl study` with the real `dvc` and its queue, on a pipeline of three small stages: killed, stopped, failing.

`RARL_KILLS=10 pytest tests/pipeline/test_studies.py -s` kills the study at ten random moments and prints where.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev

import psutil
import pytest
from project import ROOT, Project
from ruamel.yaml import YAML

KILLS = int(os.environ.get("RARL_KILLS", 2))
PIPELINE = {
    "stages": {
        "train": {
            "cmd": "python -S train.py",
            "deps": ["train.py"],
            "params": ["seed", "lora.r"],
            "outs": ["data/model.txt"],
        },
        "score": {
            "matrix": {"model": ["base", "rarl"]},
            "cmd": "python -S score.py ${item.model}",
            "deps": ["data/model.txt", "score.py"],
            "outs": [{"metrics/scores/${item.model}.json": {"cache": False}}],
        },
    }
}
#: Counts each training in the file RAN, takes a while, fails with seed 13 while the file RAN.broken is there, and does
#: not end while RAN.hold is.
TRAIN = """\
import os, sys, time
text = open("params.yaml").read()
seed, rank = (int(text.split(key)[1].split()[0]) for key in ("\\nseed:", "\\n  r:"))
with open(os.environ["RAN"], "a") as file:
    file.write(f"{seed}\\n")
if seed == 13 and os.path.exists(os.environ["RAN"] + ".broken"):
    sys.exit("the loss is not finite")
time.sleep(1)
while os.path.exists(os.environ["RAN"] + ".hold"):
    time.sleep(0.1)
with open("data/model.txt", "w") as file:
    file.write(f"{seed * seed % 40 + rank}")
"""
SCORE = """\
import json, os, sys
final = int(open("data/model.txt").read()) + len(sys.argv[1])
cell = {"final": final, "final_low": final - 9, "final_high": final + 9, "n": 150, "answer_words": 1.5}
os.makedirs("metrics/scores", exist_ok=True)
with open(f"metrics/scores/{sys.argv[1]}.json", "w") as file:
    json.dump({"reasoning": {"silvar_med": {"lexical": cell}, "slake": {"lexical": cell}}}, file)
"""
#: The project has no copy of the code.
PYTHON = ("env", f"PYTHONPATH={ROOT}", sys.executable)
SEEDS = ("seeds", "--seeds", "7,8,9")


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Project:
    """A committed default run; leave it as it is."""
    folder = tmp_path_factory.mktemp("study") / "project"
    (folder / "data").mkdir(parents=True)
    for name in ("params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with (folder / "dvc.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(PIPELINE, file)
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    (folder / "score.py").write_text(SCORE, encoding="utf-8")
    project = Project(folder)
    project.change("models", ["base", "rarl"])
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("config", "user.name", "a")
    project.git("config", "user.email", "a@localhost")
    os.environ["RAN"] = os.devnull
    project.dvc("repro", "--quiet")
    project.commit()
    return project


@pytest.fixture
def project(first, tmp_path, monkeypatch) -> Project:
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    return first.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def killed(first, tmp_path_factory) -> Project:
    """The same after a study over three seeds that was killed, and started again until it ended."""
    project = first.copy(tmp_path_factory.mktemp("killed") / "project")
    os.environ["RAN"] = str(project.folder.parent / "ran")
    project.dvc("exp", "run", "--queue", "-n", "mine", "-S", "seed=9")  # Taken over, whatever its name
    moments = random.Random(12)  # The first two: while it queues, and while the last experiment runs
    for kill in range(KILLS):
        log = project.folder.parent / f"{kill}.log"
        start_and_kill(project, log, moments.randrange(11), moments.uniform(0, 2))
        print(kill, *log.read_text(encoding="utf-8").splitlines()[-1:])
        assert project.git("rev-parse", "--abbrev-ref", "HEAD").strip() == "main"
    assert "3 experiments" in study(project, *SEEDS)
    return project


def study(project: Project, *arguments: str, code: int = 0) -> str:
    shown = project.run(*PYTHON, "-m", "rarl", "study", *arguments, code=code)
    assert "Traceback" not in shown
    return shown


def start(project: Project, log: Path, *arguments: str) -> subprocess.Popen:
    """A study in the background, as a shell starts it; `exec` gives its process the id that is killed."""
    env = os.environ | {"HOME": str(project.home), "DVC_SITE_CACHE_DIR": str(project.home / "site")}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    command = [sys.executable, "-m", "rarl", "study", *arguments]
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(command, cwd=project.folder, env=env, stdout=file, stderr=file)


def start_and_kill(project: Project, log: Path, lines: int, seconds: float) -> None:
    """Kill a study some seconds after it has printed this number of lines, or ended."""
    running = start(project, log, *SEEDS)
    until(lambda: running.poll() is not None or len(log.read_text(encoding="utf-8").splitlines()) >= lines)
    time.sleep(seconds)
    running.kill()
    running.wait()


def final(seed: int, model: str, rank: int = 8) -> int:
    """The score that TRAIN and SCORE make."""
    return seed * seed % 40 + rank + len(model)


def until(found, seconds: float = 60):
    """Wait until `found` returns something, and return that."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.1)
    return value


def trainings(project: Project) -> list[str]:
    file = project.folder.parent / "ran"
    return file.read_text(encoding="utf-8").split() if file.exists() else []


def test_a_study_that_is_killed_ends_with_the_table_of_one_that_is_not(killed):
    assert sorted(trainings(killed)) == ["8", "9"], "no training ran twice"
    assert killed.git("status", "--porcelain").split() == ["??", "metrics/studies/"]
    lines = ["profile,model,mode,set,seeds,mean,sd,low,high,untagged,answer_words,form_blind"]
    for model in ("base", "rarl"):
        scores = [final(seed, model) for seed in (7, 8, 9)]
        numbers = f"{fmean(scores):.2f},{stdev(scores):.2f},{min(scores):.1f},{max(scores):.1f},,1.5,"
        lines += [f"embedded,{model},reasoning,{name},3,{numbers}" for name in ("silvar_med", "slake")]
    folder = killed.folder / "metrics/studies"
    assert (folder / "seeds.csv").read_text(encoding="utf-8").splitlines() == lines
    assert sorted(file.name for file in folder.iterdir()) == ["seeds.csv", "seeds.md", "seeds.svg"]


def test_what_is_finished_is_not_run_again(killed, tmp_path):
    """The parameters and the code decide, not the name of the study or of the experiment."""
    project = killed.copy(tmp_path / "project")
    command = "exec python -m rarl study sweep -S seed=7,8,9 --json 2> told"
    lines = json.loads(project.run(*PYTHON[:2], "sh", "-c", command))
    assert [line["model"] for line in lines] == ["base", "rarl"]
    rarl = lines[1]
    assert (rarl["seeds"], rarl["silvar_med"]) == (3, round(fmean(final(seed, "rarl") for seed in (7, 8, 9)), 2))
    assert rarl["silvar_med_low"] == pytest.approx(rarl["silvar_med"] - 9, abs=0.01) and rarl["slake_sd"] > 0
    assert "0 to run" in (project.folder / "told").read_text(encoding="utf-8")
    assert "<svg" in (project.folder / "metrics/studies/sweep.svg").read_text(encoding="utf-8")

    (project.folder / "train.py").write_text(f"{TRAIN}# Other code\n", encoding="utf-8")
    shown = study(project, "sweep", "-S", "seed=7,8,9", "--dry-run")
    assert "3 to run" in shown and "uncommitted changes go into each experiment, as DVC does it: train.py" in shown


def test_failures_and_stops(project, tmp_path):
    """A failed experiment stops no other; a killed worker's is started again; Ctrl-C leaves nothing behind."""
    hold, log = tmp_path / "ran.hold", tmp_path / "log"
    hold.touch()
    (tmp_path / "ran.broken").touch()
    running = start(project, log, "seeds", "--seeds", "7,13,8", "--jobs", "1")
    until(lambda: trainings(project) == ["13", "8"])
    assert "seeds-seed_13: FAILED in stage train" in until(lambda: log.read_text(encoding="utf-8"))
    assert "the loss is not finite" in log.read_text(encoding="utf-8")

    (worker,) = (p for p in psutil.process_iter(["cmdline"]) if is_worker(p, project))
    os.killpg(os.getpgid(worker.pid), signal.SIGKILL)
    until(lambda: trainings(project) == ["13", "8", "8"])
    assert "its worker was killed; it starts again" in log.read_text(encoding="utf-8")

    other = study(project, *SEEDS, code=1)
    assert f"a study that runs (process {running.pid})" in other and f"kill -INT {running.pid}" in other

    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130 and "run the same command again to go on" in log.read_text(encoding="utf-8")
    queue = project.dvc("queue", "status")
    assert "Running" not in queue and "Queued" not in queue and not list(project.folder.glob(".dvc/tmp/exps/tmp*"))

    hold.unlink()
    shown = study(project, "seeds", "--seeds", "7,13,8", code=1)
    assert "1 of 2 experiments failed: seeds-seed_13" in shown and "seeds-seed_8: finished" in shown
    assert "| 2 |" in (project.folder / "metrics/studies/seeds.md").read_text(encoding="utf-8")


def is_worker(process: psutil.Process, project: Project) -> bool:
    try:
        return "queue-worker" in process.info["cmdline"] and str(project.folder) in process.cwd()
    except (psutil.Error, TypeError):
        return False
