import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rarl.errors import UserError
from rarl.models.families import FAMILIES
from rarl.params import load_params
from rarl.profiles import apply, put, round_trip
from rarl.running import preflight
from rarl.training.vllm import check_server
from stages.check import main as check_stage
from stages.tidy import main as tidy_stage

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RELEASES = ("slake", "vqa-rad", "VQA-Med-2019", "pvqa", "cv_bench")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with the shipped parameters and some embedded base."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "NEEDS", dict.fromkeys(preflight.NEEDS, (0.0, 0.0)))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    base(tmp_path / "data/base")
    shutil.copytree(ROOT / "data/rivals", tmp_path / "data/rivals")
    Path("data/rivals/seed_11/base.json").unlink()  # it names another base's weights
    return tmp_path


def base(folder: Path) -> Path:
    """A model folder as far as `check` reads it: sizes of Qwen2-VL-2B, and the names and shapes of weights."""
    from safetensors.numpy import save_file

    layer = "model.language_model.layers.0"
    names = [f"{layer}.self_attn.{name}_proj" for name in "qkvo"] + [f"{layer}.mlp.up_proj"]
    weights = {f"{name}.weight": np.zeros((2, 2), np.float32) for name in names}
    weights |= {
        f"{layer}.input_layernorm.weight": np.zeros(2, np.float32),
        "model.visual.blocks.0.attn.qkv.weight": np.zeros((2, 2), np.float32),
    }
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    text = {"hidden_size": 1536, "max_position_embeddings": 32768}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "text_config": text}))
    (folder / "chat_template.jinja").write_text("<image>")
    return folder


def run(**changes) -> tuple[int, str]:
    """Run the stage with parameters changed (`data__root` stands for data.root)."""
    yaml, path = round_trip(), Path("params.yaml")
    params = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        put(params, key.replace("__", "."), value)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    result = CliRunner().invoke(check_stage)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def releases(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
    return str(root)


@pytest.mark.parametrize("family", ["llava_next", "gemma3_text", None])
def test_a_base_of_another_family_is_refused(project, tmp_path, family):
    folder = base(tmp_path / "other")
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    code, said = run(base__source=str(folder))
    assert code == 1 and f"a model of type {family}" in said and "qwen2_vl" in said


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("chat_template.jinja", None, "no chat template"),
        ("chat_template.jinja", "{{ text }}", "a chat template without images"),
        ("tokenizer.json", {"added_tokens": [{"id": 6}]}, "a tokenizer without the image token 7"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"6": {}}}, "a tokenizer without the image token 7"),
        ("tokenizer.json", [], "tokenizer.json: a list"),
    ],
)
def test_a_base_needs_its_chat_template_and_its_image_token(project, tmp_path, name, content, found):
    folder = base(tmp_path / "other")
    config = {"model_type": "gemma3", "image_token_index": 7}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 7}]} if content is None else {}))
    assert run(base__source=str(folder), model__device="cpu")[0] == 0
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(json.dumps(content))
    code, said = run()
    assert code == 1 and f"base.source = {folder}" in said and found in said


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("qwen2_5_vl", ["visual.blocks.0.attn.q_proj"]),
        ("gemma3", ["vision_tower.encoder.layers.0.self_attn.q_proj", "multi_modal_projector.q_proj"]),
        ("smolvlm", ["model.vision_model.encoder.layers.0.self_attn.q_proj", "model.connector.q_proj"]),
    ],
)
def test_adapter_is_put_on_no_layer_of_tower_or_projector(project, tmp_path, family, names):
    from safetensors.numpy import save_file

    folder = base(tmp_path / "other")
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    layers = ["model.text.layers.0.k_proj", *names]
    save_file({f"{name}.weight": np.zeros((2, 2), np.float32) for name in layers}, folder / "model.safetensors")
    settings = {"base__source": str(folder), "model__device": "cpu"}
    code, said = run(lora__target_modules=["q_proj"], **settings)
    assert code == 1 and "lora.target_modules: q_proj" in said and "some of k_proj\n" in said
    assert run(lora__target_modules=["k_proj"])[0] == 0


