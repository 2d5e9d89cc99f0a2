"""Estimate the memory of a training run before it starts, from the base's configuration and the parameters.

`rarl memory` prints the plan for the current parameters, and what to change for smaller devices. It is an estimate,
not a measurement; a test counts what a layer of a small model keeps. Assumptions:

* The plan is of one process (`accelerate.processes`; under DDP each process holds the whole model).
* Rows have their maximum length: the largest image that `model.max_pixels` permits, the longest training prompt, and
  `rl.max_completion_length` tokens (also for SFT's targets).
* With LoRA, weights are in `model.dtype` and adapters in float32 (PEFT). Without it, weights, gradients and the
  reference policy, which TRL loads as a second model, are in float32, and autocast copies them to `model.dtype` for a
  pass. AdamW keeps two states per trainable parameter, in its dtype.
* The output of the vision tower is cached (`rarl/models/features.py`): its activations are counted for `encode` only,
  and its weights are offloaded from a GPU unless whole models are saved.
* `model.quantization: nf4` keeps the linear layers of the language model in 4 bits; each is dequantized for its
  products. `train.optimizer: adamw_8bit` keeps both states in 8 bits.
* RL shares a prompt within its group (`rarl/models/shared_prefix`): a pass has `micro_prompts` x (prompt +
  `group_size` x completion) tokens, and sampling keeps the keys and values of `prompts_per_step` prompts once and
  those of all completions. SFT and fallbacks to stock TRL (unsupported models, sampling where FSDP reshards) have full
  rows. Sliding windows count like full attention.
* Gradient checkpointing keeps `hidden` values per token and layer, and one layer in full (`kept_activations`).
* TRL 1.16 never materializes the logits of the whole vocabulary: its fused head works in tiles of 4,096 tokens x
  32,768 vocabulary entries. A trained embedding briefly has its gradient in float32 there.
* On a CPU, weights in `model.dtype` are pages of their file, which are in memory from their first use on; quantized
  weights are copies.
* The reserve covers CUDA, the encoder of BERTScore, and a tenth of the largest pass for fragmentation.

`rarl rehearse` compares the plan with what is measured (`metrics/bench/rehearsal.md`).
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from ruamel.yaml import YAML
from transformers import AutoConfig, PreTrainedConfig

from rarl.models.families import FAMILIES, image_tokens
from rarl.models.patching import vision_modules
from rarl.models.quantization import BYTES_PER_WEIGHT
from rarl.models.shared_prefix.layers import patch_layers
from rarl.params import Params
from rarl.prompts import template
from rarl.records import read_json
from rarl.registry import METHODS
from rarl.rehearsal.bases import meta_model, parse, published

GB = 1e9
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
#: Bytes of AdamW's two states per weight.
STATES = {"adamw": 8, "adamw_8bit": 2 + 2 * 4 / 256}
#: GB: CUDA's context and libraries, BERTScore's small encoder; on a CPU the interpreter with its libraries.
FIXED = {"cuda": 1.0, "cpu": 0.7}
#: GB on a CPU without the trainers.
FIXED_WITHOUT_TRAINING = 0.5
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


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, and how the layers are computed."""

    language: int  # of the language model with its head, tied weights once
    tower: int  # of the vision tower and its projector
    adapter: int
    linear: int  # of the language model's linear layers without the head, which NF4 quantizes
    largest: int  # of the largest of them
    shares: bool  # whether a group can share its prompt


def count_parameters(config: PreTrainedConfig, lora_r: int, target_modules: list[str]) -> Counts:
    """Count the parameters of a base and of its adapter."""
    return _count(config.to_json_string(use_diff=False), type(config), lora_r, tuple(target_modules))


@cache
def _count(config: str, kind: type, lora_r: int, target_modules: tuple[str, ...]) -> Counts:
    model = meta_model(kind(**json.loads(config)))
    tower = sum(p.numel() for module in vision_modules(model) for p in module.parameters())
    language = getattr(model.model, FAMILIES[model.config.model_type].language)
    layers = {name: one for name, one in language.named_modules() if isinstance(one, torch.nn.Linear)}
    adapted = [one for name, one in layers.items() if name.split(".")[-1] in target_modules]
    sizes = [one.weight.numel() for one in layers.values()]
    return Counts(
        language=sum(p.numel() for p in model.parameters()) - tower,
        tower=tower,
        adapter=sum(lora_r * (one.in_features + one.out_features) for one in adapted),
        linear=sum(sizes),
        largest=max(sizes),
        shares=patch_layers(model) is None,
    )


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


