"""Stage `rarl`: GRPO with the reasoning reward added, and with diverse prompts (paper, 3.3)."""

from rarl.processes.launch import on_several_processes
from rarl.running.ahead import ahead_of_later_stages
from rarl.running.entry import stage


@stage
def main(params):
    """Train by GRPO with the reasoning reward added, and with diverse prompts."""
    if not on_several_processes(params, "stages.rarl"):
        from rarl.training.rl import train_rl

        with ahead_of_later_stages("rarl", params):
            train_rl("rarl", params)


if __name__ == "__main__":
    main()
