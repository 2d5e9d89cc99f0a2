"""Stock TRL and `generate` against this project: `rarl bench`, or `make bench`.

Three things are timed: an RL step, a step of SFT, and inference (a batch of questions, several about each image). Both
sides train the same model on the same rows from the same seed, each in a process of its own, and take turns step by
step, so that whatever else the machine does meets both. Stock is TRL's `GRPOTrainer` untouched, with the stock image
processor and the tower run as TRL runs it; in inference, the library's `generate` on the padded batch. Ours reads the
frozen tower's output, which the `encode` stage has made (its time is given apart), and lets the C library keep freed
memory, as the stages do. Times are medians of the steps after the first, in seconds; nothing is extrapolated. The
processor's own time stands beside the clock's: it does not count what other programs took in between.

On a CPU the models are the embedded base and a mid-sized one at random weights; on a GPU, Qwen2-VL-2B's
configuration at random weights in bfloat16. Results: `metrics/bench/steps.json`, and the tables in `steps.md`.

The floor is what the matrix products of our step cost at the rates measured in the same process: the language model
once over each prompt and completion token (twice that again for the gradient of its input), and in decoding all of
its weights read once a token, or multiplied, whichever takes longer. Attention and everything else is left out of it.
"""

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import click

from rarl.records import write_json

OUTPUT = Path("metrics/bench")
PARTS = ("generation", "rewards", "reference", "policy", "other")


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    what: str = "rl"
    """`rl`, `sft` or `inference`."""
    model: str = "middle"
    """`middle`, `embedded` or `qwen2_vl_2b`."""
    pixels: int = 336
    """Height and width of the images."""
    group: int = 8
    """Completions a prompt; in inference, questions about an image."""
    tokens: int = 64
    """Longest completion."""
    prompts: int = 2
    """Prompts, each with an image of its own, a step."""
    ends: float = 0.0
    """Added to the end token's logit in sampling, so that completions end early."""


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


