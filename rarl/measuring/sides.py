"""The two sides that `rarl/measuring/speed.py` compares, stock libraries and this project, each in a process."""

import resource
import tempfile
import time
import timeit
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

PARTS = ("generation", "rewards", "reference", "policy", "other")
#: Vision and text sizes of a mid-sized Qwen2-VL.
MIDDLE = (
    dict(depth=6, embed_dim=320, num_heads=5, hidden_size=384),
    dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=7, num_attention_heads=6, num_key_value_heads=2)
    | dict(vocab_size=2048, rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12])),
)


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    what: str = "rl"  # or `sft` or `inference`
    model: str = "middle"  # or `embedded` or `qwen2_vl_2b`
    pixels: int = 336  # height and width of the images
    group: int = 8  # completions per prompt; for inference, questions per image
    tokens: int = 64  # maximum length of a completion
    prompts: int = 2  # prompts per step, each with its own image
    ends: float = 0.0  # added to the end token's logit in sampling, so that completions end early


def build(case: Case, ours: bool):
    """Build a case's model (the embedded base, or random weights) and processor; ours caches processed images."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from rarl.models.processor import ImageProcessor, load_processor
    from rarl.pretraining.tiny import build_config
    from rarl.rehearsal.bases import config_json, parse
    from rarl.rehearsal.project import with_tokens

    base = Path("data/base")
    processor = load_processor(base, None, case.pixels**2, case.pixels**2)
    images = (ImageProcessor if ours else Qwen2VLImageProcessorPil).from_pretrained(base)
    images.size = processor.image_processor.size
    processor.image_processor = images
    if case.model == "embedded":
        return Qwen2VLForConditionalGeneration.from_pretrained(base), processor
    if case.model == "middle":
        vision, text = MIDDLE
        config = build_config(processor.tokenizer).to_dict()  # for its special token ids
        config["text_config"].pop("layer_types")
        config["vision_config"] |= vision
        config["text_config"] |= text
        config = Qwen2VLConfig(**config)
    else:
        config = parse(with_tokens(config_json(case.model), processor.tokenizer.backend_tokenizer))
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return Qwen2VLForConditionalGeneration(config).to(dtype), processor


def make_rows(case: Case, steps: int) -> list[dict]:
    """Generate synthetic images with one question each."""
    import numpy as np

    from rarl.phantom import general
    from rarl.training.data import user_message

    rng, prompt = np.random.default_rng(0), user_message("reasoning", "Is there a bright spot in this image?")
    rows = []
    for _ in range(steps * case.prompts):
        scene = general.draw_grey(rng)
        image = scene.image.convert("RGB").resize((case.pixels, case.pixels))
        bright = any(thing.colour == "bright" for thing in scene.things)
        answers, article = (["Yes"], "a") if bright else (["No"], "no")
        row = {"prompt": prompt, "image": image, "answers": answers, "kind": "yes_no", "choices": []}
        rows.append(row | {"reasoning": f"There is {article} bright spot."})
    return rows


def prepared(case: Case, ours: bool, steps: int):
    """Return (model on its device, processor, rows, seconds of encoding all images) of one side."""
    import torch

    from rarl.models.features import FeatureStore, offload
    from rarl.models.loading import keep_freed_memory

    if ours:
        keep_freed_memory()
    torch.manual_seed(0)
    model, processor = build(case, ours)
    model.model.visual.requires_grad_(False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows, start, encoding = make_rows(case, steps), time.perf_counter(), 0.0
    if ours:
        FeatureStore().attach(model)
        for row in rows:
            inputs = processor.image_processor([row["image"]], return_tensors="pt").to(model.device)
            model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        encoding = time.perf_counter() - start
        offload(model)
    if case.ends:
        bias = torch.zeros(model.config.text_config.vocab_size, device=model.device)
        bias[processor.tokenizer.eos_token_id] = case.ends
        model.get_output_embeddings().register_forward_hook(lambda m, a, logits: logits + bias)
    return model, processor, rows, encoding


def make_trainer(case: Case, ours: bool, steps: int, folder: str):
    """Return (trainer of one side with the settings of `rarl/training`, seconds of encoding all images)."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig

    model, processor, rows, encoding = prepared(case, ours, steps)
    images = [row.pop("image") for row in rows]
    cuda = torch.cuda.is_available()
    common = dict(output_dir=folder, seed=0, max_steps=steps, learning_rate=1e-5, activation_checkpointing=False)
    common |= dict(report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True)
    common |= dict(use_cpu=not cuda, bf16=cuda, dataloader_pin_memory=cuda, remove_unused_columns=False)
    if case.what == "sft":
        make, rows = _sft_trainer(case, ours, rows, common)
        column, images = "images", [[image] for image in images]
    else:
        make, column = _rl_trainer(case, ours, processor, common), "image"
    dataset = Dataset.from_list([{**row, "index": index} for index, row in enumerate(rows)])
    dataset = dataset.with_transform(lambda batch: {**batch, column: [images[index] for index in batch["index"]]})
    modules = dict(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], exclude_modules=r".*visual.*")
    lora = LoraConfig(r=8, lora_alpha=16, **modules, task_type="CAUSAL_LM")
    return make(model=model, processing_class=processor, train_dataset=dataset, peft_config=lora), encoding


