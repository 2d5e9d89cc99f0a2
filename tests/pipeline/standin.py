"""Stands in for every stage when the pipeline's graph is tested: no model, about 0.1 s a stage.

It reads its own stage's entry in `dvc.yaml` and writes each of its outputs as a function of the
contents of its dependencies and of the values of its parameters. What a change reaches in the real
pipeline it therefore reaches here, and what it does not reach keeps its bytes. Predictions, verdicts and scores have
the real files' names and form. Its cost is written by the pipeline's own code, with a time that no other run has.

The environment variable MACHINE stands for a machine whose kernels round differently.
"""

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import yaml

from rarl.processes.cost import write_cost


def load(path: str) -> dict:
    return yaml.load(Path(path).read_text(encoding="utf-8"), yaml.CSafeLoader)  # several times as fast as ruamel.yaml


def look_up(params: dict, key: str):
    for part in key.split("."):
        params = params[part]
    return params


def fill(text: str, item: dict[str, str], params: dict) -> str:
    """Put the values into a template's `${...}`."""

    def value(match: re.Match) -> str:
        key = match.group(1)
        return item[key.removeprefix("item.")] if key.startswith("item.") else look_up(params, key)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def digest(path: str) -> str:
    """Hash of a file's content, or of a folder's names and contents."""
    files = sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]
    found = hashlib.sha256()
    for file in files:
        if file.is_file() and file.suffix != ".pyc":
            found.update(file.relative_to(path).as_posix().encode() + file.read_bytes())
    return found.hexdigest()


def own_entry(stages: dict) -> tuple[dict, dict[str, str]]:
    """The stage whose command this process was started with, and its matrix item."""
    command = " ".join(["python -m", f"stages.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    for stage in stages.values():
        pattern = re.sub(r"\\\$\\\{item\\\.(\w+)\\\}", r"(?P<\1>\\w+)", re.escape(stage["cmd"]))
        if match := re.fullmatch(pattern, command):
            return stage, match.groupdict()
    raise SystemExit(f"no stage in dvc.yaml has the command: {command}")


def main() -> None:
    stages, params = load("dvc.yaml")["stages"], load("params.yaml")
    stage, item = own_entry(stages)

    def paths(*sections: str) -> list[str]:
        entries = [entry for section in sections for entry in stage.get(section, [])]
        names = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
        return [fill(name, item, params) for name in names]

    contents = {path: digest(path) for path in paths("deps")}
    used = {}
    for key in stage.get("params", []):
        if isinstance(key, dict):  # the whole file
            used |= params
        else:
            key = fill(key, item, params)
            used[key] = look_up(params, key)
    asked_for = {path for other in stages.values() for path in other.get("deps", [])}
    for out in paths("outs", "metrics", "plots"):
        seed = [out, contents, used, os.environ.get("MACHINE")]
        if out.startswith("data/predictions/"):
            write_answers(Path(out), seed, params)
        elif out.startswith("data/verdicts/"):
            write_verdicts(Path(out), contents, used, params)
        elif out.startswith("metrics/scores/"):
            write_scores(Path(out), item["model"])
        elif Path(out).suffix:
            write(Path(out), seed)
        else:
            inside = {path for path in asked_for if path.startswith(f"{out}/")}
            for path in {f"{out}/content.json", *inside}:
                write(Path(path), [path, *seed])
    write_cost([Path(sys.argv[0]).stem, *item.values()], time.time())


def write_verdicts(folder: Path, contents: dict, used: dict, params: dict) -> None:
    """Those of every judge, which depend on its own settings only."""
    for judge in params["judges"]:
        own = used | {"judges": judge, "judge": params["judge"][judge]}
        write_answers(folder / judge, [str(folder), contents, own, os.environ.get("MACHINE")], params)


def write_answers(folder: Path, seed: list, params: dict) -> None:
    """40 predictions or verdicts for each mode and test set; about half are right."""
    for mode in params["modes"]:
        own = params["mode"][mode]["own_test_only"]
        for name in [params["train"]["source"], *([] if own else params["benchmarks"])]:
            lines = [
                json.dumps({"id": f"{name}/{i}", "prediction_score": number([mode, i, *seed]) % 2}) for i in range(40)
            ]
            file = folder / mode / f"{name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_scores(path: Path, model: str) -> None:
    """mode -> test set -> judge -> share of the verdicts that are right, as the real stage has it."""
    scores: dict = {}
    for file in sorted(Path("data/verdicts", model).glob("*/*/*.jsonl")):
        right = [json.loads(line)["prediction_score"] for line in file.open(encoding="utf-8")]
        judge, mode, name = *file.parts[-3:-1], file.stem
        cell = {"final": 100 * sum(right) / len(right), "n": len(right), "unscored": 0}
        scores.setdefault(mode, {}).setdefault(name, {})[judge] = cell
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(scores), encoding="utf-8")


def number(seed: list) -> int:
    text = json.dumps(seed, sort_keys=True, default=str)
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def write(path: Path, seed: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == "phantom_truth.jsonl":
        path.write_text(json.dumps({"image_sha256": "data/phantom", "value": number(seed)}) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":  # a question about an image, which is a phantom with the phantoms' root only
        sample = {name: f"{number(seed)}" for name in ("id", "dataset", "split", "image", "question")}
        sample |= {"image_sha256": load("params.yaml")["data"]["root"], "answers": ["yes"], "kind": "open"}
        path.write_text(json.dumps(sample) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        path.write_text(f"step,value\n1,{number(seed)}\n", encoding="utf-8")
    else:
        path.write_text(json.dumps({"value": number(seed)}), encoding="utf-8")


if __name__ == "__main__":
    main()
