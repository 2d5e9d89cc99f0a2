"""Stage `grpo`: GRPO with rewards for format, length and accuracy, the second baseline."""

import click

from rarl.entry import stage_main
from rarl.launch import on_several_processes
from rarl.params import load_params


@click.command()
@stage_main
def main():
    """Train by GRPO with rewards for format, length and accuracy."""
    params = load_params()
    if not on_several_processes(params, "stages.grpo"):
        from rarl.training.rl import train_rl

        train_rl("grpo", params)


if __name__ == "__main__":
    main()
