"""Serve the base and its adapters with vLLM: one OpenAI-compatible endpoint on this machine.

Merged weights need no command of this project: `vllm serve <folder>`.
"""

import os
import shlex
import shutil
from pathlib import Path

import click

from rarl.errors import UserError
from rarl.params import Params, load_params
from rarl.records import read_json
from rarl.running.entry import explained

FOLDER = Path(".cache/vllm")
#: Values of vLLM's `--max-lora-rank`.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: What TRL's trainer expects of a server (`trl/scripts/vllm_serve.py`).
ROLLOUTS = ["--weight-transfer-config", '{"backend": "nccl"}', "--logprobs-mode", "processed_logprobs"]
ROLLOUTS += ["--max-logprobs", "-1", "--enable-scale-out"]


@click.command(help=__doc__)
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65_535))
@click.option("--rollouts", is_flag=True, help="Serve the base for training with rl.vllm: server.")
@click.option("--vllm", "program", envvar="RARL_VLLM", default="vllm", help="vLLM's executable. [$RARL_VLLM, or vllm]")
@click.option("--print", "only_print", is_flag=True, help="Print the command instead of running it.")
@explained()
def main(names: tuple[str, ...], port: int, rollouts: bool, program: str, only_print: bool) -> None:
    """Run the command."""
    if not only_print and shutil.which(program) is None:
        expected = "vLLM, which may be in an environment of its own"
        raise UserError(program, "no such program", expected, "see docs/engines.md, and set RARL_VLLM to its path")
    command = [program, *arguments(names, load_params()), "--port", str(port), *(ROLLOUTS if rollouts else [])]
    settings = {"VLLM_SERVER_DEV_MODE": "1"} if rollouts else {}
    click.echo(shlex.join([*(f"{key}={value}" for key, value in settings.items()), *command]))
    if not only_print:
        os.execvpe(program, command, {**os.environ, **settings})


def arguments(names: tuple[str, ...], params: Params) -> list[str]:
    """Arguments of vLLM for the base and adapters of some models, after writing a folder of the base for it.

    Raises:
        UserError: a model is unknown, of another base than the first, or trained with full weights.
    """
    from rarl.models.processor import load_processor
    from rarl.sharing.hub_layout import link_base
    from rarl.sharing.model_folder import find

    folders = {name: find(name) for name in names}
    for name, folder in folders.items():
        if not (folder / "base.json").is_file():
            expected = "the base or an adapter of the pipeline"
            raise UserError(f"model {name}", "whole weights", expected, f"serve them with `vllm serve {folder}`")
    pointers, adapters = {name: read_json(folder / "base.json") for name, folder in folders.items()}, {}
    for name, folder in folders.items():
        if pointers[name] != pointers[names[0]]:
            found, expected = f"a model of {pointers[name]['source']}", f"the base of {names[0]}"
            raise UserError(f"model {name}", found, expected, "serve it with a server of its own")
        if (folder / "full").is_dir():
            fix = f"`rarl merge --model {name} --output merged`, then `vllm serve merged`"
            raise UserError(f"model {name}", "full weights", "the base or an adapter", fix)
        if (folder / "adapter_config.json").is_file():
            adapters[folder.resolve().name] = folder
    pointer, model = pointers[names[0]], params.model
    processor = load_processor(pointer["source"], pointer["revision"], model.min_pixels, model.max_pixels)
    link_base(processor, pointer, model.dtype, FOLDER)
    found = ["serve", str(FOLDER), "--served-model-name", "base", "--dtype", model.dtype]
    found += ["--generation-config", "vllm"]
    if adapters:
        rank = max(read_json(folder / "adapter_config.json")["r"] for folder in adapters.values())
        rank = next((most for most in RANKS if most >= rank), rank)
        found += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules"]
        found += [f"{name}={folder}" for name, folder in adapters.items()]
    return found
