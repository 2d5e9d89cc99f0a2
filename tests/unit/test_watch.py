"""`rarl watch` before, during and after a run, and the small files that it reads."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from rarl.cli.watch import main
from rarl.processes.status import LIVE, read_status, running, write_status
from rarl.processes.stopping import Stopped

TRAINING = {
    "pid": os.getpid(), "started": time.time(), "updated": time.time(), "outcome": "running",
    "step": 30, "max_steps": 120, "seconds_per_step": 2.0, "best_step": 25, "dev_score": 36.4,
    "memory_mb": 2048, "completions": [
        {"text": "<think>Bright.\x1b[2J\u202e</think>", "advantage": 1.5, "rewards": {"format": 1.0, "accuracy": 0.0}},
    ],
}  # fmt: skip
ROWS = ["step,dev_score,reward,kl,truncated_share,zero_signal_share,reward_format"]
ROWS += [f"{step},{36.4 if step == 25 else ''},{step / 10},0.01,0.25,0.5,1.0" for step in range(1, 31)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def log(status: dict, root: Path = Path()) -> None:
    (root / LIVE).mkdir(parents=True, exist_ok=True)
    (root / LIVE / "grpo.json").write_text(json.dumps(status))
    (root / "metrics/train").mkdir(parents=True)
    (root / "metrics/train/grpo.csv").write_text("\n".join(ROWS) + "\n")


def shown(columns: int = 160) -> str:
    result = CliRunner().invoke(main, [], catch_exceptions=False, env={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    return result.output


def test_before_a_run_it_says_what_starts_one(project):
    assert "no stage has run" in shown() and "`dvc repro` starts one" in shown()


def test_during_a_training_it_shows_how_it_goes(project):
    log(TRAINING)
    with running("grpo"):
        output = shown()
    assert "stage grpo has run for" in output and "grpo: step 30 of 120 · about 3 min left" in output
    assert "best development score 36.4 at step 25" in output and "peak memory 2.0 GB" in output
    lines = {line.strip().split("  ")[0]: line for line in output.splitlines()}
    assert lines["reward"].split()[1:3] == ["3", "2.9"] and "▁" in lines["reward"] and "█" in lines["reward"]
    assert lines["last"].strip().split("  ")[-1] == "from first to last step" and "━" not in lines["last"]
    assert "25 %" in lines["truncated completions"] and "50 %" in lines["groups without signal"]
    assert "format 1, accuracy 0; advantage +1.50" in output


def test_the_table_fits_into_80_columns(project, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROWS", ROWS + [f"{step},,0.0123456,,,," for step in range(31, 121)])
    log(TRAINING)
    assert "recent mean" in shown(80) and "…" not in shown(80)


def test_no_control_character_of_a_completion_reaches_the_terminal(project):
    log(TRAINING)
    output = shown()
    assert r"<think>Bright.\x1b[2J\u202e</think>" in output and "\x1b" not in output and "\u202e" not in output


@pytest.mark.parametrize(
    "change, words",
    [
        ({"outcome": "finished", "step": 120}, "step 120 of 120 · finished"),
        ({"outcome": "stopped"}, "step 30 of 120 · stopped"),
        ({"started": 0.0}, "step 30 of 120 · killed"),  # another process has its number now
    ],
)
def test_after_a_training_it_says_how_it_ended(project, change, words):
    log(TRAINING | change)
    with running("infer", "base"):
        pass
    output = shown()
    assert words in output and "left" not in output and "stage infer (base) finished" in output


def test_a_training_without_rewards_and_without_a_csv_yet(project):
    write_status("sft", TRAINING | {"completions": [], "seconds_per_step": None, "step": 0, "dev_score": None})
    assert "sft: step 0 of 120 · time left unknown" in shown()


@pytest.mark.parametrize(
    "error, outcome", [(Stopped("x", 15), "stopped"), (KeyboardInterrupt(), "stopped"), (OSError(), "failed")]
)
def test_how_a_stage_ended_is_published(project, error, outcome):
    with pytest.raises(type(error)), running("sft"):
        assert "outcome" not in read_status("stage")
        raise error
    assert read_status("stage")["outcome"] == outcome and f"stage sft {outcome}" in shown()


def test_a_stage_that_was_killed_is_known_as_such(project):
    write_status("stage", {"stage": "encode", "items": [], "pid": os.getpid(), "started": 0})
    assert "stage encode was killed" in shown()


def test_an_experiment_in_a_copy_of_the_project_is_followed(project):
    with running("check"):
        pass
    copy = project / ".dvc/tmp/exps/tmp1"
    log(TRAINING, copy)
    (copy / LIVE / "stage.json").write_text(
        json.dumps({"stage": "grpo", "items": [], "pid": os.getpid(), "started": time.time() + 1})
    )
    assert "stage grpo" in shown() and "grpo: step 30" in shown()


def test_only_the_user_can_read_the_files(project):
    os.umask(os.umask(0))
    write_status("grpo", TRAINING)
    assert LIVE.stat().st_mode & 0o777 == 0o700 and (LIVE / "grpo.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in LIVE.iterdir()] == ["grpo.json"]


def test_git_and_dvc_ignore_the_files(repository):
    for name in (f"{LIVE}/grpo.json", "dvclive/grpo/metrics.json"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=repository).returncode == 0
    assert f"{LIVE.parts[0]}/" in (repository / ".dvcignore").read_text().split()


def test_a_folder_that_cannot_be_written_ends_nothing(project):
    Path(".cache").write_text("no folder")
    with running("sft"):
        pass
    assert read_status("stage") == {}


def test_on_a_terminal_it_follows_until_ctrl_c(project):
    """Under a pseudo-terminal: a step that is logged later is shown, and Ctrl-C ends it without a traceback."""
    import pty
    import select

    log(TRAINING)
    terminal, other = pty.openpty()
    # A process that was started in the background inherits that Ctrl-C is ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from rarl.cli.watch import main; main(['--seconds', '0.1'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=other,
        stdout=other,
        stderr=other,
        env=os.environ | {"COLUMNS": "160", "LINES": "40", "TERM": "xterm"},
    )
    os.close(other)
    seen = ""

    def read_until(words: str) -> None:
        nonlocal seen
        end = time.monotonic() + 20
        while words not in seen and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
        assert words in seen

    read_until("step 30 of 120")
    write_status("grpo", TRAINING | {"step": 31})
    read_until("step 31 of 120")
    process.send_signal(2)
    with suppress(OSError):  # the end of a pseudo-terminal; unread, its buffer would block the process
        while rest := os.read(terminal, 65536):
            seen += rest.decode(errors="replace")
    assert process.wait(20) == 0 and "Traceback" not in seen
    os.close(terminal)
