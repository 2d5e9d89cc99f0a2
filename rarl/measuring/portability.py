"""Compare the bits of the pipeline's work on this processor and on emulated processors of two vendors.

The work is two steps of everything that the embedded default does, at its own sizes: phantoms, image scaling, the
vision tower, SFT, GRPO and RARL, inference, BERTScore, the semantic and the lexical judge, intervals and tests, a
plot. The script compares a digest of each part's bits. It needs `qemu-x86_64` (Debian, Ubuntu: package qemu-user),
which emulates processors without AVX-512. Agreement is evidence; only a run on another machine is a proof.

`python -m rarl.measuring.portability <JSON of Work>` does the work, in a process whose kernels are not pinned yet.
"""

import gc
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from rarl.errors import UserError
from rarl.params import Params, Rewards, load_params
from rarl.processes.pinning import ENVIRONMENT, pin
from rarl.records import Prediction, Sample, atomic_file, read_records, write_json, write_records

EMULATOR = "qemu-x86_64"
#: Emulated processors: Intel with AVX2 (2013) and AMD with AVX2 (2019).
PROCESSORS = ("Haswell-noTSX", "EPYC-Rome")
OUTPUT = Path("metrics/bench")
ROOT = Path(__file__).parents[2]
#: Training, development and test rows; with `short`.
ROWS, FEW_ROWS = (32, 2, 6), (4, 1, 2)


def shortened(params: Params, short: bool) -> Params:
    """Limit the embedded default to two optimizer steps with every reward; `short` also makes these steps small."""
    params = params.model_copy(deep=True)
    rl, sft = params.rl, params.sft
    params.train.eval_steps, params.train.dev_samples, sft.epochs, rl.max_steps = 2, 2, 1, 2
    # Adam's first step is nearly the sign of the gradient; the gradient's digits show in the second one, if its
    # learning rate is not 0.
    sft.warmup_ratio = rl.warmup_ratio = 0.0
    if short:  # the completions of these groups differ in reward
        sft.batch_size = sft.micro_batch_size = 2
        rl.group_size, rl.prompts_per_step, rl.micro_prompts = 4, 1, 1
        rl.max_completion_length, params.decoding.max_new_tokens = 12, 4
    params.grpo.rewards = Rewards(format=1, length=50, accuracy=1)
    params.rarl.rewards = Rewards(format=1, length=50, accuracy=1, reasoning=1)
    params.reward.reasoning = "mix"
    params.data.root = "data"
    params.benchmarks = []
    return params


def digests(params: Params, short: bool) -> dict[str, str]:
    """Do the work in the current, empty folder, and return a digest of each part's bits."""
    found = {}

    def add(part: str, *values: bytes | str | Path) -> None:
        read = (value.read_bytes() if isinstance(value, Path) else value for value in values)
        whole = b"".join(value.encode() if isinstance(value, str) else value for value in read)
        found[part] = hashlib.sha256(whole).hexdigest()[:16]

    add("phantoms", *draw(params.seed, FEW_ROWS if short else ROWS))
    train, dev, test = (read_records(f"data/curated/{split}.jsonl", Sample) for split in ("train", "dev", "test"))

    from rarl.images import open_rgb
    from rarl.inference.local import predict
    from rarl.models.features import FeatureStore
    from rarl.models.loading import load
    from rarl.rewards.bertscore import BertScorer
    from rarl.training import sft
    from rarl.training.rl import train_rl

    if short:  # the imports stay: collecting garbage among them takes seconds in the emulator
        gc.freeze()

    # An emulated process cannot fork, so it loads its batches itself, with the same bits.
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
    # RARL with all rewards runs the code that GRPO runs.
    methods = ("rarl",) if short else ("grpo", "rarl")
    for method in methods:
        train_rl(method, params)
    for method in ("sft", *methods):
        weights = Path(f"data/models/{method}/adapter_model.safetensors")
        add(f"{method} training", weights, Path(f"metrics/train/{method}.csv"))

    loaded = load("data/models/rarl", params.model)
    mode, seed = params.mode["reasoning"], params.seed
    scratch = Path("scratch.jsonl")
    predictions = predict(loaded, test, Path("data"), mode, params.decoding, seed, scratch)
    add("inference", *(one.model_dump_json() for one in predictions))
    scorer = BertScorer(params.encoder.source, params.encoder.num_layers, "cpu")
    texts = [text for text in TEXTS if " " in text] if short else TEXTS  # of one padded length
    add("BERTScore", *map(repr, scorer.f1([(first, second) for first in texts for second in texts])))
    for kind in ("lexical", "semantic"):
        add(f"{kind} judge", *verdicts(params, kind, test, texts))
    add("intervals and tests", repr(intervals()))
    add("plot", plot())
    return found


