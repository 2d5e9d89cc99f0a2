"""Estimate the time, disk and judges' cost of a run before it starts, from the base's configuration and parameters.

`rarl plan` prints it beside the memory of `rarl/planning/memory.py`, whose sizes it uses. Memory is planned for the
longest rows, time for usual ones: images have `model.max_pixels`, questions `QUESTION` tokens and completions `SHARE`
of their limit, but a batch is decoded until its longest completion ends, at the limit. A stage's seconds are those of

* its matrix products: a token costs 2 FLOPs per weight of the language model's layers, and of its head where it is
  scored or sampled, and attention on top. A pass with gradients costs twice a pass without for adapters, three times
  for full weights, and one more with gradient checkpointing;
* its decoding steps, each of which also reads all weights;
* a fixed time per layer and pass, in which operations are started;
* its start: imports, and the weights from disk.

A card's peak figures are published ones (`cards.yaml`), those of this machine are measured in a second, and a run is
taken to reach `EFFICIENCY` of both. Where a run has finished in this folder, its measured seconds
(`rarl/processes/cost.py`) correct the plan for this machine: all stages are scaled by their sum, measured over
planned, because on a CPU later stages run ahead of their turn, during a training.
"""

import io
import math
import timeit
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time

from ruamel.yaml import YAML
from transformers import PreTrainedConfig

from rarl.data.adapters import load_adapter
from rarl.errors import UserError
from rarl.judges import rubric
from rarl.params import Params, load_params, parse_params
from rarl.planning.memory import (
    BYTES,
    CHARACTERS_A_TOKEN,
    GB,
    QUESTION_AND_TEMPLATE,
    Footprint,
    available,
    compute_device,
    configuration,
    estimate,
)
from rarl.processes.cost import COSTS, read_cost
from rarl.profiles import put
from rarl.records import Prediction, Sample, batches, read_json
from rarl.registry import JUDGE_KINDS, METHODS
from rarl.rehearsal.bases import slugs
from rarl.reporting.formats import markdown_table
from rarl.training import judged

#: Tokens of a question and of the chat template, and the mean length of completions as a share of the limit.
QUESTION, SHARE = 24, 0.5
#: Share of the peak figures that a run is taken to reach.
EFFICIENCY = 0.4
#: Seconds per layer and pass in which operations are started; a captured CUDA graph needs less.
LAUNCH = {"cuda": 2e-4, "cpu": 3e-4}
#: Seconds of a stage's imports, and bytes of weights per second from disk.
START, DISK = 5, 1e9
#: Seconds of a stage that found its work done: on a CPU later stages run ahead during a training.
AHEAD = 1
#: Bytes of a prediction and of a judge's verdict on it, in their files.
PREDICTION, VERDICT = 800, 250
CARDS = Path(__file__).with_name("cards.yaml")
#: What `rarl bench scale` has measured.
SCALE = Path("metrics/bench/scale.json")


@dataclass(frozen=True)
class Machine:
    """What a plan is for.

    Attributes:
        name, source: of the card, and where its figures are from.
        device: `cuda` or `cpu`.
        flops: products of matrices per second, peak.
        bandwidth: bytes of weights per second, peak.
        memory: GB.
    """

    name: str
    source: str
    device: str
    flops: float
    bandwidth: float
    memory: float


@dataclass(frozen=True)
class Counts:
    """Rows and images of a run."""

    train: int
    dev: int
    test: dict[str, int]  # by test set
    images: int  # of the training and development rows
    test_images: int


@dataclass(frozen=True)
class Stage:
    """One line of the plan."""

    name: str
    what: str
    seconds: float
    memory: float  # GB


def cards() -> dict[str, Machine]:
    """Return the cards of `cards.yaml`."""
    table = YAML(typ="safe").load(CARDS)
    return {
        name: Machine(name, one["source"], "cuda", one["tflops"] * 1e12, one["bandwidth"] * 1e9, one["memory"])
        for name, one in table.items()
    }


