"""How much memory a training run will need, from the model's configuration and the parameters, before it starts.

An estimate, not a measurement. What it assumes:

* What is counted is one process's share (`accelerate.processes`, DDP: each holds a whole model).
* Rows are as long as they can get: the largest image that `model.max_pixels` lets through, the longest training
  prompt, `rl.max_completion_length` tokens (for SFT's targets too).
* Weights lie in `model.dtype`, adapters in float32 (PEFT); AdamW keeps two states a trainable parameter, in its dtype.
* The tower's weights are on the device; its activations are not counted, as its output is looked up (features.py).
* Per token and layer autograd keeps, of a frozen layer under LoRA, 3 x intermediate + 8 x hidden values in the
  compute dtype and 2 x hidden in float32 (the norms), and a row of the attention mask; of a trained layer one
  `intermediate` more. Running the real sizes on PyTorch's fake tensors under autocast gives 25.19 GB for the policy
  pass of the paper profile (its head apart), this formula 25.15; a test counts on a small model.
  Gradient checkpointing keeps `hidden` values a token and layer, and one layer in full.
* TRL 1.16 never holds the logits of the vocabulary: its fused head works in tiles of 4,096 tokens x 32,768
  words. A trained embedding has its gradient in float32 there for a moment.
* TRL samples all completions of an optimizer step at once (`prompts_per_step` x `group_size` rows), and takes
  the log-probabilities `micro_prompts` x `group_size` rows at a time.
* Without LoRA and with beta > 0, TRL loads the reference policy as a second model. With LoRA it switches the adapter off.
* On top come what CUDA and the encoder of BERTScore take, and a tenth of all that is not weights for fragmentation.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from stages.params import Params
from stages.prompts import template
from stages.records import read_json

GB = 1e9
BYTES = {"float32": 4, "bfloat16": 2}
#: Tile of TRL's fused head: tokens, words (`trl/kernels/chunked_logprob.py`, `trl/trainer/utils.py`).
TILE = (4096, 32768)
#: Float32 tiles that the same head holds besides where there is no Triton: a CPU.
TILES_ON_CPU = 5
#: Tokens of the question and of the chat template around the prompt; generous.
QUESTION_AND_TEMPLATE = 64
CHARACTERS_A_TOKEN = 4
#: GB: CUDA's context and libraries, BERTScore's small encoder; on a CPU the interpreter with its libraries.
FIXED = {"cuda": 1.0, "cpu": 0.8}
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
    """Parameters of the language model (tied embeddings once), of the tower and of an adapter; no weights are made."""
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


def kept_activations(config: Qwen2VLConfig, params: Params, length: int) -> int:
    """Bytes that autograd keeps of one token in one layer of the language model, in rows of `length` tokens."""
    hidden, inner = config.text_config.hidden_size, config.text_config.intermediate_size
    value = BYTES[params.model.dtype]
    wide = 4 if params.train.trainable == "full" else 3
    mask = 0 if params.model.attention == "flash_attention_2" else value * length
    return value * (wide * inner + 8 * hidden) + 4 * 2 * hidden + mask


def estimate(
    config: Qwen2VLConfig,
    params: Params,
    image_pixels: int,
    method: str = "rarl",
    device: str = "cuda",
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
    rows = min(params.rl.micro_prompts, share) * params.rl.group_size
    if not rl:
        rows = min(params.sft.micro_batch_size, max(1, params.sft.batch_size // processes))
    length = prompt + completion
    tokens = rows * length

    per_layer = kept_activations(config, params, length)
    running = value * (3 * inner + 4 * hidden)  # of a layer, without gradients
    backward = value * 3 * inner
    if params.train.gradient_checkpointing:
        activations = tokens * (layers * value * hidden + per_layer + backward)
    else:
        activations = tokens * (layers * per_layer + backward)

    scored = rows * (completion if device == "cuda" else length)
    if device == "cuda":
        tile = min(scored, TILE[0]) * TILE[1] * value
    else:  # what lies beyond the vocabulary is never touched
        words = min(TILE[1], text.vocab_size)
        tile = min(scored, TILE[0]) * words * (value + TILES_ON_CPU * 4)
    head = tile + scored * hidden * 4
    if full:
        head += text.vocab_size * hidden * (4 + value)

    def decoding(count: int, new: int) -> float:
        heads = text.num_key_value_heads * (hidden // text.num_attention_heads)
        cache = count * (prompt + new) * 2 * heads * value * (layers + 1)
        return (cache + count * prompt * running) / GB

    sampled = share * params.rl.group_size if rl else 0
    passes = {}
    if rl:
        passes[f"sampling {sampled} completions"] = decoding(sampled, completion)
    passes["scoring development rows"] = decoding(
        params.decoding.batch_size, params.decoding.max_new_tokens
    )
    reference = rl and params.rl.beta > 0
    if reference:
        passes["reference pass"] = (tokens * running + head) / GB
        if full:  # its tower has no features to look up
            looked = value * (2 * vision.mlp_ratio + 4) * vision.embed_dim
            passes["reference pass"] += rows * patches * looked / GB
    passes["policy pass: forward, backward"] = (activations + head) / GB

    trainable = count["language model"] if full else count["adapter"]
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2 * 4
    resident = {
        f"language model, {params.model.dtype}": count["language model"] * value / GB,
        "vision tower, frozen": count["tower"] * value / GB,
        # AdamW: a gradient and two states; an adapter's own weights besides.
        "gradients, optimizer" if full else "adapter, gradients, optimizer": trainable
        * (3 * value if full else 4 * 4)
        / GB,
        "pictures of a step": max(sampled, rows) * patches * pixels / GB,
    }
    if reference and full:
        resident["reference policy"] = (count["language model"] + count["tower"]) * value / GB
    return Plan(
        rows=f"{rows} rows a pass of {image_tokens} image + {prompt - image_tokens} prompt + {completion} completion tokens",
        resident=resident,
        passes=passes,
        reserve=FIXED[device] + FRAGMENTATION * max(passes.values()),
    )


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
        (params.model, "max_pixels", max(params.model.min_pixels, params.model.max_pixels // 2)),
        (params.rl, "max_completion_length", max(1, params.rl.max_completion_length // 2)),
    ]
    if rl:
        knobs.append((params.rl, "group_size", max(2, params.rl.group_size // 2)))
    blocks = {id(params.rl): "rl", id(params.sft): "sft", id(params.train): "train"}
    steps, last = [], estimate(config, params, image_pixels, method, device).total
    for block, key, new in knobs:
        if last <= have:
            break
        old = getattr(block, key)
        setattr(block, key, new)
        after = estimate(config, params, min(image_pixels, params.model.max_pixels), method, device)
        if after.total < last:
            name = f"{blocks.get(id(block), 'model')}.{key}"
            steps.append((f"{name} {str(old).lower()} -> {str(new).lower()}", after.total))
            last = after.total
    return steps


def available(device: str) -> float:
    """GB that this process can have: free now, and what it holds already."""
    if device == "cuda":
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / GB
    import psutil

    return (psutil.virtual_memory().available + psutil.Process().memory_info().rss) / GB


def preflight(folder: str | Path, params: Params, method: str) -> str:
    """The plan of a run as a short table, and what to turn where it will not fit; nothing is loaded.

    Args:
        folder: the model folder that the training starts from, with `base.json`.

    Returns:
        the text; empty where the base's configuration cannot be reached, which loading says better.
    """
    pointer = read_json(Path(folder) / "base.json")
    try:
        config = Qwen2VLConfig.from_pretrained(pointer["source"], revision=pointer["revision"])
    except OSError:
        return ""
    cuda = params.model.device != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    have = available(device)
    plan = estimate(config, params, params.model.max_pixels, method, device)
    where = torch.cuda.get_device_name() if cuda else "memory of this machine"
    lines = [
        f"{method}: memory plan in GB (an estimate; {where}: {have:.1f} to be had)",
        plan.table(),
    ]
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
