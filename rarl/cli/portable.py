"""Compare the bits of two training steps, inference, judges and statistics here and on emulated processors.

The results are metrics/bench/portable.json and portable.md, with --price price.json and price.md. It needs qemu-x86_64
(Debian, Ubuntu: package qemu-user); rarl/measuring/portability.py says what is compared.
"""

import click


@click.command(help=__doc__)
@click.option(
    "--short", is_flag=True, help="Two small steps of everything except GRPO, whose code RARL runs, too; for tests."
)
@click.option("--price", "priced", is_flag=True, help="Time pinned kernels instead; needs a finished `dvc repro`.")
def main(short: bool, priced: bool) -> None:
    """Run the command."""
    from rarl.measuring import portability, price

    price.report() if priced else portability.report(short)