def build(case: Case, store: bool):
    """The model and processor of a case: the embedded base, or a Qwen2-VL at random weights.

    Args:
        store: with this project's image processor, which keeps what it has processed; else the stock one.
    """
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from rarl.models.processor import ImageProcessor, load_processor
    from rarl.pretraining.tiny import build_config

    base = Path("data/base")
    processor = load_processor(base, None, case.pixels**2, case.pixels**2)
    images = (ImageProcessor if store else Qwen2VLImageProcessorPil).from_pretrained(base)
    images.size = processor.image_processor.size
    processor.image_processor = images
    if case.model == "embedded":
        return Qwen2VLForConditionalGeneration.from_pretrained(base), processor
    sizes = {
        "middle": (
            {"depth": 6, "embed_dim": 320, "num_heads": 5, "hidden_size": 384},
            {
                "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 7, "num_attention_heads": 6,
                "num_key_value_heads": 2, "vocab_size": 2048,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            },
        ),
        "qwen2_vl_2b": (
            {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536},
            {
                "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
                "num_key_value_heads": 2, "vocab_size": 151936,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
        ),
    }  # fmt: skip
    small = build_config(processor.tokenizer).to_dict()  # the token numbers
    small["text_config"].pop("layer_types")
    vision, text = sizes[case.model]
    config = Qwen2VLConfig(
        **small | {"vision_config": small["vision_config"] | vision, "text_config": small["text_config"] | text}
    )
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return Qwen2VLForConditionalGeneration(config).to(dtype), processor


def rows_of(case: Case, steps: int) -> list[dict]:
    """Drawn pictures with a question each."""
    import numpy as np

    from rarl.phantom import general
    from rarl.training.data import user_message

    rng = np.random.default_rng(0)
    rows = []
    for _ in range(steps * case.prompts):
        scene = general.draw_grey(rng)
        bright = any(thing.colour == "bright" for thing in scene.things)
        rows.append(
            {
                "prompt": user_message("reasoning", "Is there a bright spot in this image?"),
                "image": scene.image.convert("RGB").resize((case.pixels, case.pixels)),
                "answers": ["Yes" if bright else "No"],
                "kind": "yes_no",
                "choices": [],
                "reasoning": "There is a bright spot." if bright else "There is no bright spot.",
            }
        )
    return rows


def prepared(case: Case, fast: bool, steps: int):
    """(model on its device, processor, rows, seconds of encoding) of one side."""
    import torch

    from rarl.models.features import FeatureStore, offload
    from rarl.models.loading import keep_freed_memory

    if fast:
        keep_freed_memory()
    torch.manual_seed(0)
    model, processor = build(case, store=fast)
    model.model.visual.requires_grad_(False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows, start = rows_of(case, steps), time.perf_counter()
    if fast:
        FeatureStore().attach(model)
        for row in rows:
            inputs = processor.image_processor([row["image"]], return_tensors="pt").to(model.device)
            model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    encoding = time.perf_counter() - start if fast else 0.0
    if fast:
        offload(model)
    if case.ends:
        likely = torch.zeros(model.config.text_config.vocab_size, device=model.device)
        likely[processor.tokenizer.eos_token_id] = case.ends
        model.get_output_embeddings().register_forward_hook(lambda m, a, logits: logits + likely)
    return model, processor, rows, encoding


def make_trainer(case: Case, fast: bool, steps: int, folder: str):
    """The trainer of one side, with the settings of `rarl/training`, and the seconds of encoding."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    from rarl.models.generation import vision_tokens
    from rarl.params import Encoder, Rewards
    from rarl.rewards import reward_functions
    from rarl.rewards.bertscore import BertScorer
    from rarl.training.data import target
    from rarl.training.grpo_trainer import SharedPrefixMixin
    from rarl.training.sft import CompletionsOnlyMixin

    class Fast(SharedPrefixMixin, GRPOTrainer):
        pass

    class FastSft(CompletionsOnlyMixin, SFTTrainer):
        pass

    cuda = torch.cuda.is_available()
    model, processor, rows, encoding = prepared(case, fast, steps)
    common = {
        "output_dir": folder, "seed": 0, "report_to": "none", "logging_steps": 1, "save_strategy": "no", "max_steps": steps,
        "use_cpu": not cuda, "bf16": cuda, "activation_checkpointing": False, "disable_tqdm": True,
        "remove_unused_columns": False, "dataloader_pin_memory": cuda, "learning_rate": 1e-5,
    }  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
                      exclude_modules=r".*visual.*", task_type="CAUSAL_LM")  # fmt: skip
    images = [row.pop("image") for row in rows]
    if case.what == "sft":
        completions = [target(SimpleNamespace(**row)) for row in rows]
        rows = [
            {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": text}]}
            for row, text in zip(rows, completions)
        ]
        arguments = SFTConfig(
            **common, per_device_train_batch_size=case.prompts, completion_only_loss=True, max_length=None,
            train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        kind, more, shown = (FastSft if fast else SFTTrainer, {}, lambda i: {"images": [images[i]]})
    else:
        encoder = Encoder()
        functions, weights = reward_functions(
            Rewards(format=1, length=1, accuracy=1, reasoning=1),
            lambda: BertScorer(encoder.source, encoder.num_layers),
        )
        arguments = GRPOConfig(
            **common, per_device_train_batch_size=case.prompts * case.group, num_generations=case.group,
            use_bias_correction_kl=False, loss_type="grpo", scale_rewards="group", beta=0.04, epsilon=0.2,
            num_iterations=1, temperature=1.0, top_p=1.0, top_k=0, max_completion_length=case.tokens,
            generation_kwargs={"suppress_tokens": vision_tokens(processor)}, reward_weights=weights, shuffle_dataset=False,
        )  # fmt: skip
        kind, more, shown = (
            Fast if fast else GRPOTrainer,
            {"reward_funcs": functions},
            lambda i: {"image": images[i]},
        )

    def with_image(batch: dict) -> dict:
        pictures = [shown(index) for index in batch["index"]]
        return {**batch, **{key: [one[key] for one in pictures] for key in pictures[0]}}

    dataset = Dataset.from_list([{**row, "index": index} for index, row in enumerate(rows)])
    trainer = kind(
        model=model, args=arguments, processing_class=processor, train_dataset=dataset.with_transform(with_image),
        peft_config=lora, **more,
    )  # fmt: skip
    return trainer, encoding


def floor(parameters: int, prompt: int, completions: list[list[int]]) -> dict:
    """Seconds that our step's matrix products cannot go below, by part.

    Args:
        parameters: of the language model.
        prompt: tokens of the distinct prompts.
        completions: sampled token ids.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = 8192 if device == "cuda" else 1024
    weights = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(16)]

    def best(other) -> float:
        """Seconds of one product, of the fastest of some rounds."""
        rounds = []
        for _ in range(5):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for weight in weights:
                weight @ other
            if device == "cuda":
                torch.cuda.synchronize()
            rounds.append((time.perf_counter() - start) / len(weights))
        return min(rounds)

    flops = 2 * size**3 / best(weights[0])
    values = size**2 / best(weights[0][0])  # weights read a second
    tokens = prompt + sum(map(len, completions))
    forward = 2 * parameters * tokens / flops
    generation = 2 * parameters * prompt / flops
    for step in range(max(map(len, completions)) - 1):
        rows = sum(len(ids) > step + 1 for ids in completions)
        generation += max(parameters / values, 2 * parameters * rows / flops)
    return {"generation": generation, "reference": forward, "policy": 2 * forward}


def now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Turns:
    """One side's clock: it starts a step when it is told to, and sends back what the step took."""

    def __init__(self, pipe):
        self.pipe = pipe

    def begin(self) -> None:
        self.pipe.send("ready")
        self.pipe.recv()
        self.start, self.busy = now(), time.process_time()

    def end(self, **more) -> None:
        taken = {"step": now() - self.start, "processor": time.process_time() - self.busy}
        self.pipe.send(taken | more)


def side(case: Case, fast: bool, steps: int, threads: int, pipe) -> None:
    """One side's process: its steps in turn, then what is true of them all."""
    import torch
    from transformers import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        ask = {"rl": train_rl, "sft": train_sft, "inference": infer}[case.what]
        ended = ask(case, fast, steps, folder, Turns(pipe))
    peak = (
        torch.cuda.max_memory_allocated() / 1e9
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux: KB
    )
    pipe.send({"floor": None, "peak_gb": peak} | ended)


def infer(case: Case, fast: bool, steps: int, folder: str, turns: Turns) -> dict:
    """A step is a batch of `group` questions about each of `prompts` images."""
    from rarl.models.generation import Request, ask
    from rarl.models.loading import Loaded
    from rarl.prompts import render

    model, processor, rows, encoding = prepared(case, fast, steps)
    model.requires_grad_(False).eval()
    loaded = Loaded(model, processor, model.device, "sdpa", shared=not fast)
    requests = []
    for index, row in enumerate(rows):
        row["image"].save(path := Path(folder) / f"{index}.png")
        words = ("bright", "dark", "small", "large", "round", "long", "grey", "white")[: case.group]
        questions = [f"Is there a {word} spot in this image?" for word in words]
        requests += [Request(f"{index} {q}", render("reasoning", q), path) for q in questions]
    size = case.prompts * case.group
    for step in range(steps):
        turns.begin()
        replies = ask(loaded, requests[step * size : (step + 1) * size], case.tokens, 1.0)
        lengths = [reply.tokens for reply in replies]
        turns.end(tokens=str([(reply.id, reply.text) for reply in replies]), mean_length=sum(lengths) / len(lengths))
    return {"encode_s_an_image": encoding / len(rows)}


def train(trainer, begin, end) -> None:
    from transformers import PrinterCallback, TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            begin()

        def on_step_end(self, args, state, control, **kwargs):
            end()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Steps())
    trainer.train()