@dataclass(frozen=True)
class Widths:
    """Sizes of one layer of a language model, and what autograd keeps of its parts."""

    hidden: int
    inner: int  # of the feed-forward block
    queries: int  # of the queries of all heads
    keys_values: int  # of the keys and values of all heads
    norms: int  # of the residual stream
    normed: int  # of the queries and keys, if they are normalised
    fused_norms: bool  # else the library's, which keep their input in float32
    fused_feed_forward: bool  # else the library's, which keeps one value more

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Widths":
        """The widths of a base."""
        text, gemma = config.get_text_config(), config.model_type == "gemma3"
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
        return cls(
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            queries=queries,
            keys_values=2 * keys,
            norms=4 if gemma else 2,
            normed=queries + keys if config.model_type in ("gemma3", "qwen3_vl") else 0,
            fused_norms=not gemma,
            fused_feed_forward=not gemma,
        )


def kept_activations(config: PreTrainedConfig, params: Params, rows: Layout) -> int:
    """Count the bytes that autograd keeps for one layer of the language model.

    Per token these are 2 x intermediate values (3 if trained), 2 x hidden values, the inputs of norms, and twice the
    queries, in the compute dtype; in trained layers also casts, more of them in bfloat16, and the inputs of products.
    Per attended token they are keys and values, which the library repeats for all query heads; a shared prompt's
    layout does not repeat them, but copies the completions' queries and has one mask per layer.
    """
    sizes, value = Widths.of(config), BYTES[params.model.dtype]
    full = params.train.trainable == "full"
    half = full and value < 4
    normed = (sizes.norms * sizes.hidden + sizes.normed) * (value if sizes.fused_norms else 4)
    feed_forward = (3 - sizes.fused_feed_forward + full) * sizes.inner * value
    residual = sizes.hidden * (2 * value + 4 * full + 6 * half)
    kept = rows.tokens * (feed_forward + residual + normed + 2 * sizes.queries * value)
    if rows.shared:
        repeated = rows.attended * sizes.keys_values + rows.scored * sizes.queries + rows.tokens * sizes.keys_values
        mask = rows.groups * rows.completion * (rows.prompt + rows.completion)
        return kept + value * (repeated + mask * 2 * sizes.queries // sizes.keys_values)
    if params.model.attention == "flash_attention_2":
        return kept + rows.attended * value * sizes.keys_values
    return kept + rows.attended * 2 * sizes.queries * (value + half)


class Footprint:
    """The sizes of one process's share of a stage, and the bytes that each of its phases needs (as for `estimate`)."""

    def __init__(self, config: PreTrainedConfig, params: Params, stage: str, device: str):
        self.config, self.text, self.params, self.device = config, config.get_text_config(), params, device
        self.stage, self.rl = stage, stage in METHODS and stage != "sft"
        self.full = params.train.trainable == "full" and stage in METHODS
        self.compute = BYTES[params.model.dtype]  # bytes of a value in a pass
        self.weight = 4 if self.full else self.compute  # bytes of a stored weight
        self.count = count_parameters(config, params.lora.r, params.lora.target_modules)
        self.sizes = Widths.of(config)

        content, pixels = {**config.to_dict(), "model_type": config.model_type}, params.model.max_pixels
        self.image_tokens = image_tokens(content, pixels)
        self.patches = patches(config, pixels)
        prompts = getattr(params, stage).prompts if self.rl else ["reasoning"]
        self.prompt_tokens = max(len(template(name)) for name in prompts) // CHARACTERS_A_TOKEN + QUESTION_AND_TEMPLATE

        rl, sft, processes = params.rl, params.sft, params.accelerate.processes
        per_step = rl.prompts_per_step if self.rl else sft.batch_size
        per_pass = rl.micro_prompts if self.rl else sft.micro_batch_size
        self.prompts_per_step = max(1, per_step // processes)
        self.sampled = self.prompts_per_step * rl.group_size if self.rl else 0  # completions per step
        # Where layers cannot be patched, stock TRL repeats the prompt.
        shared = self.rl and self.count.shares
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
        count, mapped = self.count, self.device == "cpu"
        if self.stage == "encode":  # on a CPU the language model's pages are read to be quantized only
            language = {} if mapped and not self.params.model.quantization else self.language_model()
            return language | {"vision tower": count.tower * self.compute, "images of a batch": self.images(16)}
        offloaded = self.device == "cuda" and not self.full
        found = self.language_model() | {"vision tower, frozen": 0 if offloaded else count.tower * self.weight}
        if self.stage not in METHODS:
            return found | {"images of a batch": self.images(self.params.decoding.batch_size)}
        trainable = count.language if self.full else count.adapter
        # An adapter's weights are counted here, too: weights, gradients and states of AdamW.
        optimizer = trainable * ((4 if self.full else 8) + STATES[self.params.train.optimizer])
        found["gradients, optimizer" if self.full else "adapter, gradients, optimizer"] = optimizer
        # And a copy while the rows are shuffled and grouped.
        found["images of a step"] = 2 * self.images(max(self.sampled, self.rows.groups))
        if self.reference and self.full:
            found["reference policy"] = (count.language + count.tower) * self.weight
        if (slug := self.params.reasoning_judge(self.stage)) and self.params.judge[slug].kind == "local":
            files = Path(self.params.judge[slug].model).glob("*.safetensors")  # none of a hub id: unknown
            found["judge of the reasoning reward"] = sum(file.stat().st_size for file in files)
        return found

    def language_model(self) -> dict[str, float]:
        """The language model's weights."""
        kind = "float32" if self.full else self.params.model.dtype
        if self.params.model.quantization is None:
            return {f"language model, {kind}": self.count.language * self.weight}
        quantized = {f"language model, {self.params.model.quantization}": self.count.linear * BYTES_PER_WEIGHT}
        if self.device == "cpu":  # `encode` reads no embedding
            read = self.count.linear if self.stage == "encode" else self.count.language
            return quantized | {"its file, mapped": read * self.weight}
        rest = (self.count.language - self.count.linear) * self.weight
        return quantized | {f"its embeddings, head and norms, {kind}": rest}

    def images(self, count: int) -> float:
        """Pixels of images in float32, as the image processor returns them."""
        vision = self.config.vision_config
        frames = getattr(vision, "temporal_patch_size", 1)
        return count * self.patches * 3 * frames * vision.patch_size**2 * 4

    def passes(self) -> dict[str, float]:
        """The phases of a stage, of which one is active at a time."""
        if self.stage == "encode":
            return {"encoding an image": self.tower_pass()}
        found = {}
        if self.rl:
            found[f"sampling {self.sampled} completions"] = self.sampling()
        batch, new = self.params.decoding.batch_size, self.params.decoding.max_new_tokens
        scoring = "scoring development rows" if self.stage in METHODS else "answering a batch"
        found[scoring] = self.decoding(batch, batch, new, self.weight)
        if self.reference:
            found["reference pass"] = self.reference_pass()
        if self.stage in METHODS:
            found["policy pass: forward, backward"] = self.policy_pass()
        return found

    def tower_pass(self) -> float:
        """Run the vision tower on one image, without gradients."""
        vision = self.config.vision_config
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        inner = getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio
        return self.patches * self.compute * (3 * inner + 6 * width)

    def dequantized(self) -> float:
        """A linear layer in the compute dtype, while it is multiplied."""
        return self.count.largest * self.compute if self.params.model.quantization else 0

    def sampling(self) -> float:
        """Generate a step's completions."""
        repeated = not self.rows.shared or _reshards_after_forward(self.params)
        prompts = self.sampled if repeated else self.prompts_per_step
        return self.decoding(prompts, self.sampled, self.rows.completion, self.compute) + self.autocast_copies()

    def decoding(self, prompts: int, rows: int, new: int, value: int) -> float:
        """Decode `rows` completions of `new` tokens to `prompts` prompts. value: bytes of a value in the cache."""
        cache = self.sizes.keys_values * self.text.num_hidden_layers * value
        needed = (prompts * self.rows.prompt + rows * new) * cache
        needed += prompts * self.rows.prompt * self.running()
        needed += rows * self.text.vocab_size * (value + FLOAT_LOGITS * 4)
        if self.weight == 4 and self.device == "cpu":  # the layout of the decoding step, at most
            needed += 4 * self.count.language
        return needed + self.dequantized()

    def reference_pass(self) -> float:
        """Run the reference policy, without gradients."""
        running = self.rows.tokens * self.running() + self.rows.attended * self.compute * 2 * self.sizes.queries
        return running + self.autocast_copies() + self.head() + self.dequantized()

    def policy_pass(self) -> float:
        """Run the policy forward and backward."""
        layers, tokens = self.text.num_hidden_layers, self.rows.tokens
        kept = kept_activations(self.config, self.params, self.rows)
        if self.params.train.gradient_checkpointing is True:
            activations = tokens * layers * self.weight * self.text.hidden_size + kept
        else:
            activations = layers * kept
        backward = tokens * self.compute * 3 * self.sizes.inner + self.dequantized()
        return activations + backward + self.autocast_copies() + self.head()

    def running(self) -> int:
        """Bytes of one token's activations in one layer without gradients."""
        return self.compute * (3 * self.sizes.inner + 4 * self.sizes.hidden)

    def autocast_copies(self) -> int:
        """Copies of float32 weights in the compute dtype; the embedding is looked up and needs none."""
        if self.weight <= self.compute:
            return 0
        return (self.count.language - self.text.vocab_size * self.text.hidden_size) * self.compute

    def head(self) -> int:
        """TRL's fused head: a tile of logits, hidden states, and the gradient of a trained embedding."""
        scored = self.rows.scored if self.rl or self.device == "cuda" else self.rows.tokens
        tokens, entries = min(scored, TILE[0]), TILE[1]
        tile = tokens * entries * self.compute
        if self.device == "cpu":  # entries beyond the vocabulary are never touched
            tile = tokens * min(entries, self.text.vocab_size) * (self.compute + TILES_ON_CPU * 4)
        gradient = self.text.vocab_size * self.text.hidden_size * (4 + self.compute) if self.full else 0
        return tile + scored * self.text.hidden_size * 4 + gradient


def patches(config: PreTrainedConfig, pixels: int) -> int:
    """Patches of the largest image, over all its tiles."""
    vision, family = config.vision_config, FAMILIES[config.model_type]
    if family.patch:
        return math.ceil(pixels / vision.patch_size**2)
    tile = (vision.image_size // vision.patch_size) ** 2
    if config.model_type == "gemma3":
        return tile
    content = {**config.to_dict(), "model_type": config.model_type}
    return image_tokens(content, pixels) * config.scale_factor**2


def estimate(config: PreTrainedConfig, params: Params, stage: str = "rarl", device: str = "cuda") -> Plan:
    """Plan the memory of one stage from the base's configuration; the weights are not loaded.

    Args:
        config: of the base.
        params: the parameters.
        stage: a training (`sft`, `grpo`, `rarl`), `encode` or `infer`.
        device: `cuda` or `cpu`.
    """
    run = Footprint(config, params, stage, device)
    passes = {name: needed / GB for name, needed in run.passes().items()}
    completions = f"{run.rows.size} x {run.rows.completion}" if run.rows.shared else run.rows.completion
    fixed = FIXED[device] if stage in METHODS or device == "cuda" else FIXED_WITHOUT_TRAINING
    return Plan(
        rows=f"a pass: {run.rows.groups} x ({run.image_tokens} image + {run.prompt_tokens} prompt + "
        f"{completions} completion tokens)",
        resident={name: needed / GB for name, needed in run.resident().items()},
        passes=passes,
        reserve=fixed + FRAGMENTATION * max(passes.values()),
    )


def _reshards_after_forward(params: Params) -> bool:
    """Whether FSDP reshards weights after each forward pass; stock TRL then samples, with the prompt in each row."""
    if params.accelerate.config is None:
        return False
    config = YAML(typ="safe").load(Path(params.accelerate.config).read_text(encoding="utf-8"))
    fsdp = config.get("distributed_type") == "FSDP"
    return fsdp and (config.get("fsdp_config") or {}).get("fsdp_reshard_after_forward", True)


def relief(config, params: Params, method: str, device: str, limit: float) -> list[tuple[str, float]]:
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


def compute_device(params: Params) -> str:
    """`cuda` or `cpu`."""
    return "cuda" if params.model.device != "cpu" and torch.cuda.is_available() else "cpu"


def _context(folder: str | Path, params: Params, method: str) -> tuple[PreTrainedConfig | None, str, float]:
    """Return the base's configuration (None if it cannot be read, which loading explains), the device, its GB."""
    pointer = read_json(Path(folder) / "base.json")
    device = compute_device(params)
    have = available(device)
    if params.rl.vllm == "colocate" and method != "sft" and device == "cuda":
        have -= params.rl.vllm_memory * torch.cuda.mem_get_info()[1] / GB
    return configuration(pointer["source"], pointer["revision"]), device, have


def configuration(source: str, revision: str | None) -> PreTrainedConfig | None:
    """Read a base's configuration, a published one without the hub; None if it cannot be read or is unsupported."""
    if known := published(source):
        return parse(known["config"])
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError):
        return None
    return config if config.model_type in FAMILIES else None


def needed(model: str, params: Params, stage: str) -> float:
    """GB of a stage of a model; 0 if it has no folder yet, or its base's configuration cannot be read."""
    folder = Path("data/models") / model
    if not (folder / "base.json").is_file():
        return 0.0
    config, device, _ = _context(folder, params, stage)
    return 0.0 if config is None else estimate(config, params, stage, device).total


def recomputes(folder: str | Path, params: Params, method: str) -> bool:
    """Whether to use gradient checkpointing; `auto` uses it where the plan without it does not fit."""
    if params.train.gradient_checkpointing != "auto":
        return params.train.gradient_checkpointing
    config, device, have = _context(folder, params, method)
    return config is not None and estimate(config, params, method, device).total > have


def log_plan(folder: str | Path, params: Params, method: str) -> str:
    """Return a run's plan and what to change if it does not fit; empty if the base's configuration cannot be read."""
    config, device, have = _context(folder, params, method)
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
