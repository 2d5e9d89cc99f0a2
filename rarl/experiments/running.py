"""Run the experiments of a study through DVC's queue: `dvc exp run --queue`, `dvc queue start`.

DVC keeps all state: a queued experiment is a commit with its parameters and code, and the workers are processes of
their own. A study that is started again therefore finds by their parameters the experiments that have finished, that
run and that wait, and queues only the others. What a killed worker left behind is removed and queued again.
"""

import fcntl
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import psutil

from rarl.errors import UserError
from rarl.experiments.designs import TARGETS, Combination, Design, with_settings
from rarl.experiments.dvc_queue import Queue, dvc, printed
from rarl.experiments.progress import Progress
from rarl.experiments.revisions import Experiment, git

LOCK = Path(".dvc/tmp/rarl-study.lock")
#: The branch and changes of the workspace while an experiment is queued.
WORKSPACE = Path(".dvc/tmp/rarl-study.workspace")
#: Seconds between two looks at the queue, and until workers are started again.
TICK, RESTART = 0.5, 15
#: Looks in a row that find no process of a task until it is lost: a worker that takes it hides it from the queue for a
#: moment. Not seconds, because on a busy machine a look can take many.
LOST = 10
#: Attempts to start workers before giving up.
STARTS = 4
#: Lines of the log of a failed experiment that are printed.
TAIL = 15


@contextmanager
def only_study() -> Iterator[int]:
    """Hold the lock of studies; yield its file descriptor, which commands inherit that a kill must not interrupt.

    Raises:
        UserError: another study runs, or this is no DVC repository.
    """
    if not Path(".dvc").is_dir():
        raise UserError("rarl study", "no folder .dvc", "a DVC repository", "run this in the clone")
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                owner = file.read()
                if owner.isdigit() and psutil.pid_exists(int(owner)):
                    found = f"a study that runs (process {owner})"
                    fix = f"wait for it, or stop it: `kill -INT {owner}`"
                    raise UserError("rarl study", found, "one study at a time", fix) from None
                time.sleep(TICK)  # A killed study's `dvc exp run --queue`
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        check_workspace()
        yield file.fileno()


def workspace() -> str:
    """Return the branch, and a hash of the uncommitted changes."""
    changes = sha256(git("diff", "--binary", "HEAD").encode()).hexdigest()
    return f"{git('symbolic-ref', '--short', '--quiet', 'HEAD', check=False).strip()} {changes}"


def check_workspace() -> None:
    """Look whether `dvc exp run --queue` itself was killed: it detaches HEAD and changes files for a moment.

    Raises:
        UserError: the branch or the files are not those of before.
    """
    before = WORKSPACE.read_text(encoding="utf-8") if WORKSPACE.is_file() else None
    if before not in (None, workspace()):
        branch = before.split(" ")[0] or "<branch>"
        found = "`dvc exp run --queue` was killed: HEAD may be detached, params.yaml may have an experiment's values"
        fix = f"`git status` shows them, `git stash list` your own changes; `git checkout {branch}`, `rm {WORKSPACE}`"
        raise UserError("the workspace", found, f"branch {branch} with your own changes", fix)
    WORKSPACE.unlink(missing_ok=True)


@dataclass
class Task:
    """An experiment of the study in DVC's queue."""

    combination: Combination
    name: str
    revision: str
    unseen: int = 0
    """Looks in a row that found neither a process of it nor progress."""
    started: float | None = None
    """Seconds as in `time.monotonic`."""


