"""Estimate the memory of a training run before it starts, from the base's configuration and the parameters.

`rarl memory` prints the plan for the current parameters, and what to change for smaller devices. It is an estimate,
not a measurement; a test counts what a layer of a small model keeps. Assumptions:

* The plan is of one process (`accelerate.processes`; under DDP each process holds the whole model).
* Rows have their maximum length: the largest image that `model.max_pixels` permits, the longest training prompt, and
  `rl.max_completion_length` tokens (also for SFT's targets).
* With LoRA, weights are in `model.dtype` and adapters in float32 (PEFT). Without it, weights, gradients and the
  reference policy, which TRL loads as a second model, are in float32, and autocast copies them to `model.dtype` for a
  pass. AdamW keeps two states per trainable parameter, in its dtype.
* The output of the vision tower is cached (`rarl/models/features.py`): its activations are not counted, and its
  weights are offloaded from a GPU unless whole models are saved.
* RL shares a prompt within its group (`rarl/training`): a pass has `micro_prompts` x (prompt + `group_size` x
  completion) tokens, and sampling keeps the keys and values of `prompts_per_step` prompts once and those of all
  completions. SFT and fallbacks to stock TRL (sampling under FSDP and DeepSpeed, sliding windows) have full rows.
* Gradient checkpointing keeps `hidden` values per token and layer, and one layer in full (`kept_activations`).
* TRL 1.16 never materializes the logits of the whole vocabulary: its fused head works in tiles of 4,096 tokens x
  32,768 vocabulary entries. A trained embedding briefly has its gradient in float32 there.
* The reserve covers CUDA, the encoder of BERTScore, and a tenth of the largest pass for fragmentation.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from ruamel.yaml import YAML
from transformers import AutoConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from rarl.params import Params
from rarl.prompts import template
from rarl.records import read_json

GB = 1e9
PAPERS_BASE = "Qwen/Qwen2-VL-2B-Instruct"
#: Its vision and text sizes.
QWEN2_VL_2B = (
    dict(depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4),
    dict(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2)
    | dict(intermediate_size=8960, vocab_size=151_936, tie_word_embeddings=True)
    | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24])),
)
BYTES = {"float32": 4, "bfloat16": 2}
#: Tile of TRL's fused head: tokens, vocabulary entries (`trl/kernels/chunked_logprob.py`, `trl/trainer/utils.py`).
TILE = (4096, 32768)
#: Additional float32 tiles that the head holds without Triton, on a CPU.
TILES_ON_CPU = 5
#: Float32 tables over the vocabulary in sampling a token: logits, probabilities, noise, their ratio.
FLOAT_LOGITS = 4
#: Tokens of the question and of the chat template; generous.
QUESTION_AND_TEMPLATE = 64
CHARACTERS_A_TOKEN = 4
#: GB: CUDA's context and libraries, BERTScore's small encoder; on a CPU the interpreter with its libraries.
FIXED = {"cuda": 1.0, "cpu": 0.7}
FRAGMENTATION = 0.1


@dataclass(frozen=True)
class Plan:
    """Memory of a training run in GB."""

    rows: str  # description of a pass's tokens
    resident: dict[str, float]  # allocated all the time
    passes: dict[str, float]  # allocated in one phase at a time
    reserve: float  # for what cannot be counted

    @property
    def total(self) -> float:
        """Peak memory in GB."""
        return sum(self.resident.values()) + max(self.passes.values()) + self.reserve

    def table(self) -> str:
        """Format the plan, one line per item."""
        items = self.resident | self.passes
        items |= {"context, libraries, fragmentation": self.reserve, "total": self.total}
        marks = {max(self.passes, key=self.passes.get): "  <- the largest pass"}
        lines = [f"  {name:<34}{value:7.2f}{marks.get(name, '')}" for name, value in items.items()]
        return "\n".join([f"  {self.rows}", *lines])


def parameter_counts(config: Qwen2VLConfig, lora_r: int, target_modules: list[str]) -> dict[str, int]:
    """Count the parameters of the language model (tied embeddings once), the vision tower and an adapter."""
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration._from_config(config)
    model.tie_weights()
    tower = sum(p.numel() for p in model.model.visual.parameters())
    adapted = [
        module
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[-1] in target_modules
    ]
    return {
        "language model": sum(p.numel() for p in model.parameters()) - tower,
        "tower": tower,
        "adapter": sum(lora_r * (m.in_features + m.out_features) for m in adapted),
    }


@dataclass(frozen=True)
class Layout:
    """Tokens of a forward pass."""

    groups: int  # prompts
    size: int  # completions per prompt; 1 for rows of one prompt and one completion
    prompt: int  # tokens of a prompt
    completion: int  # tokens of a completion
    shared: bool  # whether the completions of a group share one copy of their prompt

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.groups * (self.prompt + self.size * self.completion)

    @property
    def scored(self) -> int:
        """Completion tokens, whose log-probabilities are computed."""
        return self.groups * self.size * self.completion

    @property
    def attended(self) -> int:
        """Tokens whose keys and values attention takes: each completion's, and again those of its prompt."""
        return self.groups * self.size * (self.prompt + self.completion)