def train_sft(case: Case, fast: bool, steps: int, folder: str, turns: Turns) -> dict:
    trainer, encoding = make_trainer(case, fast, steps, folder)
    losses, compute = [], trainer.compute_loss

    def compute_loss(*args, **kwargs):
        result = compute(*args, **kwargs)
        losses.append(round(float((result[0] if isinstance(result, tuple) else result).detach()), 3))
        return result

    trainer.compute_loss = compute_loss
    train(trainer, turns.begin, lambda: turns.end(tokens=str(losses), mean_length=0.0))
    return {"encode_s_an_image": encoding / (steps * case.prompts)}


def train_rl(case: Case, fast: bool, steps: int, folder: str, turns: Turns) -> dict:
    import torch

    spent = dict.fromkeys((*PARTS, "inputs", "pass"), 0.0)
    sampled, last = [], {}

    def clock(trainer, method: str, part: str, only=lambda: True):
        inner = getattr(trainer, method)

        def timed(*args, **kwargs):
            start = now()
            result = inner(*args, **kwargs)
            if only():
                spent[part] += now() - start
            if part == "generation":
                sampled.extend(result[0])
                last["prompt"] = sum(map(len, set(map(tuple, args[0]))))
            return result

        setattr(trainer, method, timed)

    def begin():
        turns.begin()
        spent.update(dict.fromkeys(spent, 0.0))
        sampled.clear()

    def end():
        spent["policy"] = spent["pass"] - spent["inputs"]
        spent["other"] = now() - turns.start - sum(spent[part] for part in PARTS if part != "other")
        last["completions"] = list(sampled)
        turns.end(
            **{part: spent[part] for part in PARTS},
            tokens=str(sampled),
            mean_length=sum(map(len, sampled)) / len(sampled),
        )

    trainer, encoding = make_trainer(case, fast, steps, folder)
    clock(trainer, "_generate_single_turn", "generation")
    clock(trainer, "_calculate_rewards", "rewards")
    clock(trainer, "_get_per_token_logps_and_entropies", "reference",
          only=lambda: not torch.is_grad_enabled())  # fmt: skip
    clock(trainer, "_prepare_inputs", "inputs")
    clock(trainer, "training_step", "pass")
    train(trainer, begin, end)
    count = sum(p.numel() for n, p in trainer.model.named_parameters() if "lora_" not in n and "visual" not in n)
    return {"encode_s_an_image": encoding / (steps * case.prompts), "language_parameters": count,
            "floor": floor(count, **last) if fast else None}  # fmt: skip


