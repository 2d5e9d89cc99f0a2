"""docs/cluster: the job for Slurm is stopped, queued again and resumed (by stand-ins); SkyPilot reads its task."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
JOB = ROOT / "docs/cluster/rarl.sbatch"
#: `dvc exp run` starts a training that ends when it is told to, and otherwise as it was left the last time.
DVC = """#!/bin/bash
echo "dvc $*" >> "$CALLS"
case "$*" in *"exp run"*)
  python3 -c '
import os, pathlib, signal, sys, time
checkpoint = pathlib.Path(sys.argv[1])
if checkpoint.exists():
    sys.exit(int(checkpoint.read_text()))
signal.signal(signal.SIGTERM, lambda *_: (checkpoint.write_text("0"), os._exit(143)))
checkpoint.with_suffix(".started").touch()
time.sleep(60)
' "$CHECKPOINT"
esac
"""


@pytest.fixture
def job(tmp_path):
    """Starts the job in a project with stand-ins on its path; `calls` has their command lines."""
    project, tools = tmp_path / "project", tmp_path / "tools"
    (project / ".venv/bin").mkdir(parents=True)
    tools.mkdir()
    (project / "Makefile").write_text("identity site-cache:\n", encoding="utf-8")
    for file, text in {
        project / ".venv/bin/dvc": DVC,
        tools / "scontrol": '#!/bin/bash\necho "scontrol $*" >> "$CALLS"\n',
    }.items():
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@localhost"]
    for command in (["init", "-q"], ["add", "Makefile"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *command], check=True)
    files = {"CALLS": tmp_path / "calls", "CHECKPOINT": tmp_path / "checkpoint", "SLURM_SUBMIT_DIR": project}
    environment = os.environ | {name: str(path) for name, path in files.items()} | {"SLURM_JOB_ID": "7"}
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"

    def start():
        command = ["bash", str(JOB), "r16", "-S", "lora.r=16"]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    start.calls, start.checkpoint, start.project = files["CALLS"], files["CHECKPOINT"], project
    start.environment = environment
    return start


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_slurm_ends_is_queued_again_and_resumes(job, number):
    first = job()
    while not job.checkpoint.with_suffix(".started").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(number)
    assert first.wait(20) == 0
    assert job.checkpoint.exists() and "scontrol requeue 7" in job.calls.read_text()
    job.calls.unlink()
    assert job().wait(20) == 0
    calls = job.calls.read_text().splitlines()
    assert calls[-2:] == ["dvc exp run --name r16 -S lora.r=16", "dvc exp push --quiet --no-cache origin r16"]
    assert (job.project / "tmp/slurm/r16/Makefile").is_file()


def test_a_job_that_fails_is_not_queued_again(job):
    job.checkpoint.write_text("3")
    assert job().wait(20) == 3
    assert "scontrol" not in job.calls.read_text() and "exp push" not in job.calls.read_text()


def test_a_clone_of_another_commit_is_not_run_under_the_same_name(job, capfd):
    job.checkpoint.write_text("0")
    assert job().wait(20) == 0
    job.calls.unlink()
    commit = ["git", "-C", str(job.project), "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "-q"]
    subprocess.run([*commit, "--allow-empty", "-m", "next"], check=True)
    assert job().wait(20) == 1 and "tmp/slurm/r16 is of another commit" in capfd.readouterr().err
    assert not job.calls.exists()
    job.environment["SLURM_RESTART_COUNT"] = "1"
    assert job().wait(20) == 0


def test_the_options_of_the_job_are_before_its_first_command():
    lines = JOB.read_text(encoding="utf-8").splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first:])
    assert {"--requeue", "--signal=B:USR1@300", "--open-mode=append"} <= {*options}
    assert all(option.startswith("--") and " " not in option for option in options)


def test_skypilot_reads_the_task():
    sky = pytest.importorskip("sky")
    config = YAML(typ="safe").load(ROOT / "docs/cluster/sky.yaml")
    given = {name: [(key, "x") for key in config[name]] for name in ("envs", "secrets")}
    task = sky.Task.from_yaml_config(config, env_overrides=given["envs"], secrets_overrides=given["secrets"])
    assert task.name == "rarl" and task.num_nodes == 1 and "dvc exp run" in task.run
    assert subprocess.run(["bash", "-n"], input=f"{task.setup}\n{task.run}", text=True).returncode == 0