def this_machine(params: Params) -> Machine:
    """Measure the products of this machine's processor or GPU: of large matrices, and of a matrix and a vector."""
    import torch

    device, dtype = compute_device(params), getattr(torch, params.model.dtype)
    size = 8192 if device == "cuda" else 2048
    if device == "cpu":
        torch.set_num_threads(params.model.threads)
    weight = torch.randn(size, size).to(device, dtype)

    def best(other) -> float:
        def product() -> None:
            (weight @ other).sum().item()  # waits for the GPU

        # On a CPU the processor time, as other load on this machine does not last.
        timer, threads = (process_time, params.model.threads) if device == "cpu" else (perf_counter, 1)
        return min(timeit.repeat(product, timer=timer, number=1, repeat=3)) / threads

    flops, bandwidth = 2 * size**3 / best(weight), size**2 * weight.element_size() / best(weight[0])
    name = torch.cuda.get_device_name() if device == "cuda" else f"this machine, {params.model.threads} thread(s)"
    return Machine(name, "measured now", device, flops, bandwidth, available(device))


class Clock:
    """The seconds of a stage's passes on one process of a machine."""

    def __init__(self, config: PreTrainedConfig, params: Params, stage: str, machine: Machine):
        self.sizes = Footprint(config, params, stage, machine.device)
        self.params, self.config = params, config
        self.flops, self.bandwidth = EFFICIENCY * machine.flops, EFFICIENCY * machine.bandwidth
        self.layers, self.launch = self.sizes.text.num_hidden_layers, LAUNCH[machine.device]
        self.prompt = self.sizes.image_tokens + self.sizes.prompt_tokens - QUESTION_AND_TEMPLATE + QUESTION
        self.head = self.sizes.text.vocab_size * self.sizes.text.hidden_size
        # A pass with gradients, in passes without.
        self.gradients = 2 + self.sizes.full + (params.train.gradient_checkpointing is True)
        self.start = START + (self.sizes.count.language + self.sizes.count.tower) * self.sizes.compute / DISK

    def encode(self, images: int) -> float:
        """Run the vision tower on every image."""
        vision, patches = self.config.vision_config, self.sizes.patches
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        layers = getattr(vision, "depth", None) or vision.num_hidden_layers
        flops = 2 * self.sizes.count.tower * patches + 4 * layers * patches**2 * width
        return images * (flops / self.flops + layers * self.launch)

    def forward(self, prompts: int, rows: int = 0, limit: int = 0) -> float:
        """Run the language model over prompts, each once, and over `rows` completions that attend to them."""
        completion = SHARE * limit
        pairs = prompts * self.prompt**2 / 2 + rows * completion * (self.prompt + completion / 2)
        products = (
            self.sizes.count.linear * (prompts * self.prompt + rows * completion) + self.head * rows * completion
        )
        attention = 2 * self.sizes.sizes.queries * self.layers * pairs
        return 2 * (products + attention) / self.flops + self.layers * self.launch

    def decode(self, rows: int, limit: int) -> float:
        """Generate `rows` completions; those that have ended are no longer computed."""
        weights = self.sizes.count.linear + self.head
        product = max(2 * weights * SHARE * rows / self.flops, weights * self.sizes.compute / self.bandwidth)
        return limit * (product + self.layers * self.launch)

    def answer(self, rows: int) -> float:
        """Answer questions in batches."""
        batch, new = self.params.decoding.batch_size, self.params.decoding.max_new_tokens
        return sum(self.forward(n) + self.decode(n, new) for n in map(len, batches(range(rows), batch)))

    def step(self) -> float:
        """Train on one step's rows, sampled first if it is RL."""
        rows, sizes, rl = self.sizes.rows, self.sizes, self.params.rl
        per_step = sizes.prompts_per_step * (rl.group_size if sizes.rl and not rows.shared else 1)
        one = self.forward(rows.groups, rows.groups * rows.size, rows.completion)
        passes = math.ceil(per_step / rows.groups) * one
        if not sizes.rl:
            return self.gradients * passes
        sampling = self.forward(per_step) + self.decode(sizes.sampled, rows.completion)
        return sampling / rl.num_iterations + (self.gradients + sizes.reference) * passes


