"""How much memory a training run will need, from the model's configuration and the parameters, before it starts.

`rarl memory` prints the plan for the present parameters, and what to turn on smaller devices.
An estimate, not a measurement: a test counts what a layer of a small model keeps. What it assumes:

* What is counted is one process's share (`accelerate.processes`, DDP: each holds a whole model).
* Rows are as long as they can get: the largest image that `model.max_pixels` lets through, the longest training
  prompt, `rl.max_completion_length` tokens (for SFT's targets too).
* With LoRA weights lie in `model.dtype`, adapters in float32 (PEFT). Without it weights, gradients and the reference
  policy, which TRL loads as a second model, are float32 (`Run.load`), and autocast copies them to `model.dtype` for a
  pass. AdamW keeps two states a trainable parameter, in its dtype.
* The tower's output is looked up (features.py): its activations are not counted, and its weights are off a GPU unless
  whole models are saved (`Run.load`).
* RL runs a prompt once a group (grpo_trainer.py): a pass has `micro_prompts` x (prompt + `group_size` x completion) tokens, and
  sampling keeps `prompts_per_step` prompts' keys and values once and those of all completions. What is left to stock TRL (FSDP's and DeepSpeed's sampling, sliding windows) and SFT
  have rows of their own.
* What autograd keeps of a layer: `kept_activations`; tests count it on a small model. Gradient checkpointing keeps
  `hidden` values a token and layer, and one layer in full.
* TRL 1.16 never holds the logits of the vocabulary: its fused head works in tiles of 4,096 tokens x 32,768
  words. A trained embedding has its gradient in float32 there for a moment.
* On top come what CUDA and the encoder of BERTScore take, and a tenth of all that is not weights for fragmentation.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from ruamel.yaml import YAML
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from rarl.params import Params
from rarl.prompts import template
from rarl.records import read_json

GB = 1e9
PAPERS_BASE = "Qwen/Qwen2-VL-2B-Instruct"
BYTES = {"float32": 4, "bfloat16": 2}
#: Tile of TRL's fused head: tokens, words (`trl/kernels/chunked_logprob.py`, `trl/trainer/utils.py`).
TILE = (4096, 32768)
#: Float32 tiles that the same head holds besides where there is no Triton: a CPU.
TILES_ON_CPU = 5
#: Float32 tables over the vocabulary that the drawing of a token holds: logits, probabilities, noise, their ratio.
FLOAT_LOGITS = 4
#: Tokens of the question and of the chat template around the prompt; generous.
QUESTION_AND_TEMPLATE = 64
CHARACTERS_A_TOKEN = 4
#: GB: CUDA's context and libraries, BERTScore's small encoder; on a CPU the interpreter with its libraries.
FIXED = {"cuda": 1.0, "cpu": 0.7}
FRAGMENTATION = 0.1


@dataclass(frozen=True)
class Plan:
    """Memory of a run in GB.

    `resident` is there all the time; of `passes` one at a time is; `reserve` is for what cannot be counted.
    """

    rows: str
    resident: dict[str, float]
    passes: dict[str, float]
    reserve: float

    @property
    def total(self) -> float:
        return sum(self.resident.values()) + max(self.passes.values()) + self.reserve

    def table(self) -> str:
        top = max(self.passes, key=self.passes.get)
        lines = [f"  {name:<34}{value:7.2f}" for name, value in self.resident.items()]
        lines += [
            f"  {name:<34}{value:7.2f}{'  <- the most of the passes' if name == top else ''}"
            for name, value in self.passes.items()
        ]
        lines.append(f"  {'context, libraries, fragmentation':<34}{self.reserve:7.2f}")
        return "\n".join([f"  {self.rows}", *lines, f"  {'together':<34}{self.total:7.2f}"])


def parameter_counts(config: Qwen2VLConfig, lora_r: int, target_modules: list[str]) -> dict:
    """Parameters of the language model (tied embeddings once), of the tower, of an adapter and of what it adapts.

    No weights are made.
    """
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
    """What a forward pass runs: `groups` prompts with `size` completions each (`size` 1: rows of their own)."""

    groups: int
    size: int
    prompt: int
    completion: int
    shared: bool

    @property
    def tokens(self) -> int:
        return self.groups * (self.prompt + self.size * self.completion)

    @property
    def scored(self) -> int:
        return self.groups * self.size * self.completion

    @property
    def attended(self) -> int:
        """Tokens whose keys and values attention is given: a completion's and again those of its prompt."""
        return self.groups * self.size * (self.prompt + self.completion)


