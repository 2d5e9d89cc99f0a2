"""Stage `sft`: supervised fine-tuning, the first baseline."""

from rarl.entry import stage
from rarl.launch import on_several_processes


@stage
def main(params):
    """Train by supervised fine-tuning."""
    if not on_several_processes(params, "stages.sft"):
        from rarl.training.sft import train_sft

        train_sft(params)


if __name__ == "__main__":
    main()
