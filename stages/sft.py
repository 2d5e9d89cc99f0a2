"""Stage `sft`: supervised fine-tuning, the first baseline."""

from rarl.processes.launch import on_several_processes
from rarl.running.ahead import ahead_of_later_stages
from rarl.running.entry import stage


@stage
def main(params):
    """Train by supervised fine-tuning."""
    if not on_several_processes(params, "stages.sft"):
        from rarl.training.sft import train_sft

        with ahead_of_later_stages("sft", params):
            train_sft(params)


if __name__ == "__main__":
    main()