def layout(config: Qwen2VLConfig, groups: int, size: int, prompt: int, completion: int) -> Layout:
    """A pass of the policy or the reference: the fast trainer's, or stock TRL's where that takes over (`_unfit`)."""
    shared = size > 1 and set(config.text_config.layer_types) == {"full_attention"}
    return Layout(*((groups, size) if shared else (groups * size, 1)), prompt, completion, shared)


def kept_activations(config: Qwen2VLConfig, params: Params, rows: Layout) -> int:
    """Bytes that autograd keeps in one layer of the language model.

    Of a token 2 x intermediate (3 where it is trained) and 6 x hidden values in the compute dtype, queries and the
    attention's output among them; in trained layers casts, in bfloat16 more of them, and the products' inputs. Of an attended
    token keys and values, which the library repeats for all query heads and a shared prompt's layout does not; there
    the completions' queries are copies, too, and the mask is each layer's own.
    """
    text = config.text_config
    hidden, value = text.hidden_size, BYTES[params.model.dtype]
    full = params.train.trainable == "full"
    half = full and value < 4
    kept = rows.tokens * value * (2 + full) * text.intermediate_size
    kept += rows.tokens * hidden * (6 * value + 4 * full + 6 * half)
    keys = 2 * _key_width(config)
    if rows.shared:
        kept += value * (rows.attended * keys + rows.scored * hidden + rows.tokens * keys)
        seen = rows.groups * rows.completion * (rows.prompt + rows.completion)
        return kept + value * seen * 2 * hidden // keys
    if params.model.attention == "flash_attention_2":
        return kept + rows.attended * value * keys
    return kept + rows.attended * 2 * hidden * (value + half)


def _key_width(config: Qwen2VLConfig) -> int:
    text = config.text_config
    return text.num_key_value_heads * text.hidden_size // text.num_attention_heads