class Running:
    """The missing experiments of a study, from the queue to their end."""

    def __init__(self, design: Design, missing: list[Combination], progress: Progress, lock: int):
        self.design, self.missing, self.progress, self.lock = design, missing, progress, lock
        self.queue = Queue()
        self.tasks: list[Task] = []
        self.finished: dict[str, Experiment] = {}
        self.failed: dict[str, str] = {}
        self._restart, self._starts = 0.0, 0

    def begin(self) -> None:
        """Take over what is in the queue, and queue the rest."""
        self._adopt()
        adopted = {task.combination.name for task in self.tasks}
        ours = {task.revision for task in self.tasks}
        others = [task for rev, task in self.queue.states().items() if task["status"] == "Queued" and rev not in ours]
        if others:
            self.progress.event(f"{len(others)} other experiments in DVC's queue run as well (`dvc queue status`)")
        for combination in self.missing:
            if combination.name not in adopted:
                self.tasks.append(self._enqueue(combination))

    def _adopt(self) -> None:
        """Take over what an earlier start of the study, or the user, has queued with the parameters of one missing.

        Failed tasks, and those of this study's names with other parameters or code, are removed.
        """
        known = {task.revision for task in self.tasks}
        tasks = {rev: task for rev, task in self.queue.states().items() if rev not in known}
        for revision, task in tasks.items():
            if task["status"] == "Success":
                continue
            here = git("rev-parse", f"{revision}^1", check=False).strip() == self.design.head
            same = [one for one in self.missing if here and self.design.made_of(revision, one)]
            free = [one for one in same if one not in (task.combination for task in self.tasks)]
            named = any(re.fullmatch(rf"{re.escape(one.name)}(-\d+)?", task["name"] or "") for one in self.missing)
            if task["status"] in ("Queued", "Running") and free:
                self.tasks.append(Task(free[0], task["name"], revision))
            elif (task["status"] == "Failed" and same) or (task["status"] == "Queued" and named):
                self.queue.remove(revision)

    def _enqueue(self, combination: Combination) -> Task:
        """Queue one experiment.

        Raises:
            UserError: DVC refuses it.
        """
        refs = git("for-each-ref", "--format=%(refname:lstrip=4)", f"refs/exps/{self.design.head[:2]}").split()
        taken = {*refs, *(task["name"] for task in self.queue.states().values() if task["status"] == "Running")}
        names = (combination.name, *(f"{combination.name}-{number}" for number in range(2, 1000)))
        name = next(name for name in names if name not in taken)
        known = set(self.queue.states())
        target = [TARGETS[self.design.study]] if self.design.study in TARGETS else []
        settings = [part for setting in combination.settings for part in ("-S", setting)]
        WORKSPACE.write_text(workspace(), encoding="utf-8")
        code = dvc("exp", "run", "--queue", "-n", name, *target, *settings, lock=self.lock, marker=WORKSPACE)
        new = [rev for rev, task in self.queue.states().items() if task["name"] == name and rev not in known]
        if code or not new:
            fix = "correct that; `make identity` sets git's user name and email"
            raise UserError(f"dvc exp run --queue -n {name}", printed(), "a queued experiment", fix)
        self.progress.event(f"{name}: queued")
        return Task(combination, name, new[0])

    def wait(self) -> None:
        """Wait until each experiment is in `finished` or `failed`, by its combination's name or its own."""
        while self.tasks:
            workers, states = self.queue.workers(), self.queue.states()
            for task in list(self.tasks):
                self._look_at(task, states.get(task.revision, {}).get("status"), workers, states)
            waiting = [task for task in self.tasks if states.get(task.revision, {}).get("status") == "Queued"]
            wanted = min(self.progress.jobs, len(self.tasks))
            self._starts = 0 if workers else self._starts
            if waiting and len(workers) < wanted and time.monotonic() > self._restart:
                self._start(wanted)
            self.progress.show([(task.name, task.started, self.queue.log(task.revision)) for task in self.tasks])
            time.sleep(TICK)

    def _start(self, workers: int) -> None:
        """Start workers.

        Raises:
            UserError: none has started several times.
        """
        self._restart, self._starts = time.monotonic() + RESTART, self._starts + 1
        if dvc("queue", "start", "--jobs", str(workers)) or self._starts > STARTS:
            found, fix = f"no worker that runs; {printed()}", f"see {self.queue.queue.wdir}/*.out"
            raise UserError("dvc queue start", found, "workers of DVC's queue", fix)

    def _look_at(self, task: Task, status: str | None, workers: set[int], states: dict[str, dict]) -> None:
        """Act on the state of one task."""
        task.unseen += 1
        if status == "Running":
            process = self.queue.process(task.revision)
            if process and self._parent(process) in workers:
                task.unseen = 0
                task.started = task.started or time.monotonic() - (time.time() - process.create_time())
            busy = sum(one["status"] == "Running" for one in states.values())
            if busy > len(workers) and task.unseen > LOST:
                self._again(task)
        elif status == "Queued":
            task.unseen = 0
        elif status == "Success" and (run := self.design.result(task.name, task.combination)):
            self.finished[task.combination.name] = run
            self._end(task, "finished")
        elif status == "Success":
            self._fail(task, "without the scores of all models")
        elif status == "Failed":
            self._fail(task, reason(self.queue.log(task.revision)))
        elif task.unseen > LOST:
            self._fail(task, "as it was removed from DVC's queue")

    @staticmethod
    def _parent(process: psutil.Process) -> int | None:
        with suppress(psutil.Error):
            return process.ppid()
        return None

    def _again(self, task: Task) -> None:
        """Queue an experiment again whose worker was killed."""
        self.queue.clear(task.revision)
        changed = self.design.head != git("rev-parse", "HEAD").strip()
        changed = changed or with_settings(task.combination.settings) != task.combination.params
        if changed or not self.design.made_of(task.revision, task.combination):
            self._fail(task, "as its worker was killed, and the commit, parameters or code have changed since then")
        else:
            self.progress.event(f"{task.name}: its worker was killed; it starts again")
            self.tasks[self.tasks.index(task)] = self._enqueue(task.combination)

    def _fail(self, task: Task, why: str) -> None:
        self.failed[task.name] = why
        self._end(task, f"FAILED {why}")

    def _end(self, task: Task, message: str) -> None:
        self.tasks.remove(task)
        self.progress.end(f"{task.name}: {message}", time.monotonic() - task.started if task.started else None)

    def stop(self) -> None:
        """Take what waits off the queue, and end what runs."""
        self._adopt()  # One that Ctrl-C met while it was queued
        states, interrupted = self.queue.states(), set()
        for task in self.tasks:
            if states.get(task.revision, {}).get("status") == "Queued":
                self.queue.remove(task.revision)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (states := self.queue.states()):
            active = [task for task in self.tasks if states.get(task.revision, {}).get("status") == "Running"]
            for task in active:
                process = self.queue.process(task.revision)
                if process and task.revision not in interrupted:
                    interrupted.add(task.revision)
                    with suppress(OSError):  # The group has the worker, which then takes no other, and the stage
                        os.killpg(os.getpgid(process.pid), signal.SIGINT)
            if not active:
                break
            time.sleep(TICK)
        for task in self.tasks:
            if self.queue.states().get(task.revision, {}).get("status") == "Running":
                self.queue.clear(task.revision)
            self.queue.remove(task.revision)


def reason(log: str) -> str:
    r"""Return the stage that failed, and the last lines of an experiment's log.

    >>> reason("Running stage 'sft':\n> python -m stages.sft\nERROR: failed")
    'in stage sft\n    > python -m stages.sft\n    ERROR: failed'
    """
    stages = re.findall(r"^Running stage '([^']+)'", log, re.MULTILINE)
    where = f"in stage {stages[-1]}" if stages else "before its first stage"
    tail = log.rpartition("Running stage '")[2].splitlines()[1:] if stages else log.splitlines()
    return "\n    ".join([where, *[line for line in tail if line.strip()][-TAIL:]])


def run(design: Design, missing: list[Combination], progress: Progress, lock: int) -> Running:
    """Run the missing experiments of a study; on Ctrl-C stop those that run, and take the others off the queue.

    Args:
        design: The study.
        missing: Its combinations without a finished experiment.
        progress: Where to show them; it knows how many run at a time.
        lock: The file descriptor of `only_study`.
    """
    running = Running(design, missing, progress, lock)
    try:
        running.begin()
        running.wait()
    except KeyboardInterrupt:
        progress.event("Stopping ...")
        running.stop()
        raise
    finally:
        progress.close()
    return running
