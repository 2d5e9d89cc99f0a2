"""Work of later stages, ahead of them, on a core that is idle.

DVC runs one stage at a time, and a training runs on one core (`model.threads`). While it does, other processes do what
later stages will need: the next trainings, and the predictions and verdicts of models that are ready. All are kept in
`.cache/` under keys of all that they depend on, so a later stage takes what is there and does the rest itself, to the
same bits. The stage of the last training also asks and judges its own model at the end, because it has imported what
those stages would have to import. Whatever DVC then does not run was done in vain, but at the lowest priority. Nothing
runs ahead in a study, whose experiments share the cores and are compared by their costs, on a machine with one core,
with a GPU, or in several processes, nor what, by the memory plan, has no room beside the training.
"""

import gc
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from multiprocessing.synchronize import Event

import click

from rarl.cache import CACHE
from rarl.params import Params
from rarl.processes.forks import AHEAD, cores, end_with_parent
from rarl.processes.launch import on_one_cpu_process
from rarl.registry import METHODS

#: What the processes print.
LOG = CACHE / "ahead.log"
#: Predictions that are judged before their stage has written them.
SCRATCH = CACHE / "ahead"
#: Seconds in which a training that runs ahead has to finish its step and save a checkpoint.
PATIENCE = 5
#: Priority of what runs beside a training.
LOWEST = 19
_context = multiprocessing.get_context("fork")


@contextmanager
def ahead_of_later_stages(method: str, params: Params) -> Iterator[None]:
    """Do the work of later stages while the block trains `method`, as far as it gets.

    Enter it after heavy imports, which the forked processes share, and before anything else: each of them has to start
    as a new process does.
    """
    alone = not on_one_cpu_process(params) or cores(params.model.threads) == 1 or os.environ.get(AHEAD) == "0"
    tasks = [] if alone else later_work(method, params)
    at_end = [] if alone else work_after_last(method, params)
    if not tasks and not at_end:
        yield
        return
    gc.freeze()  # the forks share what is there as long as nobody looks for garbage in it
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_bytes(b"")
    trained = _context.Event()
    processes, last = _start(tasks, LOWEST), _start(at_end, 0, trained)
    try:
        yield
        _stop(processes)
        trained.set()
        if last:
            click.echo(f"{method}: asking the test sets and judging, ahead of those stages ({LOG})")
        for process in last:
            process.join()
    finally:
        _stop([*processes, *last])
        shutil.rmtree(SCRATCH, ignore_errors=True)


def later_work(method: str, params: Params) -> list[partial]:
    """The trainings after `method`, then predictions and verdicts of the models before it, among those in params.yaml.

    DVC trains in the order of `METHODS`. No judge is asked ahead, which may cost money in vain.
    """
    place = METHODS.index(method)
    after = METHODS[place + 1 :] if params.train.start != method else ()
    ready = [name for name in ("base", *METHODS[:place]) if name in params.models]
    if not any(name in params.models for name in METHODS[place + 1 :]):
        ready += [name for name in params.models if name in params.rival and not params.rival[name].base_url]
    after = [name for name in after if name in params.models and not params.reasoning_judge(name)]
    trainings = [partial(train, name, params) for name in after]
    return with_room(
        trainings + [partial(do, name, params, 1) for do in (ask, judge) for name in ready], method, params
    )


def work_after_last(method: str, params: Params) -> list[partial]:
    """Predictions and verdicts of the model that `method` trains, on all cores, if no other is trained after it."""
    trained = [name for name in METHODS if name in params.models]
    return with_room([partial(do, method, params) for do in (ask, judge) if trained[-1:] == [method]], method, params)


def with_room(tasks: list[partial], method: str, params: Params) -> list[partial]:
    """The tasks that fit into free memory beside the training of `method`, by the memory plan."""
    plan = import_module("rarl.planning.memory")
    room = plan.available("cpu") - plan.needed("base", params, method)

    def fits(do, name: str, *_) -> bool:
        return plan.needed(name if name in params.rival else "base", params, name if do is train else "infer") <= room

    return [task for task in tasks if fits(task.func, *task.args)]


# The modules are imported by name: the stages that do this work ahead do not depend on it.


def train(name: str, params: Params) -> None:
    """Train what the stage `grpo` or `rarl` will write, as far as time allows."""
    import_module("rarl.training.rl").work_ahead(name, params)


def ask(name: str, params: Params, forks: int | None = None) -> None:
    """Ask what the stage `infer` will need."""
    import_module("rarl.inference.predictions").finish(name, params, forks)


def judge(name: str, params: Params, forks: int | None = None) -> None:
    """Judge what the stage `judge` will need, if it takes a text encoder."""
    if not any(params.judge[judge].kind == "semantic" for judge in params.judges):
        return
    predictions = import_module("rarl.inference.predictions")
    predictions.write(name, predictions.finish(name, params, forks), SCRATCH)
    import_module("rarl.judges.verdicts").work_ahead(name, params, SCRATCH, forks)


def _start(tasks: list[partial], niceness: int, first: Event | None = None) -> list:
    """Start a process for each task, which waits until the one before it has finished; the first one for `first`."""
    turn, processes = first, []
    for task in tasks:
        finished = _context.Event()
        processes.append(_context.Process(target=_run, args=(task, niceness, turn, finished, os.getpid())))
        turn = finished
    for process in processes:
        process.start()
    return processes


def _stop(processes: list) -> None:
    """End processes, after `PATIENCE` seconds by force."""
    for process in processes:
        process.terminate()
    last = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0, last - time.monotonic()))
        process.kill()
        process.join()


def _run(task, niceness: int, turn, finished, parent: int) -> None:
    """Do a task in a forked process, when it is its turn."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its children
    end_with_parent(parent)
    os.nice(niceness)
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