@pytest.mark.parametrize("family", ["qwen2_vl", "smolvlm"])
def test_fsdp_wraps_the_layers_of_the_base(family):
    params = load_params(ROOT / "params.yaml")
    params.accelerate.config = str(ROOT / "rarl/accelerate/fsdp.yaml")
    with pytest.raises(UserError, match="LlamaDecoderLayer") if family == "smolvlm" else nullcontext():
        preflight.check_wrapped_layer(params, FAMILIES[family])


def test_writes_a_constant_whatever_the_parameters(project):
    assert run()[0] == 0
    first = Path("data/check.json").read_bytes()
    assert json.loads(first) == {"params": "valid"}
    assert run(lora__r=16, rl__beta=0.1)[0] == 0
    assert Path("data/check.json").read_bytes() == first


def test_default_imports_no_torch(project):
    code = "import sys, stages.check as c; c.main(standalone_mode=False); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT), preflight.RESOURCES: "ignore"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("optimizer, hidden", [("adamw", True), ("adamw_8bit", False)])
def test_stages_hide_bitsandbytes_from_peft_if_they_do_not_need_it(project, optimizer, hidden):
    """PEFT imports it wherever it is installed, in seconds."""
    yaml = round_trip()
    params = yaml.load(Path("params.yaml").read_text(encoding="utf-8"))
    put(params, "train.optimizer", optimizer)
    with open("params.yaml", "w", encoding="utf-8") as file:
        yaml.dump(params, file)
    Path("any.py").write_text(
        "import sys\nfrom rarl.running.entry import stage\n"
        "main = stage(lambda params: print(sys.modules.get('bitsandbytes', 'not hidden')))\nmain()"
    )
    command = [sys.executable, "any.py"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("None" if hidden else "not hidden")


def test_wrong_key_writes_nothing(project):
    code, said = run(lora__rank=8)
    assert code == 1 and "lora.rank: unknown key" in said
    assert not Path("data/check.json").exists()


def test_root_that_is_no_folder(project):
    code, said = run(data__root="data/raw")
    assert code == 1 and "data.root = data/raw" in said and "no such folder" in said


def test_releases_are_found_under_other_spellings(project):
    code, said = run(data__root=releases(project / "raw", *RELEASES), data__missing="stop")
    assert code == 0 and "slake, vqa_rad, vqa_med, path_vqa, cv_bench" in said


def test_training_release_must_be_there(project):
    code, said = run(data__root=releases(project / "raw", "vqa-rad"), data__missing="skip")
    assert code == 1 and "`slake`" in said and "there: vqa-rad" in said
    assert "rarl download slake" in said


@pytest.mark.parametrize("source, folder", [("silvar_med", "SLAKE"), ("sat", "SAT"), ("own", "own")])
def test_training_release_is_that_of_the_source(project, source, folder):
    root = project / "raw"
    releases(root, "vqa_rad")
    settings = {"data__root": str(root), "train__source": source, "benchmarks": ["vqa_rad"]}
    code, said = run(**settings)
    assert code == 1 and f"the release `{folder.lower()}`" in said and "there: vqa_rad" in said
    releases(root, folder)
    (root / folder / "rows.csv").touch()
    code, said = run()
    assert code == 0 and f"{root}: {folder.lower()}, vqa_rad" in said


def test_drawings_hold_sat_and_no_rows_of_your_own(project):
    code, said = run(train__source="own")
    assert code == 1 and "train.source = own, data.root = data/phantom" in said
    assert "no own/ among the phantom releases" in said and "set data.root to data/raw" in said
    assert run(train__source="sat")[0] == 0


def test_own_data_needs_its_table(project):
    root = releases(project / "raw", "own", "slake")
    Path(root, "own/rows.jsonl").touch()
    code, said = run(data__root=root, train__source="own", benchmarks=["slake"])
    assert code == 1 and "rows.csv (own.table; tables there: rows.jsonl)" in said
    assert run(own__table="rows.jsonl")[0] == 0


@pytest.mark.parametrize("root", ["data/phantom", "raw"])
def test_own_benchmark_that_is_missing(project, root):
    releases(project / "raw", "slake")
    code, said = run(data__root=root, benchmarks=["own"])
    assert code == 0 and "the benchmark `own` will have no rows" in said and "Your own images" in said
    code, said = run(data__missing="stop")
    assert code == 1 and "data.missing to skip" in said
    Path("raw/own").mkdir()
    Path("raw/own/rows.csv").touch()
    assert run(data__root="raw")[0] == 0


def test_missing_benchmark_stops_or_warns_as_the_parameter_says(project):
    root = releases(project / "raw", "slake")
    code, said = run(data__root=root, data__missing="skip", benchmarks=["slake", "path_vqa"])
    assert code == 0 and "WARNING" in said and "the benchmark `path_vqa` will have no rows" in said
    code, said = run(data__missing="stop")
    assert code == 1 and "`path_vqa`" in said and "data.missing to skip" in said
    assert run(benchmarks=["slake"])[0] == 0


def test_judge_of_drawings_is_warned_of_on_real_data(project):
    code, said = run(data__root=releases(project / "raw", *RELEASES))
    assert code == 0 and "judge truth knows phantom images only" in said
    assert "WARNING" not in run(judges=["lexical"])[1]


def test_embedded_base_that_is_gone(project):
    Path("data/base/config.json").unlink()
    code, said = run()
    assert code == 1 and "git checkout data/base" in said


def test_local_base_needs_its_config(project):
    Path("mine").mkdir()
    code, said = run(base__source="mine", model__device="cpu")
    assert code == 1 and "no mine/config.json" in said
    Path("mine/config.json").touch()
    assert "no mine/*.safetensors" in run()[1]
    Path("mine/config.json").unlink()
    Path("mine").rmdir()
    base(Path("mine"))
    assert run()[0] == 0
    Path("mine/config.json").write_text("{")
    assert "mine/config.json: Expecting" in run()[1]
    base(Path("cut"))
    os.truncate("cut/model.safetensors", 100)
    assert "cut/model.safetensors" in run(base__source="cut")[1]
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    Path("cut/model.safetensors.index.json").write_text(json.dumps(index))
    assert "no model-00002-of-00002.safetensors in it" in run()[1]
    assert "no such folder" in run(base__source="models/mine/final")[1]


@pytest.mark.parametrize("revision", [None, "main", "0123456"])
def test_hub_base_needs_a_commit(project, revision):
    code, said = run(base__source="Qwen/Qwen2-VL-2B-Instruct", base__revision=revision)
    assert code == 1 and f"base.revision = {revision}" in said and "40 hexadecimal digits" in said


def test_hub_base_is_looked_up_in_the_cache(project, monkeypatch):
    from huggingface_hub import constants

    settings = {"base__source": "owner/model", "base__revision": COMMIT, "model__device": "cpu"}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(project / "hub"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, said = run(**settings)
    assert code == 1 and "HF_HUB_OFFLINE" in said and f"--revision {COMMIT}" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    code, said = run()
    assert code == 0 and "will be downloaded" in said
    snapshot = project / "hub/models--owner--model/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    code, said = run()
    assert code == 0 and "will be downloaded" not in said


@pytest.mark.parametrize("change", [{"model__quantization": "nf4"}, {"train__optimizer": "adamw_8bit"}])
def test_bitsandbytes_must_be_installed_where_it_is_needed(project, monkeypatch, change):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert run()[0] == 0
    code, said = run(**change)
    assert code == 1 and "the package bitsandbytes is not installed" in said
    assert "pip install -c constraints.txt -e '.[quantization]'" in said
    assert next(iter(change)).replace("__", ".") in said


def test_a_base_that_is_quantized_already_is_refused(project, tmp_path):
    path = base(tmp_path / "small") / "config.json"
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))
    code, said = run(base__source=str(path.parent))
    assert code == 1 and "quantized already" in said and "model.quantization: nf4" in said


