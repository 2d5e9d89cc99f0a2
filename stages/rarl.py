"""Stage `rarl`: GRPO with the reasoning reward added, and with diverse prompts (paper, 3.3)."""

import click

from rarl.entry import stage_main
from rarl.launch import on_several_processes
from rarl.params import load_params


@click.command()
@stage_main
def main():
    """Train by GRPO with the reasoning reward added, and with diverse prompts."""
    params = load_params()
    if not on_several_processes(params, "stages.rarl"):
        from rarl.training.rl import train_rl

        train_rl("rarl", params)


if __name__ == "__main__":
    main()
