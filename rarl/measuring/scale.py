"""Measure time and memory of the stages between data and report with many rows.

Synthetic images, and several questions about each, are written in the form of your own data
(`rarl/data/adapters/own.py`). They are the training source for `curate` and `audit`, and then a benchmark for
`benchmark` and, with synthetic predictions and verdicts of two models and two judges, for `score` and `report`. Each
stage is its own command in a process of its own, in a temporary folder. If playwright and Chromium are installed, a
browser opens `cases.html`.

The results are `scale.json` and `scale.md` in `metrics/bench`.
"""

import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from rarl.cache import CACHE, ROOT
from rarl.errors import UserError
from rarl.params import Params, load_params
from rarl.processes.cost import COSTS, hardware
from rarl.profiles import PROFILES
from rarl.records import (
    Prediction,
    Sample,
    Verdict,
    predictions_file,
    read_json,
    read_records,
    verdicts_file,
    write_json,
    write_records,
)
from rarl.reporting.formats import markdown_table

#: Pixels of a side of an image.
SIDE = 512
#: Every so many images, one is the one before at another JPEG quality: a near duplicate.
NEAR_EVERY = 100
FINDINGS = ("effusion", "nodule", "fracture", "cyst", "mass", "edema")
SIDES = ("left", "right", "both sides")
MODALITIES = ("CT", "MRI", "X-ray")
#: Model -> its share of right answers.
SKILL = {"base": 0.5, "rarl": 0.6}
JUDGES = ("lexical", "semantic")
#: Over the embedded profile, which has what else is needed.
PARAMS = {
    "data": {"root": "data/raw", "missing": "stop"},
    "phantom": {"benchmark_rows": 10, "sat_rows": 10, "image_size": 56},
    "models": list(SKILL),
    "modes": ["reasoning"],
    "mode": {"reasoning": {"prompt": "reasoning"}},
    "judges": list(JUDGES),
    "judge": {judge: {"kind": judge} for judge in JUDGES},
    "grpo": {"prompts": ["reasoning"], "rewards": {}},
    "rarl": {"prompts": ["explanation", "short", "open"], "rewards": {"reasoning": 1.0}},
}
PARAMS["judge"]["semantic"] |= {"threshold": 0.65, "reasoning_threshold": 0.88}
#: The own data as training source, or as benchmark, beside the phantoms.
AS_SOURCE = {"train": {"source": "own"}, "benchmarks": []}
AS_BENCHMARK = {"train": {"source": "silvar_med"}, "benchmarks": ["own"]}


def measure(sizes: Sequence[tuple[int, int]], output: Path) -> None:
    """Measure all sizes (rows, images), and write each result as soon as it is there."""
    results = []
    for rows, images in sizes:
        CACHE.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="scale-", dir=CACHE)).resolve()
        try:
            results.append({"rows": rows, "images": images, "stages": run(folder, rows, images)})
            results[-1] |= pages(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        write_json(output / "scale.json", {**hardware(), "results": results})
        (output / "scale.md").write_text(page(results), encoding="utf-8")
    click.echo(page(results))


def run(folder: Path, rows: int, images: int) -> list[dict]:
    """Run all stages below a folder and return what each took."""
    from rarl.phantom.releases import make_phantom

    click.echo(f"{rows} rows, {images} images: writing them ...")
    params = write_params(folder, AS_SOURCE)
    make_phantom(params.phantom, folder / params.data.root, folder / "data/phantom_truth.jsonl")
    write_own(folder / params.data.root / "own", rows, images)
    found = [stage(folder, "curate"), stage(folder, "audit")]
    params = write_params(folder, AS_BENCHMARK)
    stage(folder, "curate")
    found.append(stage(folder, "benchmark", "--set", "own"))
    write_answers(folder, params)
    found += [stage(folder, "score", "--model", model) for model in SKILL]
    return [*found, stage(folder, "report")]


def write_params(folder: Path, changes: dict) -> Params:
    """Write `params.yaml`: the embedded profile with `PARAMS` and further changes."""
    raw = YAML(typ="safe").load(PROFILES / "embedded.yaml")
    for key, value in (PARAMS | changes).items():
        raw[key] = raw.get(key, {}) | value if isinstance(value, dict) else value
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(raw, file)
    return load_params(folder / "params.yaml")


def write_own(folder: Path, rows: int, images: int) -> None:
    """Write images and `rows.csv`; two images are of one patient."""
    (folder / "images").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: write_image(folder, number), range(images)))
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "question", "answer", "reasoning", "modality", "patient", "category"])
        for row in range(rows):
            image, number = row % images, row // images
            what = (MODALITIES[image % len(MODALITIES)], f"patient {image // 2}")
            question, answer, reasoning, category = ask(image, number)
            table.writerow([f"images/{image:06}.jpg", question, answer, reasoning, *what, category])


def write_image(folder: Path, number: int) -> None:
    """Write an image of its own random shades; a near duplicate has those of the one before."""
    near = number % NEAR_EVERY == NEAR_EVERY - 1
    shades = np.random.default_rng(number - near).integers(0, 256, (9, 9), np.uint8)
    image = Image.fromarray(shades).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    image.save(folder / f"images/{number:06}.jpg", quality=70 if near else 85)


