"""Stage `sft`: supervised fine-tuning, the first baseline."""

import click

from rarl.entry import stage_main
from rarl.launch import on_several_processes
from rarl.params import load_params


@click.command()
@stage_main
def main():
    """Train by supervised fine-tuning."""
    params = load_params()
    if not on_several_processes(params, "stages.sft"):
        from rarl.training.sft import train_sft

        train_sft(params)


if __name__ == "__main__":
    main()
