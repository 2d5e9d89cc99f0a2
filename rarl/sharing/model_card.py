"""The model card: how a model was trained, on what data, how good it is, and how to use it elsewhere.

The card contains no times and no paths of this machine, so that two equal runs write equal files.
"""

import hashlib
import json
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from rarl.models.families import FAMILIES
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


def is_phantom(params: Params) -> bool:
    """Whether the model is trained and scored on synthetic images."""
    return Path(params.data.root) == Path(PHANTOM_ROOT)


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


def write_card(
    folder: str | Path, method: str, params: Params, metrics: dict, counts: dict[str, dict], model_type: str
) -> None:
    """Write `README.md` into a model folder, in the form of the hub's model cards (`model_card.md`).

    Args:
        folder: a trained model's folder with `base.json` and an adapter or `full/`.
        method: `sft`, `grpo` or `rarl`.
        params: of the pipeline.
        metrics: as in `metrics/train/<method>.json`.
        counts: as returned by `counts`.
        model_type: of the base's configuration, such as `qwen2_vl`.
    """
    from jinja2 import StrictUndefined, Template
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    folder = Path(folder)
    pointer = read_json(folder / "base.json")
    prompts = ["reasoning"] if method == "sft" else getattr(params, method).prompts
    source = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    card = Template(source, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = card.render(
        method=method,
        params=params,
        metrics=metrics,
        has_means=any(key.endswith("_first") for key in metrics),
        counts=counts,
        pointer=pointer,
        name=base_name(pointer),
        yaml_name=json.dumps(base_name(pointer)),
        model_type=model_type,
        family=FAMILIES[model_type].name,
        architecture=MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type],
        embedded=EMBEDDED,
        phantom=is_phantom(params),
        full=(folder / "full").is_dir(),
        trained_by=MODELS[method].trained_by,
        not_clinical=NOT_CLINICAL,
        use=USE,
        prompt=_prompt(),
        parameters=_parameters(method, params),
        prompts={name: hashlib.sha256(template(name).encode()).hexdigest()[:12] for name in prompts},
        # Without the build, such as `+cpu`, which differs between machines.
        versions={library: version(library).partition("+")[0] for library in LIBRARIES},
    )
    with atomic_file(folder / "README.md") as file:
        file.write(text + "\n")


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
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("<this folder>")
processor = AutoProcessor.from_pretrained("<this folder>")  # needs torchvision
```

{_prompt()}
"""
    text = re.sub(rf"{USE}\n.*?(?=\n## |\Z)", lambda _: use, text, count=1, flags=re.DOTALL)
    return text.replace("library_name: peft", "library_name: transformers", 1)


def _prompt() -> str:
    return f"The user message is the image, followed by this text:\n\n```text\n{template('reasoning').strip()}\n```"


def _parameters(method: str, params: Params) -> list[tuple[str, str]]:
    blocks = [block for block in BLOCKS[method] if block != "lora" or params.train.trainable != "full"]
    values = {"seed": params.seed} | {block: getattr(params, block).model_dump() for block in blocks}
    if slug := params.reasoning_judge(method):
        values["judge"] = {slug: params.judge[slug].model_dump(include={"kind", "model", "revision"})}
    return _leaves("", values)


def _leaves(prefix: str, block: dict) -> list[tuple[str, str]]:
    rows = []
    for key, value in block.items():
        if isinstance(value, dict):
            rows += _leaves(f"{prefix}{key}.", value)
        elif value != []:
            # Only the name of a folder on this machine.
            text = Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
            rows.append((prefix + key, ", ".join(map(str, text)) if isinstance(text, list) else str(text)))
    return rows
