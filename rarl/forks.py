"""Independent tasks on all cores of a machine without a GPU, in forked processes that share the loaded model.

The embedded default runs one thread per process (`model.threads`), so that numbers do not depend on the cores, and
other load slows it only in proportion. A stage with independent tasks can use the other cores for them.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable

from rarl.errors import UserError


def cores(threads: int) -> int:
    """Processes of `threads` threads that this machine's cores can run at once; 1 where forking is not safe."""
    return max(1, len(os.sched_getaffinity(0)) // threads) if sys.platform == "linux" else 1


def in_forks(work: Callable, tasks: list, count: int, show: Callable[[int], None]) -> None:
    """Run `work(task, advance)` for each task in forked processes, and wait.

    Args:
        work: calls `advance(n)` for each n units of progress.
        tasks: the processes take them in order.
        count: number of processes.
        show: called about ten times a second by this process, with the progress of all tasks.

    Raises:
        UserError: as raised by `work`, or a process was killed. The others are stopped.
    """
    context = multiprocessing.get_context("fork")
    taken, done = context.Value("q", 0), context.Value("q", 0)
    errors = context.SimpleQueue()
    arguments = work, tasks, taken, done, errors, os.getpid()
    processes = [context.Process(target=_run, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        running = True
        while running:
            running = any(process.exitcode is None for process in processes)
            show(done.value)
            if failed := [process.exitcode for process in processes if process.exitcode]:
                if not errors.empty():
                    raise errors.get()
                fix = "see the error above; -9 means that it was killed, often for lack of memory"
                raise UserError("a process of this stage", f"exit code {failed[0]}", "exit code 0", fix)
            time.sleep(0.1)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _run(work, tasks: list, taken, done, errors, parent: int) -> None:
    """Take tasks until none is left, in a forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its children
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the parent, even a killed one
    if os.getppid() != parent:
        return

    def add(counter, count: int) -> int:
        with counter.get_lock():
            counter.value += count
            return counter.value

    while (number := add(taken, 1)) <= len(tasks):
        try:
            work(tasks[number - 1], lambda count: add(done, count))
        except UserError as error:
            errors.put(error)
            sys.exit(1)
