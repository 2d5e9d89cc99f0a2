"""Watch `dvc repro` from a second terminal: stage, step, time left, rewards, and completions of the last step."""

import sys
import time

import click


@click.command(help=__doc__)
@click.option("--once", is_flag=True, help="Print once and end; the default where the output is no terminal.")
@click.option("--seconds", default=1.0, show_default=True, help="Time between two looks.")
def main(once: bool, seconds: float) -> None:
    """Run the command."""
    from rich.console import Console
    from rich.live import Live

    from rarl.running.watching import render, take_snapshot

    console = Console(highlight=False)
    if once or not sys.stdout.isatty():
        console.print(render(take_snapshot(), time.time()))
        return
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as view:
        try:
            while True:
                view.update(render(take_snapshot(), time.time()), refresh=True)
                time.sleep(seconds)
        except KeyboardInterrupt:
            pass
    console.print(render(take_snapshot(), time.time()))
