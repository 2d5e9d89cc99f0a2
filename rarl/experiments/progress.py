"""Progress of a study: a line for each running experiment on a terminal, otherwise a line for each event."""

import re
import sys
import time
from statistics import fmean

import click


def duration(seconds: float) -> str:
    """Format seconds.

    >>> duration(8), duration(247), duration(7320)
    ('8 s', '4 min', '2 h 02 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """What a study prints on stderr while its experiments run.

    Args:
        total: number of experiments to run.
        jobs: number of experiments at a time.
        seconds: expected time of one; None if unknown.
    """

    def __init__(self, total: int, jobs: int, seconds: float | None):
        from tqdm import tqdm

        self.total, self.jobs, self.seconds = total, jobs, seconds
        self.done, self.times = 0, []
        self._bars = []
        if sys.stderr.isatty():
            layout = "{n}/{total} |{bar:20}| {desc}"
            self._bars = [tqdm(total=total, bar_format=layout, leave=False)]
            self._bars += [tqdm(bar_format="  {desc}", position=i + 1, leave=False) for i in range(min(jobs, total))]

    def event(self, text: str) -> None:
        """Print a line."""
        if self._bars:
            self._bars[0].write(text, file=sys.stderr)
        else:
            click.echo(text, err=True)

    def end(self, text: str, seconds: float | None) -> None:
        """Print how one experiment ended, and its time if it is known."""
        self.done += 1
        self.times += [seconds] if seconds else []
        after = f" after {duration(seconds)}" if seconds else ""
        first, *rest = text.split("\n")
        self.event("\n".join([f"{first}{after} ({self.done} of {self.total})", *rest]))

    def show(self, tasks: list[tuple[str, float | None, str]]) -> None:
        """Show the experiments that have not ended: name, time of their start, log."""
        if not self._bars:
            return
        running = [(name, time.monotonic() - started, log) for name, started, log in tasks if started]
        self._bars[0].n = self.done
        self._bars[0].set_description_str(self.left(len(tasks), [elapsed for _, elapsed, _ in running]))
        for i, bar in enumerate(self._bars[1:]):
            bar.set_description_str(line(*running[i]) if i < len(running) else "")

    def left(self, tasks: int, elapsed: list[float]) -> str:
        """Return the expected time until all have ended."""
        each = fmean(self.times) if self.times else self.seconds
        if not each:
            return "time left unknown"
        work = [max(0.0, each - one) for one in elapsed] + [each] * (tasks - len(elapsed))
        return f"about {duration(max([sum(work) / self.jobs, *work], default=0))} left"

    def close(self) -> None:
        """Take the lines off the terminal."""
        for bar in reversed(self._bars):
            bar.close()


def line(name: str, elapsed: float, log: str) -> str:
    r"""Return one line on a running experiment.

    >>> line("seeds-seed_8", 95, "Stage 'check' didn't change, skipping\nRunning stage 'sft':\n> python ...")
    'seeds-seed_8: sft, stage 2, 2 min'
    """
    stages = re.findall(r"^(?:Running stage|Stage) '([^']+)'", log, re.MULTILINE)
    where = f"{stages[-1]}, stage {len(stages)}" if stages else "starting"
    return f"{name}: {where}, {duration(elapsed)}"
