"""Checks of a base's files before its weights are loaded; reads JSON and bytes, without torch."""

import hashlib
import json
import re
from pathlib import Path

from rarl.errors import UserError, warn
from rarl.models.families import FAMILIES, image_token
from rarl.params import Base

EMBEDDED = Path("data/base")
#: Files that a chat template may be in, the first that exists.
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
DOWNLOAD_WHOLE = "download the whole model repository there"
INSTRUCT = "use the whole folder of an instruct model, such as Qwen2-VL-2B-Instruct"


def fingerprint(folder: str | Path) -> str:
    """SHA-256 over `config.json` and all `*.safetensors` of a model folder; a UserError if they are not there."""
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        where, fix = f"base.source = {folder}", "download the model there, or set base.source to `embedded`"
        raise UserError(where, "no config.json with *.safetensors in it", "a folder laid out like the hub's", fix)
    check_shards(folder)
    digest = hashlib.sha256()
    for path in [folder / "config.json", *weights]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_shards(folder: Path) -> None:
    """Refuse a model folder that lacks a file of weights which its index names."""
    where, fix, index = f"base.source = {folder}", DOWNLOAD_WHOLE, folder / "model.safetensors.index.json"
    named = read_config(index, where, fix).get("weight_map", {}).values() if index.is_file() else ()
    if missing := sorted(name for name in {*named} if not (folder / name).is_file()):
        raise UserError(where, f"no {' and no '.join(missing)} in it", f"every file that {index} names", fix)


def check_place(key: str, source: str, revision_key: str, revision: str | None) -> None:
    """Refuse what is neither `embedded`, a local folder, nor a hub id at a commit; the keys are params.yaml's."""
    if source == "embedded" or Path(source).is_dir():
        return
    if not HUB_ID.fullmatch(source):
        expected = "`embedded`, a local folder or a hub id (owner/name)"
        raise UserError(f"{key} = {source}", "no such folder", expected, f"correct {key}")
    if not COMMIT.fullmatch(revision or ""):
        expected = "the hub repository's commit, 40 hexadecimal digits: a branch moves, and its numbers with it"
        fix = f"copy the commit from the history of https://huggingface.co/{source}"
        found = f"no commit for {source} (and no local folder of that name)"
        raise UserError(f"{revision_key} = {revision}", found, expected, fix)


def cached_config(source: str, revision: str) -> dict:
    """Return the `config.json` of a hub id from the hub's cache, checked; an empty one if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    where, path = f"base.source = {source}", try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(path, str):
        return {}
    config = read_config(Path(path), where, "delete it: it is downloaded again")
    check_family(source, config)
    if Path(path).with_name("tokenizer_config.json").is_file():
        check_text_files(where, Path(path).parent, config)
    return config


def check_download(source: str, revision: str) -> None:
    """Announce the download of a hub id that is not cached; a UserError if HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    if constants.HF_HUB_OFFLINE:
        found = f"HF_HUB_OFFLINE is set and {revision[:7]} is not in {cache}"
        fix = f"`hf download {source} --revision {revision}` without HF_HUB_OFFLINE, or a local base.source"
        raise UserError(f"base.source = {source}", found, "the model in the hub's cache, or access to the hub", fix)
    warn(f"{source} will be downloaded to {cache}; on a closed network, download it elsewhere and name its folder")


def check_family(source: str, config: dict) -> None:
    """Refuse a base that is not in `FAMILIES`, or whose weights are quantized already."""
    if config.get("model_type") not in FAMILIES:
        found = f"a model of type {config.get('model_type')}"
        known = ", ".join(f"{key} ({family.name})" for key, family in FAMILIES.items())
        fix = "choose a base of a supported family, e.g. Qwen/Qwen2-VL-2B-Instruct"
        raise UserError(f"base.source = {source}", found, f"one of {known}", fix)
    if "quantization_config" in config:
        found, expected = "weights that are quantized already", "weights in float32 or bfloat16"
        fix = "name the base that they were made from; model.quantization: nf4 loads it in 4 bits"
        raise UserError(f"base.source = {source}", found, expected, fix)


def check_text_files(where: str, folder: Path, config: dict) -> None:
    """Look for the image token in a local base's tokenizer, and for its chat template.

    Args:
        where: names the base in a message.
        folder: in the hub's layout.
        config: its `config.json`.

    Raises:
        UserError: one of them is missing.
    """
    settings, tokenizer = (
        read_config(path, where, INSTRUCT) if (path := folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "tokenizer.json")
    )
    files = [folder / name for name in CHAT_TEMPLATES if (folder / name).is_file()]
    check_template(where, files[0].read_text(encoding="utf-8") if files else settings.get("chat_template"))
    tokens = {int(id) for id in settings.get("added_tokens_decoder", {})}
    tokens |= {entry["id"] for entry in tokenizer.get("added_tokens", [])}
    if tokens and image_token(config) not in {None, *tokens}:
        raise no_image_token(where, image_token(config))


def check_template(where: str, template: str | list | None) -> None:
    """Refuse a base without a chat template, or with one for text only."""
    if not template or "image" not in str(template):
        raise no_template(where, "a chat template without images" if template else "no chat template")


def no_template(where: str, found: str) -> UserError:
    """The error for a base without a usable chat template."""
    expected = f"{', '.join(CHAT_TEMPLATES)} or one in tokenizer_config.json, for messages with an image"
    return UserError(where, found, expected, INSTRUCT)


def no_image_token(where: str, token: int) -> UserError:
    """The error for a base whose tokenizer does not have the image token."""
    found, expected = f"a tokenizer without the image token {token}", "the image token that config.json names"
    return UserError(where, found, expected, "use the tokenizer that belongs to the weights")


def read_config(path: Path, where: str, fix: str) -> dict:
    """Read a JSON file of a model's folder; `where` names the parameter in the message."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(where, f"{path}: {error}", "a model's configuration", fix) from None
    return config


def base_pointer(base: Base) -> dict:
    """The content of `base.json`: where the base is, its revision, the hash of local weights, which are checked."""
    folder = EMBEDDED if base.source == "embedded" else Path(base.source)
    if not folder.is_dir():
        return {"source": base.source, "revision": base.revision, "sha256": None}
    sha256 = fingerprint(folder)
    where = f"base.source = {folder}"
    config = read_config(folder / "config.json", where, INSTRUCT)
    check_family(str(folder), config)
    check_text_files(where, folder, config)
    return {"source": str(folder), "revision": None, "sha256": sha256}
