"""Proof that numbers do not depend on the processor: the same work here and on emulated processors of two vendors.

    make portable        # or rarl portable

It runs two steps of everything that the embedded default does, at its own sizes: phantoms, image scaling, the vision tower, SFT, GRPO and RARL, inference, BERTScore, the semantic and the lexical judge, intervals and tests, a plot.
Every part ends in a digest of its bits, and the digests are compared. It needs `qemu-x86_64` (Debian, Ubuntu: package
qemu-user), which emulates processors without AVX-512. Agreement with them is evidence; another machine is the proof.

`--price` measures instead what the pinning and the second thread cost: seconds of a training step on an idle machine
and beside busy processes.
"""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from rarl.errors import UserError
from rarl.params import Params, Rewards, load_params
from rarl.pinning import ENVIRONMENT, pin
from rarl.records import Prediction, Sample, atomic_file, read_records, write_json, write_records

EMULATOR = "qemu-x86_64"
#: Emulated processors: Intel with AVX2 (2013) and AMD with AVX2 (2019).
PROCESSORS = ("Haswell-noTSX", "EPYC-Rome")
OUTPUT = Path("metrics/bench")
ROOT = Path(__file__).parents[2]
BUSY = 8


# The work ---------------------------------------------------------------------------------------------


#: Training, development and test rows.
ROWS, FEW_ROWS = (32, 2, 6), (4, 2, 3)


def shortened(params: Params, short: bool) -> Params:
    """The embedded default's parameters with two steps and every reward at work; `short`: small ones."""
    params = params.model_copy(deep=True)
    rl, sft = params.rl, params.sft
    params.train.eval_steps, params.train.dev_samples, sft.epochs, rl.max_steps = 2, 2, 1, 2
    # Adam's first step is nearly the gradient's sign, whatever its digits: the second one, at a rate that counts, shows them.
    sft.warmup_ratio = rl.warmup_ratio = 0.0
    if short:
        sft.batch_size = sft.micro_batch_size = 2
        rl.group_size, rl.prompts_per_step, rl.micro_prompts = 4, 2, 2
        rl.max_completion_length = params.decoding.max_new_tokens = 8
    params.grpo.rewards = Rewards(format=1, length=50, accuracy=1)
    params.rarl.rewards = Rewards(format=1, length=50, accuracy=1, reasoning=1)
    params.reward.reasoning = "mix"
    params.data.root = "data"
    params.benchmarks = []
    return params


def digests(params: Params, short: bool) -> dict[str, str]:
    """Do the work in the current folder, which should be empty, and return a digest of each part's bits."""
    found = {}

    def add(part: str, *values: bytes | str | Path) -> None:
        whole = hashlib.sha256()
        for value in values:
            if isinstance(value, Path):
                value = value.read_bytes()
            whole.update(value.encode() if isinstance(value, str) else value)
        found[part] = whole.hexdigest()[:16]

    add("phantoms", *draw(params.seed, FEW_ROWS if short else ROWS))
    train, dev, test = (read_records(f"data/curated/{split}.jsonl", Sample) for split in ("train", "dev", "test"))

    from rarl.images import open_rgb
    from rarl.inference import predict
    from rarl.models.features import FeatureStore
    from rarl.models.loading import load
    from rarl.training import sft
    from rarl.training.rl import train_rl

    # A process that the emulator runs cannot fork: batches are made by the process itself, with the same bits.
    arguments = sft.SFTConfig
    sft.SFTConfig = lambda **given: arguments(**given | {"dataloader_num_workers": 0})

    loaded = load("data/models/base", params.model)
    store = FeatureStore()
    store.attach(loaded.model)
    images = [open_rgb(Path("data") / sample.image) for sample in (*train, *dev, *test)]
    scaled = loaded.processor.image_processor(images, return_tensors="pt")
    add("image scaling", scaled["pixel_values"].numpy().tobytes())
    loaded.model.model.visual(scaled["pixel_values"], grid_thw=scaled["image_grid_thw"])
    for folder in ("training", "benchmarks"):
        store.save(f"data/features/{folder}")
    add("vision tower", Path("data/features/training/features.safetensors"))

    sft.train_sft(params)
    for method in ("grpo", "rarl"):
        train_rl(method, params)
    for method in ("sft", "grpo", "rarl"):
        weights = Path(f"data/models/{method}/adapter_model.safetensors")
        add(f"{method} training", weights, Path(f"metrics/train/{method}.csv"))

    loaded = load("data/models/rarl", params.model)
    mode, seed = params.mode["reasoning"], params.seed
    scratch = Path("scratch.jsonl")
    predictions = predict(loaded, test, Path("data"), mode, params.decoding, seed, scratch)
    add("inference", *(one.model_dump_json() for one in predictions))
    add("BERTScore", *map(repr, bert_scores(params)))
    for kind in ("lexical", "semantic"):
        add(f"{kind} judge", *verdicts(params, kind, test))
    add("intervals and tests", repr(intervals()))
    add("plot", plot())
    return found