def hear(name: str, pipe):
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError(f"the process of {name} has died; what it said stands above") from None


def compare(case: Case, steps: int, threads: int) -> dict:
    """Run both sides in turns. The first step of each is not counted."""
    context = multiprocessing.get_context("spawn")
    pipes, start_up = {}, {}
    for name in ("stock", "ours"):
        start = time.perf_counter()
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=side, args=(case, name == "ours", steps + 1, threads, theirs), daemon=True)
        process.start()
        theirs.close()
        hear(name, pipes[name])
        start_up[name] = round(time.perf_counter() - start, 1)
    rounds = {name: [] for name in pipes}
    for step in range(steps + 1):
        for name in list(pipes)[:: 1 if step % 2 else -1]:
            pipes[name].send("go")
            rounds[name].append(hear(name, pipes[name]))
            if step < steps:
                hear(name, pipes[name])
    result = {"case": asdict(case), "threads": threads, "steps": steps}
    for name, pipe in pipes.items():
        counted = rounds[name][1:]
        result[name] = {
            part: round(statistics.median(one[part] for one in counted), 4)
            for part in ("step", "processor", *PARTS)
            if part in counted[0]
        }
        ended = hear(name, pipe)
        limits = ended.pop("floor")
        result[name] |= {k: round(v, 4) for k, v in ended.items()} | {"start_up": start_up[name]}
        if limits:
            result["floor"] = {k: round(v, 4) for k, v in limits.items()}
    for name, part in (("ratio", "step"), ("ratio_of_processor_time", "processor")):
        result[name] = round(result["stock"][part] / result["ours"][part], 2)
    result["mean_length"] = round(statistics.mean(r["mean_length"] for r in rounds["ours"]), 1)
    result["same_tokens"] = [a["tokens"] == b["tokens"] for a, b in zip(*rounds.values())]
    return result


def table(results: list[dict]) -> str:
    """Markdown; in each pair stock stands first. The floor stands behind it where there is one."""
    columns = ("step", "processor", *PARTS, "peak_gb")
    columns = [part for part in columns if part in results[0]["ours"]]
    names = [part if part == "peak_gb" else f"{part}, s" for part in columns]
    lines = [
        f"| case | **ratio** | ratio of processor time | {' | '.join(names).replace('peak_gb', 'peak, GB')} |",
        "|" + "---|" * (len(columns) + 3),
    ]
    for one in results:
        pairs = [
            f"{one['stock'][part]:.2f} / {one['ours'][part]:.2f}"
            + (f" ({one['floor'][part]:.2f})" if part in one.get("floor", {}) else "")
            for part in columns
        ]
        ratios = f"**{one['ratio']:.1f}** | {one['ratio_of_processor_time']:.1f}"
        lines.append(f"| {one['case']['name']} | {ratios} | {' | '.join(pairs)} |")
    return "\n".join(lines) + "\n"


def page(results: list[dict]) -> str:
    """One table for RL steps, one for the rest."""
    first = results[0]
    ours = [one["ours"] for one in results]
    rewards = max(one.get("rewards", 0) / one["step"] for one in ours)
    head = (
        f"Median seconds of {first['steps']} steps, {first['threads']} thread(s), stock / ours (floor), in turns. "
        f"Rewards are at most {rewards:.0%} of our step. Before the first step a process needs "
        f"{statistics.median(one['start_up'] for one in ours):.0f} s, ours with encoding its images.\n"
    )
    some = [[one for one in results if (one["case"]["what"] == "rl") == rl] for rl in (True, False)]
    return "\n".join([head, *(table(one) for one in some if one)])


@click.command()
@click.option("--steps", default=5, show_default=True, help="Steps that are counted, of each side.")
@click.option("--threads", default=1, show_default=True)
@click.option("--only", multiple=True, help="Cases whose name contains this; may be given often.")
@click.option("--output", default=OUTPUT, type=click.Path(path_type=Path), show_default=True)
def main(steps, threads, only, output):
    import torch

    cases = [*CPU, *GPU] if torch.cuda.is_available() else CPU
    results = []
    for case in cases:
        if only and not any(part in case.name for part in only):
            continue
        results.append(compare(case, steps, threads))
        click.echo(json.dumps(results[-1]))
        write_json(output / "steps.json", results)
        (output / "steps.md").write_text(page(results), encoding="utf-8")
    click.echo(page(results))
