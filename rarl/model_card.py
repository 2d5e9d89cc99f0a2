"""The model card: how a model was trained, on what data, how good it is, and how to use it elsewhere.

The card contains no times and no paths of this machine, so that two equal runs write equal files.
"""

import hashlib
import json
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from rarl.params import Params
from rarl.prompts import template
from rarl.records import Sample, atomic_file, read_json, write_json
from rarl.registry import MODELS

PHANTOM_ROOT = "data/phantom"
EMBEDDED = "data/base"
NOT_CLINICAL = "Research only, not for clinical use."
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")
USE = "## How to load"
#: The blocks of `params.yaml` that a training depends on; `method` stands for the method's own block.
BLOCKS = {
    "sft": ("model", "lora", "train", "sft", "decoding"),
    "grpo": ("model", "lora", "train", "rl", "grpo", "reward", "encoder", "decoding"),
    "rarl": ("model", "lora", "train", "rl", "rarl", "reward", "encoder", "decoding"),
}


def counts(train: list[Sample], dev: list[Sample]) -> dict[str, dict]:
    """Count rows, images, annotated rows, kinds and sources of each split."""
    return {
        name: {
            "rows": len(samples),
            "images": len({sample.image_sha256 for sample in samples}),
            "annotated": sum(sample.reasoning is not None for sample in samples),
            "modalities": dict(sorted(Counter(sample.modality for sample in samples).items())),
            "kinds": dict(sorted(Counter(sample.kind for sample in samples).items())),
            "datasets": sorted({sample.dataset for sample in samples}),
        }
        for name, samples in (("training", train), ("development", dev))
    }


def base_name(pointer: dict) -> str:
    """Return the base's name without this machine's path: the hub id, `data/base`, or a local folder's name."""
    local = pointer["sha256"] is not None and pointer["source"] != EMBEDDED
    return Path(pointer["source"]).name if local else pointer["source"]


def make_portable(folder: str | Path) -> None:
    """Make `adapter_config.json` the same on every machine and in every equal run.

    PEFT writes the base's path on this machine, and sets of module names in an order that differs between Python
    processes. Loading an adapter onto a loaded base needs neither. A folder of full weights is not changed.
    """
    pointer = read_json(Path(folder) / "base.json")
    for file in sorted(Path(folder).rglob("adapter_config.json")):
        config = read_json(file)
        config |= {"base_model_name_or_path": base_name(pointer), "revision": pointer["revision"]}
        for key in ("target_modules", "exclude_modules", "modules_to_save"):
            if isinstance(config[key], list):
                config[key] = sorted(config[key])
        write_json(file, config)


def write_card(folder: str | Path, method: str, params: Params, metrics: dict, counts: dict[str, dict]) -> None:
    """Write `README.md` into a model folder, in the form of the hub's model cards.

    Args:
        folder: a trained model's folder with `base.json` and an adapter or `full/`.
        method: `sft`, `grpo` or `rarl`.
        params: of the pipeline.
        metrics: as in `metrics/train/<method>.json`.
        counts: as returned by `counts`.
    """
    folder = Path(folder)
    pointer = read_json(folder / "base.json")
    phantom = Path(params.data.root) == Path(PHANTOM_ROOT)
    full = (folder / "full").is_dir()
    name = base_name(pointer)
    parts = [
        _front_matter(method, pointer, phantom, full),
        f"# {method}: {name}, {'full weights' if full else 'LoRA'}",
        f"**{NOT_CLINICAL}**",
        _phantom_note(pointer, phantom),
        f"A Qwen2-VL trained by {MODELS[method].trained_by}, with a frozen vision tower. The pipeline implements "
        "*RARL: Improving Medical VLM Reasoning and Generalization with Reinforcement Learning and LoRA under Data "
        "and Hardware Constraints* (Pham and Ngo, 2025, arXiv 2506.06600).",
        "## Base\n\n" + _base(pointer, params),
        "## Data\n\n" + _data(params, counts),
        "## Results of the training" + (" (PHANTOM)" if phantom else "") + "\n\n" + _metrics(metrics),
        "## Limits\n\n" + _limits(phantom),
        USE + "\n\n" + _use(pointer, full),
        "## Parameters\n\n" + _parameters(method, params),
        "## Versions\n\n" + ", ".join(f"{library} {_release(library)}" for library in LIBRARIES),
    ]
    with atomic_file(folder / "README.md") as file:
        file.write("\n\n".join(part for part in parts if part) + "\n")


def _release(library: str) -> str:
    """Return a library's version without its build, such as `+cpu`, which differs between machines."""
    return version(library).partition("+")[0]


def merged_card(text: str, source: str, dtype: str) -> str:
    """Return the card of a model whose adapter was merged into the base.

    Args:
        text: the adapter's card; empty if there is none.
        source: the name of the merged model.
        dtype: of the merged weights.
    """
    text = text or f"---\nlibrary_name: peft\n---\n\n# {source}\n\n**{NOT_CLINICAL}**\n\n{USE}\n"
    use = f"""{USE}

The adapter is merged into the base; the weights are saved in {dtype}.

```python
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

model = Qwen2VLForConditionalGeneration.from_pretrained("<this folder>")
processor = AutoProcessor.from_pretrained("<this folder>")  # needs torchvision
```

{_prompt()}
"""
    text = re.sub(rf"{USE}\n.*?(?=\n## |\Z)", lambda _: use, text, count=1, flags=re.DOTALL)
    return text.replace("library_name: peft", "library_name: transformers", 1)


