"""Rehearse every part of the pipeline at a base's real size, and compare its memory with the plan.

From the base's configuration alone, without a download, random bfloat16 weights are written in the hub's layout. Then
each part runs once on this machine through the code of its stage, in a process of its own: encoding, one step of SFT,
GRPO and RARL, and one batch of inference with each model. The results are in `metrics/bench/rehearsal.json` and
`rehearsal.md`, one entry a base.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import click

from rarl.cache import CACHE, ROOT
from rarl.errors import UserError, warn
from rarl.models.families import FAMILIES
from rarl.models.quantization import require_bitsandbytes
from rarl.params import Params
from rarl.planning.memory import FIXED_WITHOUT_TRAINING, GB, available, compute_device, count_parameters, estimate
from rarl.processes.cost import hardware
from rarl.records import atomic_file, read_json, write_json
from rarl.rehearsal.bases import config_json, parse
from rarl.rehearsal.parts import PARTS
from rarl.rehearsal.project import rehearsal_params, write_project
from rarl.rehearsal.weights import SHARD_BYTES
from rarl.reporting.formats import markdown_table
from rarl.running.preflight import RESOURCES

RESULTS = Path("metrics/bench/rehearsal.json")
#: GB beside the weights: images, features and checkpoints.
OTHER_FILES = 0.5


def rehearse(base: str, params: Params, pixels: int, prompts: int, group: int, tokens: int, keep: bool) -> dict:
    """Run all parts and return the result.

    Args:
        base: a slug of `rarl/rehearsal/configs`, or a folder with a `config.json`.
        params: what is trained, and how; sizes are those of the other arguments.
        pixels: of an image.
        prompts: of a step.
        group: completions per prompt.
        tokens: of a completion.
        keep: whether to keep the folder, which has the size of the weights.

    Raises:
        UserError: the base is unknown or no Qwen, memory or disk is too small, or a part failed.
    """
    content = config_json(base)
    if not FAMILIES[content["model_type"]].grid:
        expected = "a Qwen: the embedded base's tokenizer has no image tokens of other families"
        raise UserError(f"--base {base}", f"a {content['model_type']}", expected, "`rarl memory --base` plans it")
    params = rehearsal_params(params, pixels, prompts, group, tokens)
    if params.bitsandbytes:
        require_bitsandbytes(params.bitsandbytes)
    device = compute_device(params)
    plans, weights = plan_parts(content, params, device)
    CACHE.mkdir(exist_ok=True)
    check_room(plans, weights, device)
    folder, rows = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=CACHE)), []
    try:
        write_project(folder, params, content)
        for part, plan in plans.items():
            click.echo(f"{part}: plan {plan:.2f} GB ... ", nl=False, err=True)
            measured = run_part(part, folder)
            peak, seconds = measured["peak"] / GB, round(measured["seconds"])
            click.echo(f"peak {peak:.2f} GB, {seconds} s", err=True)
            rows.append({"part": part, "plan_gb": round(plan, 3), "peak_gb": round(peak, 3), "seconds": seconds})
    finally:
        if keep:
            click.echo(f"kept: {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sizes = {"pixels": pixels, "prompts": prompts, "group": group, "tokens": tokens}
    settings = {"trainable": params.train.trainable, "quantization": params.model.quantization or "none"}
    machine = hardware() | {"device": device, "threads": params.model.threads, "torch": version("torch")}
    return {"base": Path(base).name, **sizes, **settings, **machine, "parts": rows}


def plan_parts(content: dict, params: Params, device: str) -> tuple[dict[str, float], int]:
    """GB of each part by the memory plan, and the bytes of the weights."""
    config = parse(content)
    count = count_parameters(config, params.lora.r, params.lora.target_modules)
    weights = (count.language + count.tower) * 2
    plans = {"base": FIXED_WITHOUT_TRAINING + min(weights, SHARD_BYTES) / GB}
    stages = {part: part.partition("_")[0] for part in PARTS if part not in plans}
    return plans | {part: estimate(config, params, stage, device).total for part, stage in stages.items()}, weights


def check_room(plans: dict[str, float], weights: int, device: str) -> None:
    """Compare the largest plan with the free memory, and the bytes of the weights with the free disk.

    Raises:
        UserError: there is too little, unless RARL_RESOURCES=ignore turns that into a warning.
    """
    part = max(plans, key=plans.get)
    disk = shutil.disk_usage(CACHE).free / GB
    for what, need, have in (
        (f"memory for {part}", plans[part], available(device)),
        (f"disk in {CACHE}", weights / GB + OTHER_FILES, disk),
    ):
        if have >= need:
            continue
        fix = f"free some, take a smaller base or fewer --pixels, or set {RESOURCES}=ignore in the environment"
        if os.environ.get(RESOURCES) != "ignore":
            raise UserError(f"free {what}", f"{have:.1f} GB", f"{need:.1f} GB", fix)
        warn(f"free {what} is {have:.1f} GB, and {need:.1f} GB are needed")


def run_part(part: str, folder: Path) -> dict:
    """Run a part in a process of its own and return what it measured; a UserError with its last lines if it failed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    log = folder / f"{part}.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "rarl.rehearsal.parts", part]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        found = f"exit code {done.returncode}{' (killed, often for lack of memory)' * (done.returncode == -9)}\n{last}"
        raise UserError(f"rehearsal, {part}", found, "exit code 0", "see the lines above; --keep keeps the folder")
    return read_json(folder / f"{part}.json")


def write(result: dict) -> None:
    """Add a result to those of other bases, and write their tables."""
    earlier = read_json(RESULTS) if RESULTS.is_file() else {}
    results = dict(sorted((earlier | {f"{result['base']}, {result['quantization']}": result}).items()))
    write_json(RESULTS, results)
    with atomic_file(RESULTS.with_suffix(".md")) as file:
        file.write("\n".join(map(page, results.values())))


def page(result: dict) -> str:
    """A sentence with one base's sizes, and its table."""
    quantized = "" if result["quantization"] == "none" else f" quantized to {result['quantization']}"
    head = (
        f"**{result['base']}**, random weights in bfloat16{quantized}, trained: {result['trainable']}. A step has "
        f"{result['prompts']} x {result['group']} completions of {result['tokens']} tokens, an image "
        f"{result['pixels']} pixels. {result.get('card', result['processor'])}, {result['threads']} threads.\n"
    )
    rows = []
    for one in result["parts"]:
        plan, peak = one["plan_gb"], one["peak_gb"]
        error = f"{round(100 * (plan / peak - 1)):+d} %"
        rows.append([one["part"], f"{plan:.2f}", f"{peak:.2f}", error, one["seconds"]])
    table = markdown_table(["part", "plan, GB", "peak, GB", "error of the plan", "seconds"], rows)
    return "\n".join([head, *table, ""])
