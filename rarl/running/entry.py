"""What every stage's `main` is wrapped in: readable errors, and the cost of the run."""

import errno
import functools
import gc
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from rarl.errors import UserError
from rarl.params import load_params
from rarl.processes.cost import write_cost
from rarl.processes.launch import is_main_process
from rarl.processes.pinning import pin
from rarl.processes.status import running
from rarl.processes.stopping import HOW_TO_GO_ON, Stopped

_ACCESS = "give this user access to it"
#: System errors that the user can put right: a full disk or quota, a limit, a place without access.
UNWRITABLE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`), or use another file system",
    errno.EROFS: "work in a folder that can be written to",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
}


def ignore_warnings_between_libraries() -> None:
    """Silence warnings of one library to another, which no user can act on."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # a kernel for repacked weights


@contextmanager
def explained():
    """A block, or a decorated command, in which a full disk or a place without access ends with one message.

    Raises:
        UserError: instead of the system's error.
    """
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        number = _system_error(error)
        if number not in UNWRITABLE:
            raise
        where, fix = str(getattr(error, "filename", None) or Path.cwd()), UNWRITABLE[number]
        expected = "a place with room that this user may read and write"
        fix += ", then run the same command again; what was finished is kept"
        raise UserError(where, os.strerror(number).lower(), expected, fix) from None


def _system_error(error: Exception) -> int | None:
    """The number of the system's error, also from what safetensors and PyTorch raise when they write weights."""
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1])
    # PyTorch reports only how far it came. The cause is mostly a full disk.
    return errno.ENOSPC if re.search(r"unexpected pos|StreamWriter", str(error)) else None


def stage_main(function):
    """Wrap a stage's `main`: a user's mistake or a full disk ends it with one message, Ctrl-C with one line.

    Numeric libraries are pinned before the stage imports them (`rarl/processes/pinning.py`). A stage that finishes
    writes its time and memory to `metrics/cost/` (`rarl/processes/cost.py`), which git ignores.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        started = time.perf_counter()
        ignore_warnings_between_libraries()
        # Imports make a million objects that stay; to look for garbage among them takes a sixth of their time.
        gc.set_threshold(100_000, 20, 100)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL's trainers would call the hub
        try:
            with explained():
                if Path("params.yaml").is_file():
                    params = load_params()
                    pin(params)
                    if function.__module__ == "__main__" and params.bitsandbytes is None:
                        sys.modules["bitsandbytes"] = None  # PEFT would import it, in seconds
                name = Path(sys.modules[function.__module__].__file__).stem
                items = [Path(value).name for value in kwargs.values() if isinstance(value, str | Path)]
                with running(name, *items) if function.__module__ == "__main__" else nullcontext():
                    result = function(*args, **kwargs)
                write_cost([name, *items], time.perf_counter() - started)
                return result
        except Stopped as stopped:
            if is_main_process():
                click.echo(str(stopped), err=True)
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            click.echo(f"Stopped. What was finished is kept. {HOW_TO_GO_ON}", err=True)
            sys.exit(128 + signal.SIGINT)

    return wrapped


def stage(main: Callable) -> click.Command:
    """Make a stage's command of `main(params, **options)`, which is called with the parameters; see `stage_main`."""

    @functools.wraps(main)
    def with_params(**options):
        main(load_params(), **options)

    return click.command()(stage_main(with_params))
