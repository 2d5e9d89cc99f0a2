"""Time what pinned kernels and a second thread cost: training steps on an idle and on a busy machine."""

import json
import statistics
import subprocess
import sys

import click

from rarl.measuring.portability import OUTPUT, child, write_page
from rarl.records import write_json

BUSY = 8
#: Heads of the table's columns: (kernels pinned, threads).
SETTINGS = {"pinned": (True, 1), "not pinned": (False, 1), "not pinned, two threads": (False, 2)}


def measure(busy: int) -> list[dict]:
    """Measure every setting and method while `busy` other processes compute."""
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    lines = []
    try:
        for portable, threads in SETTINGS.values():
            for method in ("sft", "rarl"):
                # On a busy machine a step of two threads takes up to half a minute.
                steps = 16 if not busy else 8 if threads == 1 else 2
                seconds = child(portable=portable, threads=threads, method=method, steps=steps)
                line = {"busy_processes": busy, "pinned": portable, "threads": threads, "method": method}
                lines.append(line | {"seconds": round(statistics.median(seconds), 3), "steps": len(seconds)})
                click.echo(json.dumps(lines[-1]))
    finally:
        for process in load:
            process.kill()
            process.wait()
    return lines


def table(lines: list[dict]) -> str:
    """Median seconds of a step by method, load and setting, as Markdown."""
    rows = {}
    for line in lines:
        busy = line["busy_processes"]
        name = f"{line['method']}, " + (f"beside {busy} busy processes" if busy else "idle machine")
        rows.setdefault(name, [name]).append(str(line["seconds"]))
    from rarl.reporting.formats import markdown_table

    return "\n".join(markdown_table(["seconds a step", *SETTINGS], list(rows.values())))


def report() -> None:
    """Write metrics/bench/price.json and .md; needs the folder of a finished pipeline."""
    lines = measure(0) + measure(BUSY)
    write_json(OUTPUT / "price.json", lines)
    write_page("price", table(lines), "What it costs to have the same bits everywhere", "--price")