def draw(seed: int, counts: tuple[int, int, int]) -> list[Path]:
    """Generate phantoms, write training, development and test rows with one image each, and return the image files."""
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
            if index % 2:
                asked = dict(question="What disease is in this image?", answers=[name], kind="open")
            else:
                asked = dict(question=f"Is there a {name} in this image?", answers=["Yes"], kind="yes_no")
            reasoning = f"There is a {name} in the {findings[0].organ}."
            place = dict(id=f"{split}{index}", dataset="phantom", split=split, image=image, image_sha256=digest)
            rows.append(Sample(**place, **asked, reasoning=reasoning, modality=modality))
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


def verdicts(params: Params, kind: str, samples: list[Sample], texts: Sequence[str]) -> list[str | bytes]:
    """Judge made-up answers; return the verdicts and, for the semantic judge, the embeddings' bits."""
    from rarl.judges import judge_of
    from rarl.judges.semantic import embed

    pairs = zip(samples, itertools.cycle(texts))
    answers = [Prediction(id=sample.id, completion=text, think=text, answer=text) for sample, text in pairs]
    more = dict(name=kind, place=None, encoder=params.encoder, truth_file=None)
    rated = judge_of(kind)(samples, answers, params.judge[kind], **more)
    lines = [verdict.model_dump_json() for verdict in rated]
    if kind == "semantic":
        lines += [vector.tobytes() for vector in embed(texts, params.encoder.source).values()]
    return lines