def _front_matter(method: str, pointer: dict, phantom: bool, full: bool) -> str:
    known = pointer["source"] in (EMBEDDED, "Qwen/Qwen2-VL-2B-Instruct")
    tags = ["qwen2_vl", "visual-question-answering", method, "full" if full else "lora", "medical"]
    lines = [
        f"base_model: {json.dumps(base_name(pointer))}",
        f"library_name: {'transformers' if full else 'peft'}",
        "pipeline_tag: image-text-to-text",
        "language: en",
        "license: apache-2.0" if known else "license: other\nlicense_name: as-the-base",
        "tags:",
        *(f"- {tag}" for tag in [*tags, *(["phantom"] if phantom else [])]),
    ]
    return "---\n" + "\n".join(lines) + "\n---"


def _phantom_note(pointer: dict, phantom: bool) -> str:
    if phantom:
        return "**PHANTOM RESULT**: trained and scored on synthetic images; nothing here has a medical meaning."
    if pointer["source"] == EMBEDDED:
        return "The base is the pipeline's embedded test model of two million parameters, which has no medical use."
    return ""


def _base(pointer: dict, params: Params) -> str:
    lines = [f"- model: `{base_name(pointer)}`"]
    if pointer["revision"]:
        lines.append(f"- revision: `{pointer['revision']}`")
    if pointer["sha256"]:
        lines.append(f"- SHA-256 of its configuration and weights: `{pointer['sha256']}`")
    lines.append(f"- training started from: {params.train.start}")
    return "\n".join(lines)


def _data(params: Params, counts: dict[str, dict]) -> str:
    rows = []
    for split, of in counts.items():
        share = f"{of['annotated'] / of['rows']:.0%}".replace("%", " %") if of["rows"] else "–"
        row = (split, f"{of['rows']:,}", f"{of['images']:,}", f"{of['annotated']:,} ({share})")
        rows.append((*row, _listed(of["kinds"]), _listed(of["modalities"]), ", ".join(of["datasets"])))
    head = ("split", "rows", "images", "with annotated reasoning", "kinds", "modalities", "data set")
    first = f", the first {params.train.samples} rows of a seeded shuffle" if params.train.samples else ""
    chosen = "The checkpoint was selected on the development rows; the test rows were not used."
    text = f"Source: `{params.train.source}`{first}. {chosen}\n\n{_table(head, rows)}"
    if not counts["training"]["annotated"]:
        text += "\n\nNo training row is annotated: a reasoning reward had no reference to compare with."
    return text


def _listed(counted: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.items())


def _metrics(metrics: dict) -> str:
    names = {
        "steps": "optimizer steps",
        "trainable_parameters": "trainable parameters",
        "best_step": "step of the selected checkpoint",
        "dev_score": "accuracy on the development rows at that step, %",
    }
    rows = [
        (names.get(key, key.replace("_", " ")), "–" if value is None else str(value)) for key, value in metrics.items()
    ]
    note = ""
    if any(key.endswith("_first") for key in metrics):
        note = "\n\n*First* and *last* are means over the first and the last fifth of the steps."
    return _table(("", "value"), rows) + note


def _limits(phantom: bool) -> str:
    lines = [
        f"{NOT_CLINICAL} No regulator has cleared it, and no physician has reviewed its answers.",
        "It answers one question about one image, in English. It does not see series, volumes or earlier studies.",
        "The text between the think tags is what was rewarded; it need not be the reason for the answer.",
        "The training rows are few and of few kinds; other images, devices, hospitals and questions are untested.",
        "The development score is too high, because it selected the checkpoint; the report has scores with intervals.",
    ]
    if phantom:
        note = "The images are synthetic. The scores show that the training works, not that the model knows medicine."
        lines.insert(0, note)
    return "\n".join(f"- {line}" for line in lines)


def _use(pointer: dict, full: bool) -> str:
    local = pointer["sha256"] is not None
    base = "<folder of the base>" if local else pointer["source"]
    revision = "" if local or not pointer["revision"] else f', revision="{pointer["revision"]}"'
    if full:
        code = (
            "from transformers import Qwen2VLForConditionalGeneration\n\n"
            'model = Qwen2VLForConditionalGeneration.from_pretrained("<this folder>/full")'
        )
    else:
        code = (
            "from peft import PeftModel\nfrom transformers import Qwen2VLForConditionalGeneration\n\n"
            f'base = Qwen2VLForConditionalGeneration.from_pretrained("{base}"{revision})\n'
            'model = PeftModel.from_pretrained(base, "<this folder>")'
        )
    return (
        f"```python\n{code}\n```\n\nUse the base's tokenizer and image processor. {_prompt()}\n\n"
        "In the pipeline's repository: `rarl ask --model <this folder> --image x.png --question '...'`, "
        "and `rarl merge` for weights that load without PEFT."
    )


def _prompt() -> str:
    return f"The user message is the image, followed by this text:\n\n```text\n{template('reasoning').strip()}\n```"


def _parameters(method: str, params: Params) -> str:
    rows = [("seed", str(params.seed))]
    for block in BLOCKS[method]:
        rows += _leaves(block, getattr(params, block).model_dump())
    if params.train.trainable == "full":
        rows = [row for row in rows if not row[0].startswith("lora.")]
    prompts = ["reasoning"] if method == "sft" else getattr(params, method).prompts
    hashes = ", ".join(
        f"{name} {hashlib.sha256(template(name).encode()).hexdigest()[:12]}" for name in dict.fromkeys(prompts)
    )
    return _table(("parameter", "value"), rows) + f"\n\nPrompts (SHA-256): {hashes}"


def _leaves(prefix: str, block: dict) -> list[tuple[str, str]]:
    rows = []
    for key, value in block.items():
        if isinstance(value, dict):
            rows += _leaves(f"{prefix}.{key}", value)
        else:
            # Only the name of a folder on this machine.
            text = Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
            rows.append((f"{prefix}.{key}", ", ".join(map(str, text)) if isinstance(text, list) else str(text)))
    return rows


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