def test_weights_of_4_bits_cannot_be_trained(project):
    pytest.importorskip("bitsandbytes")
    assert run(model__quantization="nf4")[0] == 0
    code, said = run(train__trainable="full")
    assert code == 1 and "model.quantization = nf4" in said and "set train.trainable to lora" in said


def test_flash_attention_must_be_installed_and_possible(project):
    code, said = run(model__attention="flash_attention_2")
    assert code == 1 and "model.attention = flash_attention_2" in said and "auto" in said


def test_too_little_memory_stops_unless_ignored(project, monkeypatch):
    monkeypatch.setattr(preflight, "NEEDS", dict.fromkeys(preflight.NEEDS, (1e6, 0.0)))
    code, said = run()
    assert code == 1 and "free memory" in said and "RARL_RESOURCES=ignore" in said
    monkeypatch.setenv(preflight.RESOURCES, "ignore")
    code, said = run()
    assert code == 0 and "WARNING" in said


def test_too_little_disk_stops(project, monkeypatch):
    monkeypatch.setattr(preflight, "NEEDS", dict.fromkeys(preflight.NEEDS, (0.0, 1e9)))
    assert "free disk" in run()[1]


def test_encoder_has_the_layer_that_is_compared(project):
    for layer in (None, 7):
        code, said = run(encoder__num_layers=layer)
        assert code == 1 and "encoder.num_layers" in said
    Path("encoder").mkdir()
    code, said = run(encoder__source="encoder", encoder__num_layers=12)
    assert code == 1 and "no encoder/config.json" in said
    Path("encoder/config.json").write_text('{"num_hidden_layers": 12}')
    assert run()[0] == 0
    code, said = run(encoder__num_layers=13)
    assert code == 1 and "encoder has 12 layers" in said
    assert "no such folder" in run(encoder__source="models/encoder/last")[1]