def steps(params: Params, method: str, rows: int) -> int:
    """Return the optimizer steps of a training."""
    if method == "sft":
        return math.ceil(rows * params.sft.epochs / params.sft.batch_size)
    return params.rl.max_steps if params.rl.max_steps > 0 else params.rl.batches(rows) * params.rl.num_iterations


def plan(config: PreTrainedConfig, params: Params, counts: Counts, machine: Machine) -> list[Stage]:
    """Plan the stages that compute with a model; `params.accelerate.processes` is the number of GPUs."""
    processes = params.accelerate.processes

    def line(stage: str, name: str, what: str, seconds: float, of: Params = params) -> Stage:
        return Stage(name, what, clock.start + seconds, estimate(config, of, stage, machine.device).total)

    clock = Clock(config, params, "encode", machine)
    found = [
        line("encode", "encode_training", f"{counts.images} images", clock.encode(counts.images)),
        line("encode", "encode_benchmarks", f"{counts.test_images} images", clock.encode(counts.test_images)),
    ]
    for method in (method for method in METHODS if method in params.models):
        settled = params.model_copy(deep=True)
        if params.train.gradient_checkpointing == "auto":
            needed = estimate(config, params, method, machine.device).total
            settled.train.gradient_checkpointing = needed > machine.memory
        clock = Clock(config, settled, method, machine)
        count = steps(params, method, counts.train)
        step = clock.step()
        dev = math.ceil(min(counts.dev, params.train.dev_samples or counts.dev) / processes)
        scores = math.ceil(count / params.train.eval_steps)
        what = f"{count} steps of {step:.2f} s, {scores} scores of {dev * processes} rows"
        found.append(line(method, method, what, count * step + scores * clock.answer(dev), settled))
    clock = Clock(config, params, "infer", machine)
    for model in params.models:
        rival = params.rival.get(model)
        if rival and rival.base_url:
            continue
        sets = [counts.test[name] for mode in params.modes_of(model) for name in params.sets_of(mode)]
        rows = [math.ceil(count / processes) for count in sets if count]
        found.append(line("infer", f"infer_{model}", f"{sum(sets)} questions", sum(map(clock.answer, rows))))
    return found


def without_model(params: Params, counts: Counts) -> list[tuple[str, str, float]]:
    """Return name, work and seconds of the stages without a model, at the rates of `SCALE`; none without that file."""
    if not SCALE.is_file():
        return []
    measured = read_json(SCALE)["results"][-1]
    rate = {one["stage"].partition("_")[0]: one["processor_seconds"] / measured["rows"] for one in measured["stages"]}
    own = counts.train + counts.dev + counts.test[params.own_test]
    others, answers = sum(counts.test.values()) - counts.test[params.own_test], sum(answered(params, counts).values())
    reading = own * (rate["curate"] + rate["audit"]) + others * (rate["benchmark"] + rate["audit"])
    return [
        ("curate, benchmark, audit", f"{own + others} rows", reading),
        # The rates are those of two models' answers, and of the scores of one of them.
        ("score, report", f"{answers} answers", answers * (rate["score"] + rate["report"] / 2)),
    ]


def count_rows(params: Params) -> Counts:
    """Count rows and images: as this folder's run has read them, otherwise as published.

    Raises:
        UserError: neither is known.
    """
    own, *benchmarks = params.test_sets
    read = _have_read(params)
    curated = read_json("metrics/curate.json") if read else _published(own)
    train, dev, test = (curated.get(split) for split in ("train", "dev", "test"))
    if train is None or test is None:
        raise UserError(
            f"train.source = {own}", "rows that no run has read yet", "their number", "run `dvc repro curate` first"
        )
    sets, images = {own: test["total"]}, test["images"]
    for name in benchmarks:
        file = Path(f"metrics/benchmark/{name}.json")
        found = read_json(file) if read and file.is_file() else {}
        known = {"total": found["read"], **found} if found else _published(name).get("test", {"total": 0, "images": 0})
        sets[name], images = known["total"], images + known["images"]
    return Counts(train["total"], dev["total"], sets, train["images"] + dev["images"], images)