def draw(seed: int, counts: tuple[int, int, int]) -> list[Path]:
    """Draw phantoms and write the rows that the rest of the work uses.

    Args:
        counts: training, development and test rows, one image each.

    Returns:
        The image files.
    """
    import numpy as np
    from PIL import Image

    from rarl.phantom import medical
    from rarl.phantom.releases import save_image

    rng = np.random.default_rng(seed)
    files = []
    for split, count in zip(("train", "dev", "test"), counts):
        rows = []
        for index in range(count):
            modality = ("xray", "mri", "ct")[index % 3]
            style = medical.Style(*((112, 112) if index % 2 else (150, 112)), gamma=1.1)
            findings = medical.choose_findings(rng, modality)
            image = f"{split}{index}.{'png' if index % 2 else 'jpg'}"
            scene = medical.draw(rng, modality, findings, style)
            digest = save_image(Path("data") / image, Image.fromarray(scene.pixels).convert("RGB"))
            files.append(Path("data") / image)
            name = findings[0].name
            rows.append(
                Sample(
                    id=f"{split}{index}", dataset="phantom", split=split, image=image, image_sha256=digest,
                    question="What disease is in this image?" if index % 2 else f"Is there a {name} in this image?",
                    answers=[name if index % 2 else "Yes"], kind="open" if index % 2 else "yes_no",
                    reasoning=f"There is a {name} in the {findings[0].organ}.", modality=modality,
                )
            )  # fmt: skip
        write_records(f"data/curated/{split}.jsonl", rows)
    pointer = {"source": str(ROOT / "data/base"), "revision": None, "sha256": None}
    write_json("data/models/base/base.json", pointer)
    return files


TEXTS = (
    "There is a bright mass in the left temporal lobe.",
    "The image shows a mass on the left side of the brain",
    "Pneumonia",
    "No abnormality is seen, the heart and both lungs appear normal.",
    "Cardiomegaly",
)


def bert_scores(params: Params) -> list[float]:
    from rarl.rewards.bertscore import BertScorer

    scorer = BertScorer(params.encoder.source, params.encoder.num_layers, "cpu")
    return scorer.f1([(first, second) for first in TEXTS for second in TEXTS])


def verdicts(params: Params, kind: str, samples: list[Sample]) -> list[str | bytes]:
    """Verdicts on made-up answers and, of the semantic judge, the embeddings' bits."""
    from rarl.judges import judge_of
    from rarl.judges.semantic import embed

    texts = [TEXTS[index % len(TEXTS)] for index in range(len(samples))]
    answers = [
        Prediction(id=sample.id, completion=text, think=text, answer=text) for sample, text in zip(samples, texts)
    ]
    said = judge_of(kind)(
        samples, answers, params.judge[kind], name=kind, place=None, encoder=params.encoder, truth_file=None
    )  # fmt: skip
    bits = [vector.tobytes() for vector in embed(TEXTS, params.encoder.source).values()]
    return [verdict.model_dump_json() for verdict in said] + (bits if kind == "semantic" else [])