def _sft_trainer(case: Case, ours: bool, rows: list[dict], common: dict):
    from trl import SFTConfig, SFTTrainer

    from rarl.training.data import target
    from rarl.training.sft import Trainer

    completions = [[{"role": "assistant", "content": target(SimpleNamespace(**row))}] for row in rows]
    rows = [{"prompt": row["prompt"], "completion": text} for row, text in zip(rows, completions)]
    batch = dict(per_device_train_batch_size=case.prompts, max_length=None, completion_only_loss=True)
    data = dict(train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True})
    return partial(Trainer if ours else SFTTrainer, args=SFTConfig(**common, **batch, **data)), rows


def _rl_trainer(case: Case, ours: bool, processor, common: dict):
    from trl import GRPOConfig, GRPOTrainer

    from rarl.models.generation import vision_tokens
    from rarl.params import Encoder, Rewards
    from rarl.rewards import reward_functions
    from rarl.rewards.bertscore import BertScorer
    from rarl.training.rl import Trainer

    encoder, rewards = Encoder(), Rewards(format=1, length=1, accuracy=1, reasoning=1)
    functions, weights = reward_functions(rewards, lambda: BertScorer(encoder.source, encoder.num_layers))
    batch = dict(per_device_train_batch_size=case.prompts * case.group, num_generations=case.group, num_iterations=1)
    loss = dict(loss_type="grpo", scale_rewards="group", beta=0.04, epsilon=0.2, use_bias_correction_kl=False)
    sampling = dict(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=case.tokens)
    sampling |= dict(generation_kwargs={"suppress_tokens": vision_tokens(processor)})
    arguments = GRPOConfig(**common, **batch, **loss, **sampling, reward_weights=weights, shuffle_dataset=False)
    return partial(Trainer if ours else GRPOTrainer, args=arguments, reward_funcs=functions)


def lower_bound(parameters: int, prompt: int, completions: list[list[int]]) -> dict[str, float]:
    """Bound our step from below: seconds of its matrix products, by part, at the rates measured here.

    parameters: of the language model. prompt: tokens of the distinct prompts. completions: sampled token ids.
    """
    import torch

    device, dtype, size = ("cuda", torch.bfloat16, 8192) if torch.cuda.is_available() else ("cpu", torch.float32, 1024)
    weights = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(16)]

    def best(other) -> float:
        def products():
            for weight in weights:
                weight @ other

        return min(timeit.repeat(products, timer=synchronized_time, number=1, repeat=5)) / len(weights)

    flops = 2 * size**3 / best(weights[0])
    values_per_second = size**2 / best(weights[0][0])
    forward = 2 * parameters * (prompt + sum(map(len, completions))) / flops
    generation = 2 * parameters * prompt / flops
    for step in range(max(map(len, completions)) - 1):
        rows = sum(len(ids) > step + 1 for ids in completions)
        generation += max(parameters / values_per_second, 2 * parameters * rows / flops)
    return {"generation": generation, "reference": forward, "policy": 2 * forward}


def synchronized_time() -> float:
    """Wait for the GPU, if there is one, and read the clock."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepClock:
    """Start each step on the parent's signal, and send back what the step took."""

    def __init__(self, pipe):
        self.pipe = pipe

    def begin(self) -> None:
        """Wait for the parent's signal and start the clock."""
        self.pipe.send("ready")
        self.pipe.recv()
        self.start, self.busy = synchronized_time(), time.process_time()

    def end(self, **more) -> None:
        """Send wall-clock and processor seconds of the step to the parent, and `more`."""
        taken = {"step": synchronized_time() - self.start, "processor": time.process_time() - self.busy}
        self.pipe.send(taken | more)