def intervals() -> list:
    """Compute intervals and tests of the report, and the bootstrap of the threshold study."""
    from rarl.reporting import stats as s
    from rarl.studies.threshold import Pair, calibrate

    pairs = [Pair(str(row % 9), "made up", row % 3 > 0, "", "") for row in range(40)]
    cosines = [(row * 37 % 101) / 101 for row in range(40)]
    first, second = [1, 0, 1, 1, 0, 0, 1, 0] * 5, [1, 1, 1, 0, 0, 1, 1, 1] * 5
    images = [row // 3 for row in range(40)]
    p_values = [s.mcnemar(first[:n], second[:n], images[:n])["p"] for n in (20, 30, 40)]
    return [
        s.wilson(31, 150),
        s.share_interval(first, images),
        s.mcnemar(first, second, images),
        s.unpaired(41.0, 150, 55.5, 120),
        s.holm(p_values),
        s.mean_change([0.25, -0.5, 0.125, 0.1], "aabc"),
        s.smallest_difference(150, 0.3),
        s.agreement(first, second),
        calibrate(pairs, cosines, 20),
    ]


def plot() -> str:
    """Return a plot as SVG."""
    from rarl.reporting.plots import curves

    series = [(float(step), (step * 37 % 11) / 7) for step in range(1, 60)]
    return curves({"rarl": {"reward": series}}, "reward", "Reward", {"rarl": "RARL"})


def child(processor: str | None = None, **work) -> dict:
    """Return the result of `work` in a new process, emulating `processor` if it is named; a UserError if it fails."""
    # The emulator needs a program's file. A virtual environment's Python is a link, so its packages are added here.
    python = [sys.executable] if processor is None else [EMULATOR, "-cpu", processor, os.path.realpath(sys.executable)]
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    clean = {k: v for k, v in os.environ.items() if k not in (*ENVIRONMENT, "OMP_NUM_THREADS")}
    command = [*python, "-m", "rarl.measuring.portability", json.dumps(work)]
    env = clean | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        where, found = f"the work on {processor or 'this processor'}", "\n".join(done.stderr.splitlines()[-5:])
        fix = f"run `python -m rarl.measuring.portability '{command[-1]}'` to see the whole message"
        raise UserError(where, found, "digests", fix)
    return json.loads(done.stdout.splitlines()[-1])


def work(short: bool = False, portable: bool = True, threads: int = 1, method: str | None = None, steps: int = 0):
    """Return a digest of each part's bits or, with a finished pipeline, the seconds of `steps` steps of a method."""
    params = load_params(ROOT / "params.yaml")
    params.model.portable, params.model.threads = portable, threads
    pin(params)
    sys.modules["bitsandbytes"] = None  # as in a stage: PEFT would import it, in seconds
    if method:
        return step_seconds(params, method, steps)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        if short:
            gc.disable()
        return digests(shortened(params, short), short)


def step_seconds(params: Params, method: str, steps: int) -> list[float]:
    """Time the first optimizer steps of a training at the embedded default's sizes."""
    from rarl.measuring.sides import train
    from rarl.training import rl, sft

    params.rl.max_steps = steps
    params.train.eval_steps = 10**6
    _, trainer, _ = sft.prepare(params) if method == "sft" else rl.prepare(method, params)
    trainer.args.max_steps, trainer.args.save_strategy = steps, "no"
    begun, ended = [], []
    train(trainer, lambda: begun.append(time.perf_counter()), lambda: ended.append(time.perf_counter()))
    return [end - begin for begin, end in zip(begun, ended)]


def compare(short: bool, processors: tuple[str, ...] = PROCESSORS) -> dict[str, dict[str, str]]:
    """Return part -> {"here" or processor: digest}; the emulators, which have to be installed, run in parallel."""
    if shutil.which(EMULATOR) is None:
        fix = "install it (Debian, Ubuntu: `apt-get install qemu-user`)"
        raise UserError(EMULATOR, "not installed", "an emulator of other processors", fix)
    with ThreadPoolExecutor(len(processors)) as pool:
        emulated = [pool.submit(child, one, short=short) for one in processors]
        found = {"here": child(short=short)} | {one: future.result() for one, future in zip(processors, emulated)}
    return {part: {where: found[where][part] for where in found} for part in found["here"]}


def differing(found: dict[str, dict[str, str]]) -> list[str]:
    """Return the parts whose bits are not the same everywhere."""
    return [part for part, row in found.items() if len(set(row.values())) > 1]


def table(found: dict[str, dict[str, str]]) -> str:
    """Return the digests as a Markdown table."""
    unequal = differing(found)
    rows = [[part, *row.values(), "NO" if part in unequal else "yes"] for part, row in found.items()]
    from rarl.reporting.formats import markdown_table

    return "\n".join(markdown_table(["part", *next(iter(found.values())), "same bits"], rows))


def report(short: bool) -> None:
    """Write metrics/bench/portable.json and .md; a UserError if some bits differ."""
    found = compare(short)
    write_json(OUTPUT / "portable.json", found)
    write_page("portable", table(found), "The same bits on other processors", "--short" if short else "")
    if unequal := differing(found):
        fix = "look at the first part that differs: later parts depend on it"
        different = f"different bits in {', '.join(unequal)}"
        raise UserError("make portable", different, "the same bits on every processor", fix)


def write_page(name: str, text: str, title: str, option: str) -> None:
    """Write a table to metrics/bench/<name>.md, and print it."""
    command = f"rarl portable {option}".strip()
    with atomic_file(OUTPUT / f"{name}.md") as file:
        file.write(f"# {title}\n\nMade by `{command}`.\n\n{text}\n")
    click.echo(text)
    click.echo(f"{OUTPUT / name}.json and .md")


if __name__ == "__main__":
    print(json.dumps(work(**json.loads(sys.argv[1]))))