def _have_read(params: Params) -> bool:
    """Whether the last run of `curate` has read these releases."""
    lock = Path("dvc.lock")
    stages = YAML(typ="safe").load(lock).get("stages", {}) if lock.is_file() else {}
    read = stages.get("curate", {}).get("params", {}).get("params.yaml", {})
    same = (read.get("data", {}).get("root"), read.get("train.source")) == (params.data.root, params.train.source)
    return same and Path("metrics/curate.json").is_file()


def _published(name: str) -> dict[str, dict]:
    """Return published counts by split, named as in `metrics/curate.json`; an image per row where none are known."""
    forms = load_adapter(name).DECLARED.counts
    splits = next(iter(forms.values()), {})
    return {
        {"validate": "dev"}.get(split, split): {
            "total": counts["rows"],
            "images": counts.get("images", counts["rows"]),
        }
        for split, counts in splits.items()
    }


def disk(config: PreTrainedConfig, params: Params, counts: Counts) -> dict[str, float]:
    """Return the GB of the files that a run leaves, without DVC's second copy of all but the base."""
    sizes = Footprint(config, params, "rarl", "cpu")
    count, value = sizes.count, BYTES[params.model.dtype]
    layers = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    features = sizes.image_tokens * sizes.text.hidden_size * layers * value
    trained = sum(method in params.models for method in METHODS)
    weights = (count.language + count.tower) * value if sizes.full else count.adapter * 4
    answers = sum(answered(params, counts).values())
    found = {
        "base": (count.language + count.tower) * 2 if params.base.source != "embedded" else 0,
        "features": (counts.images + counts.test_images) * features,
        "trained weights": trained * weights,
        "checkpoints, while training": (params.train.keep_checkpoints + 1) * weights * 3,
        "predictions and verdicts": answers * (PREDICTION + VERDICT * len(params.judges)),
    }
    return {name: needed / GB for name, needed in found.items()}


def answered(params: Params, counts: Counts) -> dict[str, int]:
    """Return the number of predictions of each model."""
    return {
        model: sum(counts.test[name] for mode in params.modes_of(model) for name in params.sets_of(mode))
        for model in params.models
    }


def judges(params: Params, counts: Counts) -> list[str]:
    """Describe what each judge costs, one line each; those that ask a language model by calls and tokens."""
    calls = sum(answered(params, counts).values())
    sample = Sample(
        id="", dataset="", split="", image="", image_sha256="", kind="open", question="x" * 80, answers=["x" * 16]
    )
    text = "x" * CHARACTERS_A_TOKEN * params.decoding.max_new_tokens
    messages = rubric.case(sample, Prediction(id="", completion=text, think=text, answer="x" * 16)).messages
    lines = []
    for name in params.judges:
        settings = params.judge[name]
        if not JUDGE_KINDS[settings.kind].asks:
            lines.append(f"{name}: {calls:,} verdicts on this machine, free")
            continue
        lines.append(f"{name}: {judged.priced(settings, calls, messages)}")
    for method in METHODS:
        if name := params.reasoning_judge(method):
            lines.append(f"{name}, reasoning reward of {method}: {judged.bill(params, method, counts.train)}")
    return lines


def measured(stages: list[Stage]) -> dict[str, float]:
    """Return the seconds of those stages that have finished in this folder."""
    found = {stage.name: read_cost(stage.name).get("seconds") for stage in stages}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def describe(machine: Machine) -> str:
    """Describe a machine's peak figures."""
    return (
        f"{machine.name}: {machine.flops / 1e12:.3g} TFLOPS, {machine.bandwidth / 1e9:.4g} GB/s, "
        f"{machine.memory:.0f} GB ({machine.source})"
    )


def changed_params(changes: Sequence[str]) -> Params:
    """Read `params.yaml` with changes such as `rl.group_size=16`; a UserError if one is none, or not valid."""
    path, yaml = Path("params.yaml"), YAML(typ="safe", pure=True)
    if not path.is_file() or not changes:
        return load_params(path)
    raw = yaml.load(path.read_text(encoding="utf-8"))
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"-S {change}", "no value", "KEY=VALUE, such as rl.group_size=16", "add the value")
        put(raw, key, yaml.load(value))
    text = io.StringIO()
    yaml.dump(raw, text)
    return parse_params(text.getvalue(), path)


