"""Stage `check`: find what would stop the pipeline later, before an hour of work is spent.

Validates `params.yaml` as a whole, and looks for the releases, the base model, the packages, memory and
disk that it asks for; deletes nothing. Writes a constant (`data/check.json`), so that nothing re-runs because of it.
`data/reward_judge/<method>.json` is a constant, too, unless a judge makes the training's reasoning reward: then it has
all that the judge's grades depend on.
"""

from rarl.running.entry import stage
from rarl.running.preflight import check


@stage
def main(params) -> None:
    """Find what would stop the pipeline later."""
    check(params)


if __name__ == "__main__":
    main()
