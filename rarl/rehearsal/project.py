"""A project folder around a base with random weights: parameters, tokenizer and a few phantoms."""

import copy
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML
from tokenizers import Tokenizer

from rarl.models.base_files import EMBEDDED
from rarl.params import Params
from rarl.phantom import medical
from rarl.phantom.questions import abnormality_questions, reasoning
from rarl.phantom.releases import save_image
from rarl.records import Sample, write_json, write_records
from rarl.registry import METHODS

#: Special tokens by their names in a configuration.
TOKENS = {
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "pad_token_id": "<|endoftext|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def rehearsal_params(params: Params, pixels: int, prompts: int, group: int, tokens: int) -> Params:
    """The parameters of one step of each training and one batch of each inference.

    What is trained, and how, stays as in `params`; sizes of batches, images and completions are the arguments.
    """
    params = params.model_copy(deep=True)
    params.base.source, params.base.revision = "base", None
    model = params.model
    model.dtype, model.portable, model.threads = "bfloat16", False, len(os.sched_getaffinity(0))
    model.min_pixels, model.max_pixels = min(model.min_pixels, pixels), pixels
    params.data.root = "data"
    train, sft, rl = params.train, params.sft, params.rl
    train.samples, train.start, train.dev_samples, train.eval_steps = None, "base", 1, 1
    sft.epochs, sft.batch_size, sft.micro_batch_size = 1, prompts, prompts
    sft.warmup_ratio = rl.warmup_ratio = 0.0  # a first step of a warm-up has a learning rate of 0
    rl.max_steps, rl.prompts_per_step, rl.micro_prompts = 1, prompts, prompts
    rl.group_size, rl.max_completion_length = group, tokens
    rl.num_iterations, rl.mask_truncated = 1, False  # random completions are all truncated
    params.decoding.max_new_tokens, params.decoding.batch_size = tokens, prompts
    params.benchmarks, params.modes = [], params.modes[:1]
    params.models, params.rival = ["base", *METHODS], {}
    params.accelerate.processes, params.accelerate.config = 1, None
    return params


def write_project(folder: Path, params: Params, config: dict) -> None:
    """Write parameters, tokenizer, a development row, and as many training and test rows as a step has prompts.

    Tokenizer and chat template are the embedded base's. Its ids are below those of the real vocabulary, whose size
    the embedding keeps; `config`, the content of the base's `config.json`, gets its special tokens.
    """
    base = folder / "base"
    base.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(EMBEDDED / name, base / name)
    write_json(base / "config.json", with_tokens(config, Tokenizer.from_file(str(base / "tokenizer.json"))))
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    write_json(folder / "data/models/base/base.json", {"source": "base", "revision": None, "sha256": None})
    rows = params.rl.prompts_per_step
    for split, count in (("train", rows), ("dev", 1), ("test", rows)):
        samples = [_sample(folder, split, number, params.model.max_pixels) for number in range(count)]
        write_records(folder / f"data/curated/{split}.jsonl", samples)


def with_tokens(config: dict, tokenizer: Tokenizer) -> dict:
    """A `config.json` of a Qwen with the special tokens of the embedded base's tokenizer."""
    ids = {name: tokenizer.token_to_id(token) for name, token in TOKENS.items()}
    config = copy.deepcopy(config) | ids
    if "text_config" in config:
        config["text_config"] |= {name: ids[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return config


def _sample(folder: Path, split: str, number: int, pixels: int) -> Sample:
    """A question about an abnormal chest phantom of the largest size that the parameters permit."""
    rng = np.random.default_rng([number, len(split)])
    side = int(pixels**0.5)
    scene = medical.draw(rng, "xray", medical.choose_findings(rng, "xray"), medical.Style(side, side))
    (asked,) = abnormality_questions(rng, scene, 1)
    image = f"images/{split}{number}.png"
    return Sample(
        id=f"rehearsal/{split}/{number}",
        dataset="rehearsal",
        split=split,
        image=image,
        image_sha256=save_image(folder / "data" / image, Image.fromarray(scene.pixels).convert("RGB")),
        question=asked.text,
        answers=[asked.answer],
        reasoning=reasoning(rng, scene, asked),
        kind="yes_no" if "yes" in asked.expect else "open",
        modality="xray",
    )