def estimate(
    config: Qwen2VLConfig, params: Params, image_pixels: int, method: str = "rarl", device: str = "cuda"
) -> Plan:
    """Plan the memory of one training run; the module's docstring says what is assumed.

    Args:
        config: of the base; nothing is loaded.
        image_pixels: height x width of the largest image after scaling.
        method: `sft`, `grpo` or `rarl`.
        device: `cuda` or `cpu`.
    """
    text, vision = config.text_config, config.vision_config
    full = params.train.trainable == "full"
    rl = method != "sft"
    value = BYTES[params.model.dtype]
    weight = 4 if full else value
    layers, hidden, inner = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    count = parameter_counts(config, params.lora.r, params.lora.target_modules)

    patches = math.ceil(image_pixels / vision.patch_size**2)
    image_tokens = math.ceil(patches / vision.spatial_merge_size**2)
    prompts = getattr(params, method).prompts if rl else ["reasoning"]
    prompt_text = max(len(template(name)) for name in prompts) // CHARACTERS_A_TOKEN
    prompt = image_tokens + prompt_text + QUESTION_AND_TEMPLATE
    completion = params.rl.max_completion_length
    processes = params.accelerate.processes
    share = max(1, params.rl.prompts_per_step // processes)
    if rl:
        groups, size = min(params.rl.micro_prompts, share), params.rl.group_size
    else:
        share, size = max(1, params.sft.batch_size // processes), 1
        groups = min(params.sft.micro_batch_size, share)
    rows = layout(config, groups, size, prompt, completion)

    kept = kept_activations(config, params, rows)
    running = value * (3 * inner + 4 * hidden)  # a token in a layer, without gradients
    backward = rows.tokens * value * 3 * inner
    if params.train.gradient_checkpointing is True:
        activations = rows.tokens * layers * weight * hidden + kept + backward
    else:
        activations = layers * kept + backward
    # Autocast's copies of float32 weights; the embedding is looked up and needs none.
    copies = (count["language model"] - text.vocab_size * hidden) * value if weight > value else 0

    scored = rows.scored if rl or device == "cuda" else rows.tokens
    if device == "cuda":
        tile = min(scored, TILE[0]) * TILE[1] * value
    else:  # what lies beyond the vocabulary is never touched
        words = min(TILE[1], text.vocab_size)
        tile = min(scored, TILE[0]) * words * (value + TILES_ON_CPU * 4)
    head = tile + scored * hidden * 4
    if full:
        head += text.vocab_size * hidden * (4 + value)

    def decoding(prompts: int, rows: int, new: int, value: int) -> float:
        """Bytes: keys and values of prompts and, twice for a moment, of completions; logits; copies of weights."""
        cache = 2 * _key_width(config) * layers * value
        bytes = (prompts * prompt + rows * new) * cache
        bytes += prompts * prompt * running + rows * text.vocab_size * (value + FLOAT_LOGITS * 4)
        if weight == 4 and device == "cpu":  # step.py's layout, at most
            bytes += 4 * count["language model"]
        return bytes

    sampled = share * size if rl else 0
    passes = {}
    if rl:
        alone = not rows.shared or _weights_are_shared(params)  # stock TRL: each row has its own prompt
        decoded = decoding(sampled if alone else share, sampled, completion, value)
        passes[f"sampling {sampled} completions"] = (decoded + copies) / GB
    asked = params.decoding.batch_size
    passes["scoring development rows"] = decoding(asked, asked, params.decoding.max_new_tokens, weight) / GB
    reference = rl and params.rl.beta > 0
    if reference:
        attending = rows.attended * value * 2 * hidden
        passes["reference pass"] = (rows.tokens * running + attending + copies + head) / GB
    passes["policy pass: forward, backward"] = (activations + copies + head) / GB

    trainable = count["language model"] if full else count["adapter"]
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2 * 4
    resident = {
        f"language model, {'float32' if full else params.model.dtype}": count["language model"] * weight / GB,
        "vision tower, frozen": count["tower"] * weight / GB if full or device == "cpu" else 0.0,
        # In float32: a gradient and AdamW's two states; an adapter's own weights besides.
        "gradients, optimizer" if full else "adapter, gradients, optimizer": trainable * 4 * (4 - full) / GB,
        # Once more while the rows are shuffled and grouped.
        "pictures of a step": 2 * max(sampled, groups) * patches * pixels / GB,
    }  # fmt: skip
    if reference and full:
        resident["reference policy"] = (count["language model"] + count["tower"]) * weight / GB
    each = f"{size} x " if rows.shared else ""
    return Plan(
        rows=f"a pass: {rows.groups} x ({image_tokens} image + {prompt - image_tokens} prompt + "
        f"{each}{completion} completion tokens)",
        resident=resident,
        passes=passes,
        reserve=FIXED[device] + FRAGMENTATION * max(passes.values()),
    )


def _weights_are_shared(params: Params) -> bool:
    """Among processes: then the fast trainer leaves sampling to stock TRL."""
    if params.accelerate.config is None:
        return False
    config = YAML(typ="safe").load(Path(params.accelerate.config).read_text(encoding="utf-8"))
    return config.get("distributed_type") in ("FSDP", "DEEPSPEED")


def relief(
    config: Qwen2VLConfig, params: Params, image_pixels: int, method: str, device: str, have: float
) -> list[tuple[str, float]]:
    """What to turn, in this order and together, until the run fits into `have` GB: (change, GB after it).

    First what leaves the mathematics as it is, then what changes it. The last entry may still be too much.
    """
    params = params.model_copy(deep=True)
    rl = method != "sft"
    micro = (params.rl, "micro_prompts") if rl else (params.sft, "micro_batch_size")
    knobs = [
        (*micro, 1),
        (params.train, "gradient_checkpointing", True),
        (params.decoding, "batch_size", max(1, params.decoding.batch_size // 4)),
        (params.model, "max_pixels", max(params.model.min_pixels, params.model.max_pixels // 2)),
        (params.rl, "max_completion_length", max(1, params.rl.max_completion_length // 2)),
    ]
    if rl:
        knobs.append((params.rl, "group_size", max(2, params.rl.group_size // 2)))
    blocks = {id(getattr(params, name)): name for name in ("rl", "sft", "train", "decoding", "model")}
    steps, last = [], estimate(config, params, image_pixels, method, device).total
    for block, key, new in knobs:
        if last <= have:
            break
        old = getattr(block, key)
        setattr(block, key, new)
        after = estimate(config, params, min(image_pixels, params.model.max_pixels), method, device)
        if after.total < last:
            steps.append((f"{blocks[id(block)]}.{key} {old} -> {new}".lower(), after.total))
            last = after.total
        else:
            setattr(block, key, old)
    return steps


def available(device: str) -> float:
    """GB that this process can have: free now, and what it holds already."""
    if device == "cuda":
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / GB
    import psutil

    return (psutil.virtual_memory().available + psutil.Process().memory_info().rss) / GB


def _found(folder: str | Path, params: Params) -> tuple[Qwen2VLConfig | None, str, float]:
    """The base's configuration (None where it cannot be reached, which loading says better), the device, its GB."""
    pointer = read_json(Path(folder) / "base.json")
    device = "cuda" if params.model.device != "cpu" and torch.cuda.is_available() else "cpu"
    return configuration(pointer["source"], pointer["revision"]), device, available(device)


def configuration(source: str, revision: str | None) -> Qwen2VLConfig | None:
    if source == PAPERS_BASE:
        return qwen2_vl_2b()
    try:
        return Qwen2VLConfig.from_pretrained(source, revision=revision)
    except OSError:
        return None


def qwen2_vl_2b() -> Qwen2VLConfig:
    """Sizes of the paper's base, so that a plan needs no hub."""
    text = dict(
        hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        intermediate_size=8960, vocab_size=151_936, tie_word_embeddings=True,
    )  # fmt: skip
    vision = dict(depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4)
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def recomputes(folder: str | Path, params: Params, method: str) -> bool:
    """Whether gradient checkpointing is on; `auto`: where the plan says that the run will not fit without it."""
    if params.train.gradient_checkpointing != "auto":
        return params.train.gradient_checkpointing
    config, device, have = _found(folder, params)
    return config is not None and estimate(config, params, params.model.max_pixels, method, device).total > have


def preflight(folder: str | Path, params: Params, method: str) -> str:
    """The plan of a run as a short table, and what to turn where it will not fit; nothing is loaded.

    Args:
        folder: the model folder that the training starts from, with `base.json`.

    Returns:
        the text; empty where the base's configuration cannot be reached.
    """
    config, device, have = _found(folder, params)
    if config is None:
        return ""
    params = params.model_copy(deep=True)
    params.train.gradient_checkpointing = recomputes(folder, params, method)
    plan = estimate(config, params, params.model.max_pixels, method, device)
    where = torch.cuda.get_device_name() if device == "cuda" else "memory of this machine"
    lines = [f"{method}: memory plan in GB (an estimate; {where}: {have:.1f} to be had)", plan.table()]
    if plan.total > have:
        steps = relief(config, params, params.model.max_pixels, method, device, have)
        turn = ", then ".join(f"{change} ({after:.1f} GB)" for change, after in steps)
        enough = bool(steps) and steps[-1][1] <= have
        lines.append(
            f"  WARNING: will not fit: turn {turn}" + ("" if enough else "; even then it will not")
            if steps
            else "  WARNING: will not fit, and no parameter helps: take a smaller base or a larger device"
        )
    return "\n".join(lines)