def run_side(case: Case, ours: bool, steps: int, threads: int, pipe) -> None:
    """Run one side in this process: its steps, then a summary."""
    import torch
    from transformers import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        run = {"rl": train_rl, "sft": train_sft, "inference": infer}[case.what]
        summary = run(case, ours, steps, folder, StepClock(pipe))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux: KB
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
    pipe.send({"floor": None, "peak_gb": peak} | summary)


def infer(case: Case, ours: bool, steps: int, folder: str, clock: StepClock) -> dict:
    """Answer `group` questions about each of `prompts` images per step."""
    from rarl.models.generation import Request, ask
    from rarl.models.loading import Loaded
    from rarl.prompts import render

    model, processor, rows, encoding = prepared(case, ours, steps)
    model.requires_grad_(False).eval()
    loaded = Loaded(model, processor, model.device, "sdpa", shared=not ours)
    words = ("bright", "dark", "small", "large", "round", "long", "grey", "white")[: case.group]
    questions = [f"Is there a {word} spot in this image?" for word in words]
    requests = []
    for index, row in enumerate(rows):
        row["image"].save(path := Path(folder) / f"{index}.png")
        requests += [Request(f"{index} {q}", render("reasoning", q), path) for q in questions]
    size = case.prompts * case.group
    for step in range(steps):
        clock.begin()
        found = ask(loaded, requests[step * size : (step + 1) * size], case.tokens, 1.0)
        mean_length = sum(completion.tokens for completion in found) / len(found)
        clock.end(tokens=str([(completion.id, completion.text) for completion in found]), mean_length=mean_length)
    return {"encode_s_an_image": encoding / len(rows)}


def train(trainer, begin, end) -> None:
    """Train, and call `begin` before and `end` after each step."""
    from transformers import PrinterCallback, TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            begin()

        def on_step_end(self, *args, **kwargs):
            end()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Steps())
    trainer.train()


def train_sft(case: Case, ours: bool, steps: int, folder: str, clock: StepClock) -> dict:
    """Train by SFT; the losses, which should be equal on both sides, are compared instead of tokens."""
    trainer, encoding = make_trainer(case, ours, steps, folder)
    losses, compute = [], trainer.compute_loss

    def compute_loss(*args, **kwargs):
        result = compute(*args, **kwargs)
        losses.append(round(float((result[0] if isinstance(result, tuple) else result).detach()), 3))
        return result

    trainer.compute_loss = compute_loss
    train(trainer, clock.begin, lambda: clock.end(tokens=str(losses), mean_length=0.0))
    return {"encode_s_an_image": encoding / (steps * case.prompts)}


def train_rl(case: Case, ours: bool, steps: int, folder: str, clock: StepClock) -> dict:
    """Train by GRPO, and time each part of a step."""
    import torch

    trainer, encoding = make_trainer(case, ours, steps, folder)
    spent = dict.fromkeys((*PARTS, "inputs", "pass"), 0.0)
    sampled, last = [], {}

    def time_method(method: str, part: str, only=lambda: True):
        inner = getattr(trainer, method)

        def timed(*args, **kwargs):
            start = synchronized_time()
            result = inner(*args, **kwargs)
            if only():
                spent[part] += synchronized_time() - start
            if part == "generation":
                sampled.extend(result[0])
                last["prompt"] = sum(map(len, set(map(tuple, args[0]))))
            return result

        setattr(trainer, method, timed)

    def begin():
        clock.begin()
        spent.update(dict.fromkeys(spent, 0.0))
        sampled.clear()

    def end():
        spent["policy"] = spent["pass"] - spent["inputs"]
        spent["other"] = synchronized_time() - clock.start - sum(spent[part] for part in PARTS if part != "other")
        last["completions"] = list(sampled)
        parts = {part: spent[part] for part in PARTS}
        clock.end(**parts, tokens=str(sampled), mean_length=sum(map(len, sampled)) / len(sampled))

    time_method("_generate_single_turn", "generation")
    time_method("_calculate_rewards", "rewards")
    time_method("_get_per_token_logps_and_entropies", "reference", only=lambda: not torch.is_grad_enabled())
    time_method("_prepare_inputs", "inputs")
    time_method("training_step", "pass")
    train(trainer, begin, end)
    count = sum(p.numel() for n, p in trainer.model.named_parameters() if "lora_" not in n and "visual" not in n)
    return {
        "encode_s_an_image": encoding / (steps * case.prompts),
        "language_parameters": count,
        "floor": lower_bound(count, **last) if ours else None,
    }