def planned(
    params: Params, machine: Machine | None = None, rows: int | None = None
) -> tuple[PreTrainedConfig, Counts, list[Stage]]:
    """Plan a run on a machine (default: this one); return the base's configuration, the counts and the stages."""
    source = params.base.source.replace("embedded", "data/base")
    config = configuration(source, params.base.revision)
    if config is None:
        expected = f"the configuration of a supported model, or one of {', '.join(slugs())}"
        raise UserError(f"base {source}", "no readable configuration", expected, "go online, or correct the name")
    counts = count_rows(params)
    if rows:
        counts = replace(counts, train=rows, images=math.ceil(counts.images * rows / counts.train))
    return config, counts, plan(config, params, counts, machine or this_machine(params))


def report(base: str | None, card: str | None, gpus: int, rows: int | None, changes: Sequence[str]) -> str:
    """Return the plan as text; the arguments are the options of `rarl plan`.

    Raises:
        UserError: an unknown base or card, or parameters that are not valid.
    """
    params, known = changed_params(changes), cards()
    if card and card not in known:
        raise UserError(f"--card {card}", "no card of rarl/planning/cards.yaml", ", ".join(known), "correct the name")
    machine = known[card] if card else this_machine(params)
    if card:  # the figures are those of bfloat16
        params.model.dtype, params.model.device = "bfloat16", "auto"
    if base:
        params.base.source, params.base.revision = base, None
    params.accelerate.processes = gpus
    config, counts, stages = planned(params, machine, rows)
    factor, scaled = 1.0, ""
    if not card and not base and (times := measured(stages)):
        _, _, before = planned(load_params(), machine)
        factor = sum(times.values()) / sum(stage.seconds for stage in before if stage.name in times)
        scaled = f" All times are scaled by {factor:.2f}: the run in this folder took that much of its plan."
    lines = [
        f"{params.base.source} on {gpus} x {describe(machine)}; {EFFICIENCY:.0%} of both is assumed.{scaled}",
        f"Training rows {counts.train:,}, images {counts.images:,}; test rows "
        + ", ".join(f"{name} {count:,}" for name, count in counts.test.items()),
        "",
    ]
    table = [[one.name, one.what, duration(one.seconds * factor), f"{one.memory:.1f}"] for one in stages]
    others = without_model(params, counts)
    table += [[name, what, duration(seconds), ""] for name, what, seconds in others]
    total = factor * sum(one.seconds for one in stages) + sum(seconds for *_, seconds in others)
    table.append(["total", "", duration(total), ""])
    lines += markdown_table(["stage", "work", "time", "memory of a process, GB"], table)
    if (largest := max(stages, key=lambda one: one.memory)).memory > machine.memory:
        lines.append(f"\n{largest.name} does not fit into {machine.memory:.0f} GB: `rarl memory` says what to change.")
    needed = disk(config, params, counts)
    sizes = ", ".join(f"{name} {size:.1f}" for name, size in needed.items())
    lines.append(f"\nDisk, GB: {sizes}; DVC's cache has a second copy of all but the base and the checkpoints.")
    return "\n".join([*lines, "Judges:", *(f"  {line}" for line in judges(params, counts))])


def compare() -> str:
    """Return planned and measured seconds of the stages that have finished in this folder; a UserError without one."""
    _, _, stages = planned(load_params())
    times = measured(stages)
    if not times:
        found, fix = "no times of the stages that compute with a model", "run `dvc repro` on this machine"
        raise UserError(str(COSTS), found, "those of a finished run", fix)
    rows = [(one.name, one.what, one.seconds, times[one.name]) for one in stages if one.name in times]
    rows.append(("total", "", sum(row[2] for row in rows), sum(times.values())))
    table = [
        [name, what, f"{plan:.1f}", f"{real:.1f}", f"{plan / real:.2f}" if real > AHEAD else "ran ahead"]
        for name, what, plan, real in rows
    ]
    return "\n".join(markdown_table(["stage", "work", "planned, s", "measured, s", "planned / measured"], table))


def duration(seconds: float) -> str:
    """Format a time.

    >>> duration(45), duration(600), duration(9000)
    ('45 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