def kept_activations(config: Qwen2VLConfig, params: Params, rows: Layout) -> int:
    """Count the bytes that autograd keeps for one layer of the language model.

    Per token these are 2 x intermediate values (3 if trained) and 6 x hidden values in the compute dtype, with queries
    and the attention's output among them; in trained layers also casts, more of them in bfloat16, and the inputs of
    products. Per attended token they are keys and values, which the library repeats for all query heads; a shared
    prompt's layout does not repeat them, but copies the completions' queries and has one mask per layer.
    """
    text = config.text_config
    hidden, value = text.hidden_size, BYTES[params.model.dtype]
    full = params.train.trainable == "full"
    half = full and value < 4
    kept = rows.tokens * value * (2 + full) * text.intermediate_size
    kept += rows.tokens * hidden * (6 * value + 4 * full + 6 * half)
    keys_values = _keys_values(config)
    if rows.shared:
        kept += value * (rows.attended * keys_values + rows.scored * hidden + rows.tokens * keys_values)
        mask = rows.groups * rows.completion * (rows.prompt + rows.completion)
        return kept + value * mask * 2 * hidden // keys_values
    if params.model.attention == "flash_attention_2":
        return kept + rows.attended * value * keys_values
    return kept + rows.attended * 2 * hidden * (value + half)


def _keys_values(config: Qwen2VLConfig) -> int:
    """Values in the keys and values of one token in one layer."""
    text = config.text_config
    return 2 * text.num_key_value_heads * text.hidden_size // text.num_attention_heads


