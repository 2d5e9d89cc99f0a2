"""Tasks on several forked processes: all done once, errors as one message, no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rarl.errors import UserError
from rarl.processes.forks import cores, in_forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def test_every_task_is_done_once_and_counted(tmp_path):
    def work(task, advance):
        with (tmp_path / f"{task}").open("x") as file:
            file.write(str(os.getpid()))
        time.sleep(0.05)
        advance(task)

    shown = []
    in_forks(work, list(range(20)), 3, shown.append)
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 3
    assert len(list(tmp_path.iterdir())) == 20
    assert shown == sorted(shown) and shown[-1] == sum(range(20))


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_tasks(count):
    """Results are larger than a pipe holds, and some tasks return nothing."""

    def work(task, advance):
        advance(1)
        return task and bytes([task]) * 10**6

    shown = []
    assert in_forks(work, [0, 1, 2, 3], count, shown.append) == [0, *(bytes([task]) * 10**6 for task in (1, 2, 3))]
    assert shown[-1] == 4


def test_a_users_mistake_in_a_process_is_the_stages_message():
    def work(task, advance):
        if task:
            raise UserError("rows.csv", "nothing", "a row", "write one")
        time.sleep(60)

    before = set(psutil.Process().children())  # a browser that another file's tests have opened
    with pytest.raises(UserError, match=r"rows\.csv\n  found:    nothing"):
        in_forks(work, [0, 1], 2, lambda count: None)
    assert set(psutil.Process().children()) <= before


def test_a_killed_process_is_an_error():
    with pytest.raises(UserError, match="exit code -9"):
        in_forks(lambda task, advance: os.kill(os.getpid(), signal.SIGKILL), [0], 2)


def test_processes_end_with_a_killed_parent(tmp_path):
    code = (
        "import os, time\n"
        "from rarl.processes.forks import in_forks\n"
        f"note = lambda task, advance: (open(r'{tmp_path}/' + str(os.getpid()), 'x'), time.sleep(60))\n"
        "in_forks(note, [0, 1], 2, lambda count: None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) as parent:
        while len(started := list(tmp_path.iterdir())) < 2:
            assert parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    children = [psutil.Process(int(path.name)) for path in started if psutil.pid_exists(int(path.name))]
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_threads_share_the_cores():
    assert cores(1) == len(os.sched_getaffinity(0)) and cores(10**6) == 1