def ask(image: int, number: int) -> tuple[str, str, str, str]:
    """Return question, answer, reasoning (of every other question) and category."""
    rng = random.Random(f"{image} {number}")
    finding, side = FINDINGS[number % len(FINDINGS)], rng.choice(SIDES)
    question, answer, category = (
        (f"Is there a {finding} in this image?", rng.choice(("yes", "no")), "presence"),
        (f"Where is the {finding} in image {image}?", side, "position"),
        (f"How many signs of {finding} are there?", str(rng.randrange(5)), "count"),
    )[number // len(FINDINGS) % 3]
    reasoning = f"The image shows a change on the {side}, and its edge is sharp, so it may be a {finding}."
    return question, answer, reasoning * (number % 2), category


def write_answers(folder: Path, params: Params) -> None:
    """Write predictions and verdicts of every model on every test set."""
    for name in params.test_sets:
        samples = read_records(folder / params.samples_file(name), Sample)
        for model, skill in SKILL.items():
            rng = random.Random(f"{name} {model}")
            right = [rng.random() < skill for _ in samples]
            path = predictions_file(model, params.main_mode, name)
            write_records(folder / path, map(predict, samples, right))
            for judge in JUDGES:
                path = verdicts_file(model, judge, params.main_mode, name)
                write_records(folder / path, rate(samples, right, rng))


def predict(sample: Sample, right: bool) -> Prediction:
    """A right or a wrong answer after some reasoning."""
    answer = sample.answers[0] if right else "none of these"
    think = (
        f"The question is about {sample.question[:40]} In the image there is a change with a sharp edge, brighter "
        "than its surroundings, and the structures beside it are as expected. No other change is seen."
    )
    completion = f"<think>{think}</think> <answer>{answer}</answer>"
    return Prediction(id=sample.id, completion=completion, think=think, answer=answer, tokens=60)


def rate(samples: Sequence[Sample], right: Sequence[bool], rng: random.Random) -> Iterator[Verdict]:
    """Verdicts that are mistaken about every twentieth answer."""
    for sample, good in zip(samples, right):
        score, reasoning = int(good != (rng.random() < 0.05)), None if sample.reasoning is None else rng.randrange(2)
        why = f"The answer {'agrees' if score else 'does not agree'} with the reference '{sample.answers[0]}'."
        yield Verdict(id=sample.id, evaluation=why, prediction_score=score, reasoning_score=reasoning)


def stage(folder: Path, name: str, *options: str) -> dict:
    """Run a stage's command.

    Returns:
        Its name, the seconds of its process, and from its cost file `processor_seconds` and `peak_memory_mb`.

    Raises:
        UserError: it failed.
    """
    click.echo(f"  {name} ...")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    seconds = round(time.perf_counter() - started, 1)
    if done.returncode:
        raise UserError(f"rarl bench scale: {name}", done.stderr[-2000:], "exit code 0", "see the lines above")
    title = "_".join([name, *options[1::2]])
    cost = read_json(folder / COSTS / f"{title}.json")
    return {"stage": title, "seconds": seconds, **{key: cost[key] for key in ("processor_seconds", "peak_memory_mb")}}


def pages(folder: Path) -> dict:
    """Return the MB of the report's files, and the seconds until a browser shows the first cases."""
    files = [path for path in (folder / "data/report").rglob("*") if path.is_file()]
    cases = folder / "data/report/cases.html"
    found = {
        "report_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "cases_mb": round(cases.stat().st_size / 1e6, 1),
    }
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        binary = None
    if binary:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
            tab = browser.new_page()
            tab.set_default_timeout(120_000)
            for key, state in (("own_test_seconds", ""), ("benchmark_seconds", "#set=own")):
                started = time.perf_counter()
                tab.goto(cases.as_uri() + state)
                tab.wait_for_selector("#list .row")
                found[key] = round(time.perf_counter() - started, 2)
                tab.goto("about:blank")
            browser.close()
    return found


def page(results: list[dict]) -> str:
    """Format seconds and peak memory of each stage by size."""
    heads = [f"{one['rows']:,} rows, {one['images']:,} images" for one in results]
    rows = []
    for stages in zip(*(one["stages"] for one in results)):
        cells = [f"{one['seconds']:.1f}, {one['processor_seconds']:.1f}, {one['peak_memory_mb']:,}" for one in stages]
        rows.append([stages[0]["stage"], *cells])
    shown = {
        "report_mb": "all files of the report, MB",
        "cases_mb": "cases.html, MB",
        "own_test_seconds": "cases.html in a browser, s",
        "benchmark_seconds": "the same, with the benchmark, s",
    }
    rows += [[label, *(one[key] for one in results)] for key, label in shown.items() if key in results[0]]
    note = (
        "Seconds, processor seconds (which other load hardly changes) and peak memory in MB of each stage's process.\n"
    )
    return "\n".join([note, *markdown_table(["stage: s, processor s, peak MB", *heads], rows), ""])