class Footprint:
    """The sizes of one process's share of a training run, and the bytes that each phase needs (as for `estimate`)."""

    def __init__(self, config: Qwen2VLConfig, params: Params, method: str, device: str):
        self.config, self.text, self.params, self.device = config, config.text_config, params, device
        self.rl, self.full = method != "sft", params.train.trainable == "full"
        self.compute = BYTES[params.model.dtype]  # bytes of a value in a pass
        self.weight = 4 if self.full else self.compute  # bytes of a stored weight
        self.count = parameter_counts(config, params.lora.r, params.lora.target_modules)

        vision = config.vision_config
        self.patches = math.ceil(params.model.max_pixels / vision.patch_size**2)
        self.image_tokens = math.ceil(self.patches / vision.spatial_merge_size**2)
        prompts = getattr(params, method).prompts if self.rl else ["reasoning"]
        self.prompt_tokens = max(len(template(name)) for name in prompts) // CHARACTERS_A_TOKEN + QUESTION_AND_TEMPLATE

        rl, sft, processes = params.rl, params.sft, params.accelerate.processes
        per_step = rl.prompts_per_step if self.rl else sft.batch_size
        per_pass = rl.micro_prompts if self.rl else sft.micro_batch_size
        self.prompts_per_step = max(1, per_step // processes)
        self.sampled = self.prompts_per_step * rl.group_size if self.rl else 0  # completions per step
        # As in the trainer, sliding windows fall back to stock TRL, which repeats the prompt.
        shared = self.rl and set(self.text.layer_types) == {"full_attention"}
        groups, size = min(per_pass, self.prompts_per_step), rl.group_size if self.rl else 1
        groups, size = (groups, size) if shared else (groups * size, 1)
        prompt = self.image_tokens + self.prompt_tokens
        self.rows = Layout(groups, size, prompt, rl.max_completion_length, shared)

    @property
    def reference(self) -> bool:
        """Whether log-probabilities of a reference policy are computed."""
        return self.rl and self.params.rl.beta > 0

    def resident(self) -> dict[str, float]:
        """Weights, gradients, optimizer states and images, which are allocated all the time."""
        count, vision = self.count, self.config.vision_config
        trainable = count["language model"] if self.full else count["adapter"]
        offloaded = self.device == "cuda" and not self.full
        patch = 3 * vision.temporal_patch_size * vision.patch_size**2 * 4
        # An adapter's weights are counted here, too: weights, gradients and two states of AdamW in float32.
        optimizer = trainable * 4 * (3 if self.full else 4)
        images = max(self.sampled, self.rows.groups) * self.patches * patch
        dtype = "float32" if self.full else self.params.model.dtype
        found = {
            f"language model, {dtype}": count["language model"] * self.weight,
            "vision tower, frozen": 0 if offloaded else count["tower"] * self.weight,
            "gradients, optimizer" if self.full else "adapter, gradients, optimizer": optimizer,
            "images of a step": 2 * images,  # and a copy while the rows are shuffled and grouped
        }
        if self.reference and self.full:
            found["reference policy"] = (count["language model"] + count["tower"]) * self.weight
        return found

    def passes(self) -> dict[str, float]:
        """The phases of a step and of scoring, of which one is active at a time."""
        found = {}
        if self.rl:
            found[f"sampling {self.sampled} completions"] = self.sampling()
        batch, new = self.params.decoding.batch_size, self.params.decoding.max_new_tokens
        found["scoring development rows"] = self.decoding(batch, batch, new, self.weight)
        if self.reference:
            found["reference pass"] = self.reference_pass()
        found["policy pass: forward, backward"] = self.policy_pass()
        return found

    def sampling(self) -> float:
        """Generate a step's completions."""
        # If the weights are sharded, stock TRL samples, which repeats the prompt for each row.
        repeated = not self.rows.shared or _weights_are_sharded(self.params)
        prompts = self.sampled if repeated else self.prompts_per_step
        return self.decoding(prompts, self.sampled, self.rows.completion, self.compute) + self.autocast_copies()

    def decoding(self, prompts: int, rows: int, new: int, value: int) -> float:
        """Decode `rows` completions of `new` tokens to `prompts` prompts. value: bytes of a value in the cache."""
        cache = _keys_values(self.config) * self.text.num_hidden_layers * value
        needed = (prompts * self.rows.prompt + rows * new) * cache
        needed += prompts * self.rows.prompt * self.running()
        needed += rows * self.text.vocab_size * (value + FLOAT_LOGITS * 4)
        if self.weight == 4 and self.device == "cpu":  # the layout of the decoding step, at most
            needed += 4 * self.count["language model"]
        return needed

    def reference_pass(self) -> float:
        """Run the reference policy, without gradients."""
        attention = self.rows.attended * self.compute * 2 * self.text.hidden_size
        return self.rows.tokens * self.running() + attention + self.autocast_copies() + self.head()

    def policy_pass(self) -> float:
        """Run the policy forward and backward."""
        layers, tokens = self.text.num_hidden_layers, self.rows.tokens
        kept = kept_activations(self.config, self.params, self.rows)
        if self.params.train.gradient_checkpointing is True:
            activations = tokens * layers * self.weight * self.text.hidden_size + kept
        else:
            activations = layers * kept
        backward = tokens * self.compute * 3 * self.text.intermediate_size
        return activations + backward + self.autocast_copies() + self.head()

    def running(self) -> int:
        """Bytes of one token's activations in one layer without gradients."""
        return self.compute * (3 * self.text.intermediate_size + 4 * self.text.hidden_size)

    def autocast_copies(self) -> int:
        """Copies of float32 weights in the compute dtype; the embedding is looked up and needs none."""
        if self.weight <= self.compute:
            return 0
        return (self.count["language model"] - self.text.vocab_size * self.text.hidden_size) * self.compute

    def head(self) -> int:
        """TRL's fused head: a tile of logits, hidden states, and the gradient of a trained embedding."""
        scored = self.rows.scored if self.rl or self.device == "cuda" else self.rows.tokens
        tokens, entries = min(scored, TILE[0]), TILE[1]
        tile = tokens * entries * self.compute
        if self.device == "cpu":  # entries beyond the vocabulary are never touched
            tile = tokens * min(entries, self.text.vocab_size) * (self.compute + TILES_ON_CPU * 4)
        gradient = self.text.vocab_size * self.text.hidden_size * (4 + self.compute) if self.full else 0
        return tile + scored * self.text.hidden_size * 4 + gradient


def estimate(config: Qwen2VLConfig, params: Params, method: str = "rarl", device: str = "cuda") -> Plan:
    """Plan the memory of one training run from the base's configuration; the weights are not loaded."""
    run = Footprint(config, params, method, device)
    passes = {name: needed / GB for name, needed in run.passes().items()}
    completions = f"{run.rows.size} x {run.rows.completion}" if run.rows.shared else run.rows.completion
    return Plan(
        rows=f"a pass: {run.rows.groups} x ({run.image_tokens} image + {run.prompt_tokens} prompt + "
        f"{completions} completion tokens)",
        resident={name: needed / GB for name, needed in run.resident().items()},
        passes=passes,
        reserve=FIXED[device] + FRAGMENTATION * max(passes.values()),
    )


def _weights_are_sharded(params: Params) -> bool:
    """Whether processes share the weights; sampling then falls back to stock TRL."""
    if params.accelerate.config is None:
        return False
    config = YAML(typ="safe").load(Path(params.accelerate.config).read_text(encoding="utf-8"))
    return config.get("distributed_type") in ("FSDP", "DEEPSPEED")


def relief(config: Qwen2VLConfig, params: Params, method: str, device: str, limit: float) -> list[tuple[str, float]]:
    """Return changes that help the run to fit, applied in this order: (change, GB after it). It may still not fit."""
    params = params.model_copy(deep=True)
    rl, decoding, model = params.rl, params.decoding, params.model
    knobs = [  # those that keep the mathematics come first
        ("rl", "micro_prompts", 1) if method != "sft" else ("sft", "micro_batch_size", 1),
        ("train", "gradient_checkpointing", True),
        ("decoding", "batch_size", max(1, decoding.batch_size // 4)),
        ("model", "max_pixels", max(model.min_pixels, model.max_pixels // 2)),
        ("rl", "max_completion_length", max(1, rl.max_completion_length // 2)),
        *([("rl", "group_size", max(2, rl.group_size // 2))] if method != "sft" else []),
    ]
    steps, last = [], estimate(config, params, method, device).total
    for name, key, new in knobs:
        if last <= limit:
            break
        block = getattr(params, name)
        old = getattr(block, key)
        setattr(block, key, new)
        after = estimate(config, params, method, device).total
        if after < last:
            steps.append((f"{name}.{key} {old} -> {new}".lower(), after))
            last = after
        else:
            setattr(block, key, old)
    return steps


def available(device: str) -> float:
    """Return the GB that are free or already allocated by this process."""
    if device == "cuda":
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / GB
    import psutil

    return (psutil.virtual_memory().available + psutil.Process().memory_info().rss) / GB


def _context(folder: str | Path, params: Params) -> tuple[Qwen2VLConfig | None, str, float]:
    """Return the base's configuration (None if it cannot be read, which loading explains), the device, its GB."""
    pointer = read_json(Path(folder) / "base.json")
    device = "cuda" if params.model.device != "cpu" and torch.cuda.is_available() else "cpu"
    return configuration(pointer["source"], pointer["revision"]), device, available(device)


def configuration(source: str, revision: str | None) -> Qwen2VLConfig | None:
    """Read a base's configuration; None if it cannot be read."""
    if source == PAPERS_BASE:
        vision, text = QWEN2_VL_2B
        return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except OSError:
        return None
    return config if isinstance(config, Qwen2VLConfig) else None


def recomputes(folder: str | Path, params: Params, method: str) -> bool:
    """Whether to use gradient checkpointing; `auto` uses it where the plan without it does not fit."""
    if params.train.gradient_checkpointing != "auto":
        return params.train.gradient_checkpointing
    config, device, have = _context(folder, params)
    return config is not None and estimate(config, params, method, device).total > have


def log_plan(folder: str | Path, params: Params, method: str) -> str:
    """Return a run's plan and what to change if it does not fit; empty if the base's configuration cannot be read."""
    config, device, have = _context(folder, params)
    if config is None:
        return ""
    params = params.model_copy(deep=True)
    params.train.gradient_checkpointing = recomputes(folder, params, method)
    plan = estimate(config, params, method, device)
    where = torch.cuda.get_device_name() if device == "cuda" else "memory of this machine"
    text = f"{method}: memory plan in GB (an estimate; {where}: {have:.1f} available)\n{plan.table()}"
    if plan.total <= have:
        return text
    steps = relief(config, params, method, device, have)
    if not steps:
        return f"{text}\n  WARNING: will not fit, and no parameter helps: use a smaller base or a larger device"
    changes = ", then ".join(f"{change} ({after:.1f} GB)" for change, after in steps)
    enough = "" if steps[-1][1] <= have else "; it still does not fit"
    return f"{text}\n  WARNING: will not fit: set {changes}{enough}"
