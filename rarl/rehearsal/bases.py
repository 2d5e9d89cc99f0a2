"""Configurations of published bases, kept in `configs/`, so that plan and rehearsal need no download.

Each file has the hub ids that it is the configuration of, its source, and the number of parameters that the hub
states, which `tests/unit/test_memory.py` compares with that of the model that the configuration gives. `qwen2_vl_0_5b`
is on no hub: it is for a rehearsal in minutes.
"""

from pathlib import Path

from rarl.errors import UserError
from rarl.models.base_files import check_family
from rarl.records import read_json

CONFIGS = Path(__file__).parent / "configs"


def slugs() -> list[str]:
    """Names of the kept configurations."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def published(name: str) -> dict | None:
    """The content of a base's file by its slug or hub id, or None.

    >>> published("Qwen/Qwen2-VL-2B-Instruct") == published("qwen2_vl_2b")
    True
    """
    files = {slug: read_json(CONFIGS / f"{slug}.json") for slug in slugs()}
    return next((file for slug, file in files.items() if name in (slug, *file["hub"])), None)


def config_json(name: str) -> dict:
    """The content of a base's `config.json`.

    Args:
        name: a slug, a hub id that is kept, or a folder with a `config.json`; no weights are needed.

    Raises:
        UserError: it is none of these, or of an unsupported family.
    """
    if known := published(name):
        return known["config"]
    file = Path(name) / "config.json"
    if not file.is_file():
        expected = f"one of {', '.join(slugs())}, or a folder with a config.json"
        raise UserError(f"--base {name}", "neither a known base nor such a folder", expected, "correct the name")
    content = read_json(file)
    check_family(name, content)
    return content


def parse(content: dict):
    """The configuration object of a `config.json`."""
    from transformers import AutoConfig

    content = dict(content)
    return AutoConfig.for_model(content.pop("model_type"), **content)


def meta_model(config):
    """The model of a configuration, with tied weights, without memory for its weights."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    return model