def intervals() -> list:
    """Intervals and tests of the report, and the bootstrap of the threshold study."""
    from rarl.reporting import stats as s
    from rarl.studies.threshold import Pair, calibrate

    pairs = [Pair(str(row % 9), "made up", row % 3 > 0, "", "") for row in range(40)]
    cosines = [(row * 37 % 101) / 101 for row in range(40)]
    first, second = [1, 0, 1, 1, 0, 0, 1, 0] * 5, [1, 1, 1, 0, 0, 1, 1, 1] * 5
    p_values = [s.mcnemar(first[:n], second[:n])["p"] for n in (20, 30, 40)]
    return [
        s.wilson(31, 150), s.mcnemar(first, second), s.unpaired(41.0, 150, 55.5, 120), s.holm(p_values),
        s.mean_change([0.25, -0.5, 0.125, 0.1]), s.smallest_difference(150, 0.3), s.agreement(first, second), calibrate(pairs, cosines, 20),
    ]  # fmt: skip


def plot() -> str:
    from rarl.reporting.plots import curves

    series = [(float(step), (step * 37 % 11) / 7) for step in range(1, 60)]
    return curves({"rarl": {"reward": series}}, "reward", "Reward", {"rarl": "RARL"})


def steps_taken(params: Params, method: str, count: int) -> list[float]:
    """Seconds of each of the first optimizer steps at the embedded default's own sizes, in a finished pipeline's folder."""
    from transformers import TrainerCallback

    from rarl.training import rl, sft

    params.rl.max_steps = count
    params.train.eval_steps = 10**6
    _, trainer, _ = sft.prepare(params) if method == "sft" else rl.prepare(method, params)
    trainer.args.max_steps, trainer.args.save_strategy = count, "no"
    begun, seconds = [0.0], []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            begun[0] = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - begun[0])

    trainer.add_callback(Watch())
    trainer.train()
    return seconds


# The comparison ---------------------------------------------------------------------------------------


