"""Independent tasks on all cores of a machine without a GPU, in forked processes that share the loaded model.

The embedded default runs one thread per process (`model.threads`), so that numbers do not depend on the cores, and
other load slows it only in proportion. A stage with independent tasks can use the other cores for them.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import wait

from rarl.errors import UserError

#: Environment variable: with 0, no stage does work of later stages (`rarl/running/ahead.py`).
AHEAD = "RARL_AHEAD"


def cores(threads: int) -> int:
    """Processes of `threads` threads that this machine's cores can run at once; 1 where forking is not safe."""
    return max(1, len(os.sched_getaffinity(0)) // threads) if sys.platform == "linux" else 1


def in_forks(work: Callable, tasks: list, count: int, show: Callable[[int], None] = lambda done: None) -> list:
    """Run `work(task, advance)` for each task in forked processes, and wait; in this process if `count` is 1.

    Args:
        work: calls `advance(n)` for each n units of progress.
        tasks: the processes take them in order.
        count: number of processes.
        show: called with the progress of all tasks, about ten times a second.

    Returns:
        What `work` returned for each task.

    Raises:
        UserError: as raised by `work`, or a process was killed. The others are stopped.
    """
    if count == 1:
        return _in_this_process(work, tasks, show)
    context = multiprocessing.get_context("fork")
    taken, done = context.Value("q", 0), context.Value("q", 0)
    errors, (results, outputs), writing = context.SimpleQueue(), context.Pipe(duplex=False), context.Lock()
    arguments = work, tasks, taken, done, errors, outputs, writing, os.getpid()
    processes = [context.Process(target=_run, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    returned, running = {}, True
    try:
        while running:
            running = [process.sentinel for process in processes if process.exitcode is None]
            show(done.value)
            while results.poll():
                number, result = results.recv()
                returned[number] = result
            if failed := [process.exitcode for process in processes if process.exitcode]:
                if not errors.empty():
                    raise errors.get()
                fix = "see the error above; -9 means that it was killed, often for lack of memory"
                raise UserError("a process of this stage", f"exit code {failed[0]}", "exit code 0", fix)
            wait([*running, results], timeout=0.1)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return [returned.get(number) for number in range(len(tasks))]


def _in_this_process(work, tasks: list, show) -> list:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    return [work(task, advance) for task in tasks]


def _run(work, tasks: list, taken, done, errors, outputs, writing, parent: int) -> None:
    """Take tasks until none is left, in a forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its children
    end_with_parent(parent)

    def add(counter, count: int) -> int:
        with counter.get_lock():
            counter.value += count
            return counter.value

    while (number := add(taken, 1)) <= len(tasks):
        try:
            result = work(tasks[number - 1], lambda count: add(done, count))
        except UserError as error:
            errors.put(error)
            sys.exit(1)
        if result is not None:
            with writing:
                outputs.send((number - 1, result))


def end_with_parent(parent: int) -> None:
    """Let this process be killed as soon as `parent`, which has forked it, has ended, even if that was killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
