"""Ctrl-C and SIGTERM: noted once, obeyed at once the second time, and passed on to the processes of a launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rarl.processes.stopping import Stopped, StopRequest


def test_the_first_signal_is_noted_and_the_second_ctrl_c_ends_at_once(capfd):
    request = StopRequest(signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), request.noted("ends soon"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("ends soon") == 1
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_forked_worker_leaves_the_signal_to_its_parent(capfd):
    request = StopRequest(signal.SIGINT)
    with request.noted("ends soon"):
        worker = os.fork()
        if not worker:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        assert os.waitpid(worker, 0)[1] == 0
    assert request.signal is None and "ends soon" not in capfd.readouterr().err


def test_a_stop_is_told_by_the_exit_status():
    assert Stopped("sft: stopped.", signal.SIGINT).status == 130 and Stopped("", signal.SIGTERM).status == 143
    assert str(Stopped("sft: stopped.", signal.SIGINT)) == "sft: stopped. Run the same command again to go on."


LAUNCHER = """
import signal, subprocess, sys, time
from pathlib import Path
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
def end(number, frame):
    Path("received").write_text(f"{number} ")
    if sys.argv[1] == "patient":
        worker.kill()
        sys.exit(1)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
Path("worker").write_text(str(worker.pid))
while True:
    time.sleep(0.1)
"""
PARENT = """
import os, sys
from rarl.processes.stopping import Stopped, run_launcher
try:
    run_launcher([sys.executable, "-c", sys.argv[1], sys.argv[2]], dict(os.environ))
except Stopped as stopped:
    sys.exit(stopped.status)
"""


@pytest.mark.parametrize(
    "kind, number", [("patient", signal.SIGINT), ("patient", signal.SIGTERM), ("deaf", signal.SIGINT)]
)
def test_a_launcher_gets_a_signal_once_and_a_second_ctrl_c_kills_its_processes(tmp_path, kind, number):
    import psutil

    command = [sys.executable, "-c", PARENT, LAUNCHER, kind]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "worker").is_file() or not (tmp_path / "worker").read_text():
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal does
    while not (tmp_path / "received").is_file():
        time.sleep(0.02)
    if kind == "deaf":
        os.killpg(process.pid, number)
    assert process.wait(20) == 128 + number
    assert (tmp_path / "received").read_text() == f"{number} "
    worker = int((tmp_path / "worker").read_text())
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE
