"""Work of later stages, ahead of them, on a core that is idle.

DVC runs one stage at a time, and a training runs on one core (`model.threads`). While it does, other processes do what
later stages will need: the next trainings, and the predictions of models that are ready. Both are kept in `.cache/`
under keys of all that they depend on, so a later stage takes what is there and does the rest itself, to the same bits.
Whatever DVC then does not run was done in vain, but at the lowest priority. Nothing runs ahead on a machine with one
core, with a GPU, or in several processes.
"""

import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module

from rarl.cache import CACHE
from rarl.forks import cores, end_with_parent
from rarl.launch import on_one_cpu_process
from rarl.params import Params
from rarl.registry import METHODS

#: What the processes print.
LOG = CACHE / "ahead.log"
#: Seconds in which a training that runs ahead has to finish its step and save a checkpoint.
PATIENCE = 5


@contextmanager
def ahead_of_later_stages(method: str, params: Params) -> Iterator[None]:
    """Do the work of later stages while the block trains `method`, as far as it gets.

    Enter it after heavy imports, which the forked processes share, and before anything else: each of them has to start
    as a new process does.
    """
    tasks = later_work(method, params) if on_one_cpu_process(params) and cores(params.model.threads) > 1 else []
    if not tasks:
        yield
        return
    gc.freeze()  # the forks share what is there as long as nobody looks for garbage in it
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_bytes(b"")
    context = multiprocessing.get_context("fork")
    finished = [context.Event() for _ in tasks]
    processes = []
    for number, task in enumerate(tasks):
        turn = finished[number - 1] if number else None
        arguments = task, turn, finished[number], os.getpid()
        processes.append(context.Process(target=_run, args=arguments, daemon=True))
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        last = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0, last - time.monotonic()))
            process.kill()
            process.join()


def later_work(method: str, params: Params) -> list[partial]:
    """The trainings after `method`, and the predictions of the models before it, among those that params.yaml lists.

    DVC trains in the order of `METHODS`. The modules are imported by name: the stage that does this work ahead does
    not depend on it.
    """
    place = METHODS.index(method)
    after = METHODS[place + 1 :] if params.train.start != method else ()
    work = [("rarl.training.rl", name) for name in after]
    work += [("rarl.predictions", name) for name in ("base", *METHODS[:place])]
    return [partial(_call, module, name, params) for module, name in work if name in params.models]


def _call(module: str, name: str, params: Params) -> None:
    import_module(module).work_ahead(name, params)


def _run(task, turn, finished, parent: int) -> None:
    """Do a task in a forked process, when it is its turn."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its children
    end_with_parent(parent)
    os.nice(19)
    if turn:
        turn.wait()
    sys.stdout = sys.stderr = LOG.open("a", buffering=1, encoding="utf-8")
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    try:
        task()
    except Exception:
        traceback.print_exc()  # the task's own stage meets the error again and reports it
    finally:
        finished.set()
