"""Time this project against stock TRL and transformers.

Measured are an RL step, an SFT step, and inference (a batch of questions, several about each image). Both sides train
the same model on the same rows from the same seed, each in its own process, and alternate step by step, so that other
load on the machine slows both. Stock is TRL's `GRPOTrainer` or `SFTTrainer` with the stock image processor, and
`generate` on the padded batch. Ours reads the frozen tower's output, which the stage `encode` has computed (its time
is given separately), and lets the C library keep freed memory, as the stages do. Times are medians of all steps after
the first, in seconds; processor time excludes what other programs used.

On a CPU the models are the embedded base and a mid-sized one with random weights; on a GPU also Qwen2-VL-2B's
configuration with random weights in bfloat16. The results are `steps.json` and `steps.md` in `metrics/bench`.

The floor in the tables is what the matrix products of our step cost at the rates measured in the same process: one
forward pass of the language model over each prompt and completion token, twice that for the gradient of its input, and
for each decoded token the weights read once or multiplied, whichever is slower. It excludes attention and the rest.
"""

import json
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from rarl.measuring.sides import PARTS, Case, run_side
from rarl.records import write_json
from rarl.reporting.formats import markdown_table

#: The first three are the bars; the others change one thing of the first.
CPU = (
    Case("336 px, 64 tokens"),
    Case("448 px", pixels=448),
    Case("128 tokens", tokens=128),
    Case("224 px", pixels=224),
    Case("G = 4", group=4),
    Case("G = 16", group=16),
    Case("1 image", prompts=1),
    Case("4 images", prompts=4),
    Case("completions that end early", ends=4.0),
    Case("embedded base", model="embedded", pixels=112, tokens=80, prompts=4),
    Case("SFT, 8 rows", "sft", prompts=8),
    Case("inference, 8 images, 1 question each", "inference", prompts=8, group=1, ends=4.0),
    Case("inference, 4 images, 6 questions each", "inference", prompts=4, group=6, ends=4.0),
)
GPU = (
    Case("Qwen2-VL-2B, 256 tokens", model="qwen2_vl_2b", pixels=616, tokens=256, prompts=1),
    Case("Qwen2-VL-2B, SFT, 8 rows", "sft", "qwen2_vl_2b", pixels=616, prompts=8),
    Case("Qwen2-VL-2B, inference", "inference", "qwen2_vl_2b", 616, 6, 256, 4),
)


def measure(steps: int, threads: int, only: Sequence[str], output: Path) -> None:
    """Compare all cases, or those whose name contains one of `only`, and write each result as soon as it is there."""
    import torch

    results = []
    for case in (*CPU, *GPU) if torch.cuda.is_available() else CPU:
        if only and not any(part in case.name for part in only):
            continue
        results.append(compare(case, steps, threads))
        click.echo(json.dumps(results[-1]))
        write_json(output / "steps.json", results)
        (output / "steps.md").write_text(page(results), encoding="utf-8")
    click.echo(page(results))


def receive(side: str, pipe):
    """Receive from a side's process; a RuntimeError if it has died."""
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError(f"the process of {side} has died; its error is above") from None


def compare(case: Case, steps: int, threads: int) -> dict:
    """Run both sides in alternation; the first step of each is not counted."""
    pipes, start_up = {}, {}
    for side in ("stock", "ours"):
        start = time.perf_counter()
        pipes[side] = start_side(side, case, steps + 1, threads)
        start_up[side] = round(time.perf_counter() - start, 1)
    rounds = {side: [] for side in pipes}
    for step in range(steps + 1):
        for side in list(pipes)[:: 1 if step % 2 else -1]:
            pipes[side].send("go")
            rounds[side].append(receive(side, pipes[side]))
            if step < steps:
                receive(side, pipes[side])
    result = {"case": asdict(case), "threads": threads, "steps": steps}
    for side, pipe in pipes.items():
        summary = receive(side, pipe)
        floor = summary.pop("floor")
        parts = [part for part in ("step", "processor", *PARTS) if part in rounds[side][0]]
        medians = {part: statistics.median(step[part] for step in rounds[side][1:]) for part in parts}
        result[side] = rounded(medians | summary) | {"start_up": start_up[side]}
        if floor:
            result["floor"] = rounded(floor)
    for name, part in (("ratio", "step"), ("ratio_of_processor_time", "processor")):
        result[name] = round(result["stock"][part] / result["ours"][part], 2)
    result["mean_length"] = round(statistics.mean(r["mean_length"] for r in rounds["ours"]), 1)
    result["same_tokens"] = [a["tokens"] == b["tokens"] for a, b in zip(*rounds.values())]
    return result


def start_side(side: str, case: Case, steps: int, threads: int):
    """Start a side's process and return the pipe to it as soon as it is ready for its first step."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    context.Process(target=run_side, args=(case, side == "ours", steps, threads, theirs), daemon=True).start()
    theirs.close()
    receive(side, pipe)
    return pipe


def rounded(values: dict[str, float]) -> dict[str, float]:
    """The values with four decimals."""
    return {key: round(value, 4) for key, value in values.items()}


def table(results: list[dict]) -> str:
    """A Markdown table of cells `stock / ours`, followed by the floor where there is one."""
    parts = [part for part in ("step", "processor", *PARTS, "peak_gb") if part in results[0]["ours"]]
    heads = ["peak, GB" if part == "peak_gb" else f"{part}, s" for part in parts]

    def cell(result: dict, part: str) -> str:
        pair = f"{result['stock'][part]:.2f} / {result['ours'][part]:.2f}"
        return pair + (f" ({result['floor'][part]:.2f})" if part in result.get("floor", {}) else "")

    rows = []
    for result in results:
        ratios = [f"**{result['ratio']:.1f}**", f"{result['ratio_of_processor_time']:.1f}"]
        rows.append([result["case"]["name"], *ratios, *(cell(result, part) for part in parts)])
    return "\n".join(markdown_table(["case", "**ratio**", "ratio of processor time", *heads], rows)) + "\n"


def page(results: list[dict]) -> str:
    """One table for RL steps, one for the rest."""
    first = results[0]
    ours = [result["ours"] for result in results]
    rewards = max(one.get("rewards", 0) / one["step"] for one in ours)
    head = (
        f"Median seconds of {first['steps']} steps, {first['threads']} thread(s), stock / ours (floor), in turns. "
        f"Rewards are at most {rewards:.0%} of our step. Before the first step a process needs "
        f"{statistics.median(one['start_up'] for one in ours):.0f} s, ours with encoding its images.\n"
    )
    groups = [[result for result in results if (result["case"]["what"] == "rl") == rl] for rl in (True, False)]
    return "\n".join([head, *(table(group) for group in groups if group)])