@pytest.mark.parametrize(
    ("target", "known"),
    [
        ("q_proj", True), ("self_attn.q_proj", True), ("layers.0.mlp.up_proj", True), ("lm_head", False),
        ("qproj", False), ("proj", False), ("qkv", False), ("input_layernorm", False), ("query_key_value", False),
    ],
)  # fmt: skip
def test_adapter_is_put_on_layers_that_the_base_has(project, target, known):
    code, said = run(lora__target_modules=["k_proj", target])
    assert (code == 0) is known
    if not known:
        assert f"lora.target_modules: {target}\n" in said and "some of k_proj, o_proj" in said
    assert run(train__trainable="full")[0] == 0


def test_adapter_of_a_hub_base_is_compared_with_the_family(project):
    settings = {"base__source": "owner/model", "base__revision": COMMIT, "model__device": "cpu"}
    code, said = run(lora__target_modules=["c_attn"], **settings)
    assert code == 1 and "lora.target_modules: c_attn" in said and "down_proj" in said


def test_adapter_is_no_wider_than_the_base(project):
    assert run(lora__r=1536)[0] == 0
    code, said = run(lora__r=1537)
    assert code == 1 and "lora.r = 1537" in said and "at most 1536" in said


def test_image_and_completion_fit_into_the_bases_context(project):
    assert run(model__max_pixels=28**2 * 16000, decoding__max_new_tokens=16000)[0] == 0
    code, said = run(decoding__max_new_tokens=17000)
    assert code == 1 and "16000 image tokens" in said and "decoding.max_new_tokens = 17000" in said


