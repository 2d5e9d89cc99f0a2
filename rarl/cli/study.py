"""Studies that are not stages of the pipeline: experiments over parameters, and checks of the measures."""

from rarl.cli import Commands

main = Commands(
    {
        "seeds": ("rarl.cli.experiment_studies:seeds", "Train with several seeds: mean and spread of the scores."),
        "sweep": ("rarl.cli.experiment_studies:sweep", "Run all combinations of parameters."),
        "losses": ("rarl.cli.experiment_studies:losses", "Compare policy losses over seeds, with paired tests."),
        "annotation": ("rarl.cli.experiment_studies:annotation", "Train with fewer annotations: how many are enough?"),
        "grid": ("rarl.cli.experiment_studies:grid", "Run RARL with and without its two changes to GRPO."),
        "table2": ("rarl.cli.experiment_studies:table2", "Run the paper's Table 2: amount of data, LoRA."),
        "reward": ("rarl.cli.reward_study", "Compare the measures of the reasoning reward."),
        "judges": ("rarl.cli.judges_study", "Compare the judges with rows that people have labelled."),
        "threshold": ("rarl.cli.threshold_study", "Calibrate the semantic judge's thresholds."),
        "clusters": ("rarl.cli.cluster_study", "Check intervals and paired tests on simulated answers."),
        "diff": ("rarl.cli.diff_study", "Check the verdicts of `rarl diff` on simulated scores."),
    },
    help=__doc__,
)
