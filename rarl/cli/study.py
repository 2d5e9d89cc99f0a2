"""Studies that are not stages of the pipeline."""

from rarl.cli import Commands

main = Commands(
    {
        "reward": ("rarl.cli.reward_study", "Compare the measures of the reasoning reward."),
        "judges": ("rarl.cli.judges_study", "Compare the judges with rows that people have labelled."),
        "threshold": ("rarl.cli.threshold_study", "Calibrate the semantic judge's thresholds."),
        "clusters": ("rarl.cli.cluster_study", "Check intervals and paired tests on simulated answers."),
        "diff": ("rarl.cli.diff_study", "Check the verdicts of `rarl diff` on simulated scores."),
    },
    help=__doc__,
)
