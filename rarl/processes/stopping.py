"""Ctrl-C and SIGTERM: a training ends after its present step, with a checkpoint; a second Ctrl-C ends it at once."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

HOW_TO_GO_ON = "Run the same command again to go on."


class Stopped(Exception):
    """A signal has ended the work early, and what was finished is kept.

    Args:
        message: what was stopped, and where it resumes.
        number: the signal; the exit status is 128 more, which DVC takes as a failure of the stage.
    """

    def __init__(self, message: str, number: int):
        super().__init__(f"{message} {HOW_TO_GO_ON}")
        self.status = 128 + number


class StopRequest:
    """Notes the first of some signals while a block runs; a second Ctrl-C raises a KeyboardInterrupt.

    Attributes:
        signal: the signal that was received; None so far.
    """

    def __init__(self, *signals: int):
        self.signals, self.signal, self._before = signals, None, {}

    @contextmanager
    def noted(self, message: str | None) -> Iterator[None]:
        """Note signals during the block, and print the message at the first one."""
        self._process, self._message = os.getpid(), message
        for number in self.signals:
            self._before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            while self._before:
                signal.signal(*self._before.popitem())

    def _note(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            return  # a worker of the data loader, whose parent stops it
        if self.signal is None:
            # A worker of the data loader that the same signal has ended would raise an error in the midst of the step.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if self._message:
                os.write(2, f"\n{self._message}\n".encode())  # `print` may be interrupted by itself
            self.signal = number
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)


def run_launcher(command: list[str], environment: dict[str, str]) -> int:
    """Run a launcher of several processes, pass Ctrl-C and SIGTERM on to it, and return its exit status.

    It has a process group of its own, so that Ctrl-C reaches it once: at a second signal it would stop to wait for its
    processes. It waits for a step of up to an hour.

    Raises:
        Stopped: it ended after a signal.
    """
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600", **environment}
    received = []

    def pass_on(number: int, _frame) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 1:
            for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                process.kill()
        elif len(received) == 1:
            launcher.send_signal(number)

    launcher = subprocess.Popen(command, env=environment, process_group=0)
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Stopped("Stopped.", received[0])
    return status