def test_a_completion_that_leaves_little_to_the_prompt_is_warned_of(project):
    config = json.loads(Path("data/base/config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 2048
    Path("data/base/config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "WARNING" not in run()[1]
    code, said = run(decoding__max_new_tokens=2000)
    assert code == 0 and "decoding.max_new_tokens = 2000 and 16 image tokens leave 32 of the 2048 tokens" in said


def test_check_deletes_nothing_and_tidy_what_is_no_longer_listed(project):
    kept = [
        "data/benchmarks/slake.jsonl",
        "data/verdicts/base/lexical/a.jsonl",
        "data/benchmarks/notes.txt",
        "metrics/scores/base.json",
        "data/predictions/base/a.jsonl",
        "data/benchmarks/pictures/slake/a.png",
    ]
    gone = [
        "data/benchmarks/cv_bench.jsonl",
        "data/benchmarks/pictures/cv_bench/a.png",
        "metrics/benchmark/cv_bench.json",
        "data/verdicts/base/truth/a.jsonl",
        "metrics/scores/rarl.json",
        "data/predictions/rarl/a.jsonl",
        "data/verdicts/rarl/lexical/a.jsonl",
    ]
    for name in kept + gone:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    code, _ = run(benchmarks=["slake"], judges=["lexical"], models=["base", "sft"])
    assert code == 0 and all(Path(name).exists() for name in kept + gone)
    result = CliRunner().invoke(tidy_stage)
    assert result.exit_code == 0 and "data/benchmarks/cv_bench.jsonl removed: no longer listed" in result.output
    assert [name for name in kept if not Path(name).exists()] == []
    assert [name for name in gone if Path(name).exists()] == []


def test_real_data_whose_names_everybody_can_read_is_warned_of(project, monkeypatch):
    monkeypatch.delenv("DVC_SITE_CACHE_DIR")
    (project / ".git").mkdir()
    (project / ".dvc").mkdir()
    root = releases(project / "releases", *RELEASES)
    code, said = run(data__root=root)
    assert code == 0 and "`make site-cache`" in said
    (project / ".dvc/config.local").write_text("[core]\n    site_cache_dir = /somewhere\n")
    assert "site-cache" not in run(data__root=root)[1]
    (project / ".dvc/config.local").unlink()
    assert "site-cache" not in run(data__root="data/phantom")[1]


def test_real_releases(project, real_data):
    apply(Path("params.yaml"), "embedded", root=str(real_data.resolve()))
    assert load_params().judges == ["lexical", "semantic"]
    code, said = run()
    assert code == 0 and "slake, vqa_rad, vqa_med, path_vqa, cv_bench" in said


@pytest.mark.tiny
def test_cuda_that_is_not_there(project):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    code, said = run(model__device="cuda")
    assert code == 1 and "no CUDA device" in said and "set model.device to auto or cpu" in said
    code, said = run(model__device="auto", model__dtype="bfloat16")
    assert code == 0 and "bfloat16 has no fast path on most CPUs" in said


@pytest.mark.tiny
def test_a_gpu_must_be_one_a_process_and_have_a_compiler(project, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    code, said = run(model__device="cuda")
    assert code == 1 and "2 GPUs" in said and "CUDA_VISIBLE_DEVICES=0" in said
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    code, said = run(model__device="cuda")
    assert code == 1 and "no C compiler" in said and "build-essential and python3-dev" in said


def test_vllm_needs_a_gpu(project):
    code, said = run(rl__vllm="colocate")
    assert code == 1 and "rl.vllm = colocate" in said and "without a GPU" in said


def test_vllm_samples_with_the_qwens_only(project, tmp_path):
    folder = base(tmp_path / "other")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    code, said = run(base__source=str(folder), rl__vllm="colocate")
    assert code == 1 and "a base of Gemma 3" in said


@pytest.mark.parametrize(
    ("changes", "installed", "found"),
    [
        ({"model.quantization": "nf4"}, True, "model.quantization = nf4"),
        ({}, False, "the package vllm is not installed"),
        ({"rl.vllm": "server", "rl.vllm_url": "https://vllm.example.org"}, True, "a public address"),
        ({"rl.vllm": "server", "rl.vllm_url": "http://127.0.0.1:9"}, True, "no vLLM server"),
    ],
)
def test_what_vllm_cannot_do_is_refused(monkeypatch, changes, installed, found):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: installed or None)
    with pytest.raises(UserError, match=re.escape(found)):
        preflight.check_vllm(with_vllm(**changes), "cuda")


def with_vllm(**changes):
    params = load_params(ROOT / "params.yaml")
    for key, value in {"rl.vllm": "colocate", **changes}.items():
        block, _, name = key.partition(".")
        setattr(getattr(params, block), name, value)
    return params


@pytest.mark.parametrize(("prompts", "warned"), [(4, True), (32, False)])
def test_check_says_when_vllm_pays(monkeypatch, capsys, prompts, warned):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: True)
    preflight.check_vllm(with_vllm(**{"rl.prompts_per_step": prompts}), "cuda")
    said = capsys.readouterr().out
    assert f"{8 * prompts} completions at once" in said and ("probably faster" in said) is warned


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (
            {"weight_transfer_config": {"backend": "nccl"}, "model_config": {"logprobs_mode": "processed_logprobs"}},
            None,
        ),
        (
            {"weight_transfer_config": None, "model_config": {"logprobs_mode": "raw_logprobs"}},
            "weight transfer: False",
        ),
        (None, "HTTP 404 at /server_info"),
    ],
)
def test_a_server_for_rollouts_has_trls_settings(config, found):
    with server_info(config) as url:
        expected = pytest.raises(UserError, match=found) if found else nullcontext()
        with expected:
            check_server(url)


@contextmanager
def server_info(config):
    """A server whose `/server_info` is vLLM's; 404 if `config` is None."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if config is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"vllm_config": config}).encode())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
