"""DVC's queue of experiments: what is in it, its workers and logs, and what a killed worker left behind."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from rarl.processes.forks import AHEAD
from rarl.records import read_json

#: What the last DVC command has printed.
LOG = Path(".dvc/tmp/rarl-study.log")


class Queue:
    """DVC's queue of experiments."""

    def __init__(self):
        from dvc.repo import Repo

        self.queue = Repo().experiments.celery_queue
        self._states: dict[str, dict] = {}

    def states(self) -> dict[str, dict]:
        """Return commit -> `name` and `status` of all tasks; the last known ones while DVC writes its files."""
        from dvc.exceptions import DvcException

        with suppress(DvcException, OSError, ValueError, UnboundLocalError):
            self._states = {task["rev"]: task for task in self.queue.status()}
        return self._states

    def workers(self) -> set[int]:
        """Return the processes that take experiments from the queue."""
        found = set()
        for file in Path(self.queue.wdir).glob("dvc-exp-worker-*.json"):
            with suppress(OSError, ValueError, psutil.Error):
                pid = read_json(file)["pid"]
                if "queue-worker" in psutil.Process(pid).cmdline():
                    found.add(pid)
        return found

    def process(self, revision: str) -> psutil.Process | None:
        """Return the process that runs an experiment; None while a worker prepares or collects it."""
        with suppress(KeyError, OSError, ValueError, psutil.Error):
            info = self.queue.proc[revision]
            return psutil.Process(info.pid) if info.returncode is None else None
        return None

    def log(self, revision: str) -> str:
        """Return what an experiment has printed."""
        file = Path(self.queue.pid_dir, revision, f"{revision}.out")
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def remove(self, revision: str) -> None:
        """Remove a task that waits or has ended."""
        from dvc.exceptions import DvcException

        with suppress(DvcException):
            self.queue.remove([revision])
            self._states.pop(revision, None)

    def clear(self, revision: str) -> None:
        """Remove a task whose worker was killed, with its process and its temporary folder."""
        from dvc.exceptions import DvcException
        from dvc.repo.experiments.executor.base import ExecutorInfo

        if process := self.process(revision):
            with suppress(OSError):
                os.killpg(os.getpgid(process.pid), signal.SIGKILL)
            psutil.wait_procs([process], timeout=10)
        dvc("queue", "kill", "--force", revision)
        self.remove(revision)
        with suppress(OSError, ValueError, DvcException):
            shutil.rmtree(ExecutorInfo.load_json(self.queue.get_infofile_path(revision)).root_dir)


def dvc(*arguments: str, lock: int | None = None, marker: Path | None = None) -> int:
    """Run a DVC command, and return its exit status; `LOG` has what it prints.

    Neither Ctrl-C nor a kill of this process reaches it.

    Args:
        *arguments: Of the command.
        lock: A file descriptor that it holds until it ends.
        marker: A file that is deleted when it ends, unless it was killed.
    """
    folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}", AHEAD: "0"}
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    if marker:
        script = '"$@"; code=$?; [ $code -gt 128 ] || rm -f "$0"; exit $code'
        command = ["sh", "-c", script, str(marker), *command]
    with LOG.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def printed() -> str:
    """Return the end of what the last DVC command has printed."""
    return " ".join(LOG.read_text(encoding="utf-8", errors="replace").split())[-300:]
