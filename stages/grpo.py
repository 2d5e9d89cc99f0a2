"""Stage `grpo`: GRPO with rewards for format, length and accuracy, the second baseline."""

from rarl.processes.launch import on_several_processes
from rarl.running.ahead import ahead_of_later_stages
from rarl.running.entry import stage


@stage
def main(params):
    """Train by GRPO with rewards for format, length and accuracy."""
    if not on_several_processes(params, "stages.grpo"):
        from rarl.training.rl import train_rl

        with ahead_of_later_stages("grpo", params):
            train_rl("grpo", params)


if __name__ == "__main__":
    main()
