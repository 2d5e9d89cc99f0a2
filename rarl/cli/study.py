"""Studies that are no stage of the pipeline."""

from rarl.cli import Commands

main = Commands(
    {
        "reward": ("rarl.cli.reward_study", "How well measures of reasoning tell right from wrong."),
        "threshold": ("rarl.cli.threshold_study", "Calibrate the semantic judge's thresholds."),
    },
    help=__doc__,
)
