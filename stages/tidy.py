"""Stage `tidy`: remove the results of models, judges and benchmarks that params.yaml no longer lists.

DVC's cache and `.cache/` keep them. Writes a constant (`data/tidy.json`), so that nothing re-runs because of it.
"""

from pathlib import Path

import click

from rarl.records import write_json
from rarl.running.entry import stage
from rarl.running.leftovers import remove_leftovers


@stage
def main(params) -> None:
    """Remove results that params.yaml no longer lists."""
    for path in remove_leftovers(params):
        click.echo(f"tidy: {path} removed: no longer listed in params.yaml")
    for folder in ("data/benchmarks", "metrics/benchmark"):
        # DVC requires the folders that stages depend on, even if no benchmark is listed.
        Path(folder).mkdir(parents=True, exist_ok=True)
    write_json("data/tidy.json", {"leftovers": "removed"})


if __name__ == "__main__":
    main()
