"""Independent tasks on all cores of a machine without a GPU: forked processes that share what is loaded.

The embedded default runs one thread a process (`model.threads`), so that numbers do not depend on cores and a busy
machine slows it in proportion. Where a stage has several independent tasks, the other cores can take some of them.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

from rarl.errors import UserError


def cores(threads: int) -> int:
    """Processes of `threads` threads that this machine's cores can run at once; 1 where a fork is not safe."""
    if sys.platform != "linux":
        return 1
    return max(1, len(os.sched_getaffinity(0)) // threads)


def in_forks(work: Callable, tasks: list, count: int, show: Callable[[int], None]) -> None:
    """Run `work(task, advance)` for every task in `count` forked processes, which take the tasks in order, and wait.

    Args:
        work: calls `advance(n)` whenever it has done n more of whatever it counts.
        show: called about ten times a second by this process, with the count over all tasks.

    Raises:
        UserError: as raised by `work`, or a process was killed. The others are stopped.
    """
    context = multiprocessing.get_context("fork")
    taken, done = context.Value("q", 0), context.Value("q", 0)
    errors, parent = context.SimpleQueue(), os.getpid()

    def advance(count):
        with done.get_lock():
            done.value += count

    def run():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its children
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()
        while True:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= len(tasks):
                return
            try:
                work(tasks[number], advance)
            except UserError as error:
                errors.put(error)
                sys.exit(1)
            except Exception:
                traceback.print_exc()
                sys.exit(1)

    processes = [context.Process(target=run, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        running = True
        while running:
            running = any(process.exitcode is None for process in processes)
            show(done.value)
            failed = [process.exitcode for process in processes if process.exitcode]
            if failed:
                if not errors.empty():
                    raise errors.get()
                raise UserError(
                    "a process of this stage",
                    f"exit code {failed[0]}",
                    "every process at its end",
                    "see the error above; -9 means that it was killed, often for want of memory",
                )
            time.sleep(0.1)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _end_with(parent: int) -> None:
    """End this process when its parent has gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