def child(*arguments: str, processor: str | None = None) -> dict:
    """Run this module in a new process, on an emulated processor if one is named, and return the JSON that it prints."""
    # The emulator runs a program's file, and a virtual environment's Python is a link: name its packages instead.
    base = [sys.executable] if processor is None else [EMULATOR, "-cpu", processor, os.path.realpath(sys.executable)]
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    clean = {k: v for k, v in os.environ.items() if k not in (*ENVIRONMENT, "OMP_NUM_THREADS")}
    done = subprocess.run(
        [*base, "-m", "rarl", "portable", *arguments],
        env=clean | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(
            f"the work on {processor or 'this processor'}",
            "\n".join(done.stderr.splitlines()[-5:]),
            "digests",
            "run `rarl portable --work` to see the whole message",
        )
    return json.loads(done.stdout.splitlines()[-1])


def compare(short: bool, processors: tuple[str, ...] = PROCESSORS) -> dict[str, dict[str, str]]:
    """Part -> {"here" or processor: digest}; emulated processors run side by side.

    Raises:
        UserError: the emulator is not installed, or the work failed somewhere.
    """
    if shutil.which(EMULATOR) is None:
        raise UserError(
            EMULATOR, "not installed", "an emulator of other processors",
            "install it (Debian, Ubuntu: `apt-get install qemu-user`)",
        )  # fmt: skip
    arguments = ["--work", *(["--short"] if short else [])]
    with ThreadPoolExecutor(len(processors)) as pool:
        emulated = [pool.submit(child, *arguments, processor=one) for one in processors]
        found = {"here": child(*arguments)}
        found |= {one: future.result() for one, future in zip(processors, emulated)}
    return {part: {where: found[where][part] for where in found} for part in found["here"]}


def table(found: dict[str, dict[str, str]]) -> str:
    where = list(next(iter(found.values())))
    rows = [["part", *where, "same bits"], ["---"] * (len(where) + 2)]
    rows += [
        [part, *(row[one] for one in where), "yes" if len(set(row.values())) == 1 else "NO"]
        for part, row in found.items()
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# The price --------------------------------------------------------------------------------------------


def price() -> list[dict]:
    """Median seconds of a training step, pinned and not, with one and two threads, idle and beside busy processes."""
    lines = []
    for busy in (0, BUSY):
        load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for portable, threads in ((True, 1), (False, 1), (False, 2)):
                for method in ("sft", "rarl"):
                    # Beside others, a step of two threads takes up to half a minute.
                    count = 16 if not busy else 8 if threads == 1 else 2
                    arguments = ["--steps", method, "--count", str(count), "--threads", str(threads)]
                    seconds = child(*arguments, *([] if portable else ["--free"]))["seconds"]
                    lines.append(
                        {
                            "busy_processes": busy, "pinned": portable, "threads": threads, "method": method,
                            "seconds": round(statistics.median(seconds), 3), "steps": len(seconds),
                        }
                    )  # fmt: skip
                    click.echo(json.dumps(lines[-1]))
        finally:
            for process in load:
                process.kill()
                process.wait()
    return lines


def price_table(lines: list[dict]) -> str:
    columns = [(True, 1), (False, 1), (False, 2)]
    rows = [["seconds a step", "pinned", "not pinned", "not pinned, two threads"], ["---"] * 4]
    for busy in (0, BUSY):
        for method in ("sft", "rarl"):
            cells = [
                line["seconds"]
                for column in columns
                for line in lines
                if (line["busy_processes"], line["method"]) == (busy, method)
                and (line["pinned"], line["threads"]) == column
            ]
            beside = f"beside {busy} busy processes" if busy else "idle machine"
            rows.append([f"{method}, {beside}", *map(str, cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@click.command(help=__doc__)
@click.option("--short", is_flag=True, help="Two small steps of everything, for tests.")
@click.option("--price", "priced", is_flag=True, help="Measure the price; needs a finished `dvc repro`.")
@click.option("--work", is_flag=True, hidden=True)
@click.option("--free", is_flag=True, hidden=True)
@click.option("--steps", "method", hidden=True)
@click.option("--count", default=16, hidden=True)
@click.option("--threads", default=1, hidden=True)
def main(short, priced, work, free, method, count, threads) -> None:
    params = load_params(ROOT / "params.yaml")
    params.model.portable, params.model.threads = not free, threads
    pin(params)
    if work:
        with TemporaryDirectory() as folder:
            os.chdir(folder)
            found = digests(shortened(params, short), short)
        click.echo(json.dumps(found))
    elif method:
        click.echo(json.dumps({"seconds": steps_taken(params, method, count)}))
    elif priced:
        lines = price()
        write_json(OUTPUT / "price.json", lines)
        write("price", price_table(lines), "What it costs to have the same bits everywhere", "--price")
    else:
        found = compare(short)
        write_json(OUTPUT / "portable.json", found)
        option = "--short" if short else ""
        write("portable", table(found), "The same bits on other processors", option)
        if differing := [part for part, row in found.items() if len(set(row.values())) > 1]:
            raise UserError(
                "make portable", f"other bits in {', '.join(differing)}", "the same bits on every processor",
                "look for the first part that differs: the parts after it follow from it",
            )  # fmt: skip


def write(name: str, text: str, title: str, option: str = "") -> None:
    with atomic_file(OUTPUT / f"{name}.md") as file:
        command = f"rarl portable {option}".strip()
        file.write(f"# {title}\n\nMade by `{command}`.\n\n{text}\n")
    click.echo(text)
    click.echo(f"{OUTPUT / name}.json and .md")
