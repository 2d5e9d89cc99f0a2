"""vLLM: rollouts through TRL with a stand-in for the engine, and the real server where RARL_VLLM names its program."""

import copy
import os
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from click.testing import CliRunner
from one_step import first_batch
from trl.generation import vllm_client, vllm_generation
from trl.trainer import grpo_trainer

from rarl import rivals
from rarl.cli.serve import ROLLOUTS, arguments
from rarl.cli.serve import main as serve
from rarl.inference import predictions
from rarl.models.base_files import base_pointer
from rarl.models.loading import load
from rarl.params import Rival, load_params
from rarl.pretraining.training import save_base
from rarl.records import Prediction, predictions_file, read_json, read_records, write_json
from rarl.sharing.model_folder import merge
from rarl.training.rl import prepare, train_rl
from rarl.training.vllm import check_server


class Engine:
    """Stands in for `trl.generation.vllm_generation.VLLMGeneration`; a token's log-probability tells which it is."""

    def __init__(self, model, mode, generation_kwargs, **settings):
        self.model, self.mode, self.kwargs, self.settings, self.synced = model, mode, generation_kwargs, settings, 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        assert len(images) == len(prompts) and all(len(shown) == 1 for shown in images)
        generator = torch.Generator().manual_seed(self.synced)
        lengths = torch.randint(2, 12, [len(prompts)], generator=generator).tolist()
        completions = [torch.randint(5, 500, [length], generator=generator).tolist() for length in lengths]
        return prompts, completions, [[[log_prob(token)] for token in row] for row in completions], None


def log_prob(token):
    return -6 - token / 1000


@pytest.fixture
def engine(mixed, monkeypatch):
    """Parameters of a colocated engine that is not there."""
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Engine)
    params = copy.deepcopy(mixed)
    params.rl.vllm, params.rl.micro_prompts = "colocate", 1
    return params


def test_rollouts_of_vllm_are_corrected_by_importance_sampling(engine, capsys):
    """Row by row, after the rows of a step were put into passes of whole groups."""
    _, trainer, _ = prepare("grpo", engine)
    batch = first_batch(trainer)
    assert trainer.vllm_generation.synced == 1 and "stock TRL" not in capsys.readouterr().err
    mask = batch["completion_mask"].bool()
    given, own = batch["sampling_per_token_logps"], batch["old_per_token_logps"]
    torch.testing.assert_close(given[mask], log_prob(batch["completion_ids"][mask]))
    ratio = ((own - given) * mask).sum(-1, keepdim=True).exp()
    torch.testing.assert_close(batch["importance_sampling_ratio"], ratio.masked_fill(ratio > 3, 0))
    assert len({ids.tobytes() for ids in batch["prompt_ids"].numpy()}) == 1, "one prompt a pass"


def test_vllm_loads_the_pinned_base_with_the_size_of_images_that_is_trained(engine):
    _, trainer, loaded = prepare("grpo", engine)
    folder = Path(loaded.model.name_or_path)
    settings = read_json(folder / "preprocessor_config.json")
    assert settings["max_pixels"] == engine.model.max_pixels and settings["processor_class"] == "Qwen2VLProcessor"
    assert (folder / "model.safetensors").resolve() == Path(
        read_json("data/models/base/base.json")["source"], "model.safetensors"
    )
    blocked = trainer.vllm_generation.kwargs["logit_bias"]
    assert set(blocked.values()) == {-100.0} and loaded.processor.image_token_id in blocked


def test_a_run_with_vllm_ends_with_an_adapter(engine):
    metrics = train_rl("grpo", engine)
    assert metrics["steps"] == engine.rl.max_steps
    assert load("data/models/grpo", engine.model)
    assert "vllm" not in Path("data/models/grpo/adapter_config.json").read_text()


def test_the_shipped_base_has_the_image_settings_in_the_file_that_vllm_needs(repository, random_base, tmp_path):
    """Stock processors of the Qwens read the settings of videos from it."""
    save_base(*random_base[1:], tmp_path)
    for folder in (repository / "data/base", tmp_path):
        settings = read_json(folder / "preprocessor_config.json")
        config = read_json(folder / "processor_config.json")
        assert settings == config["image_processor"] and config["processor_class"] == "Qwen2VLProcessor"
        assert settings["image_processor_type"] == "Qwen2VLImageProcessor"


def test_serve_prints_the_command_for_the_base_and_its_adapters(project):
    adapter, whole = Path("data/models/sft"), Path("data/models/grpo/full")
    pointer = read_json("data/models/base/base.json")
    write_json(adapter / "base.json", pointer)
    write_json(adapter / "adapter_config.json", {"r": 12})
    (project / "params.yaml").write_bytes((Path(__file__).parents[2] / "params.yaml").read_bytes())
    said = CliRunner().invoke(serve, ["base", "sft", "--vllm", "/opt/vllm", "--print", "--rollouts"]).output
    assert said.startswith(
        "VLLM_SERVER_DEV_MODE=1 /opt/vllm serve .cache/vllm --served-model-name base --dtype float32 "
    )
    assert "--max-lora-rank 16 --lora-modules sft=data/models/sft " in said and "--enable-scale-out" in said
    assert Path(".cache/vllm/model.safetensors").resolve() == Path(pointer["source"], "model.safetensors")

    write_json(whole.with_name("base.json"), pointer)
    whole.mkdir()
    write_json("data/models/rarl/base.json", {**pointer, "sha256": "other"})
    write_json("merged/config.json", {})
    for name, found in {"grpo": "full weights", "rarl": "a model of", "merged": "vllm serve merged"}.items():
        assert found in CliRunner().invoke(serve, ["base", name, "--print"]).output
    assert "no such program" in CliRunner().invoke(serve, ["base", "--vllm", "/not/there"]).output


PROGRAM = os.environ.get("RARL_VLLM")
real = pytest.mark.skipif(PROGRAM is None, reason="RARL_VLLM does not name the program of vLLM (tests/vllm_env.sh)")
PORT = 8931


@contextmanager
def running(command, **environment):
    """A server, from when it answers until the block ends; its log is `server.log`."""
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": "", **environment}
    command = [*command, "--port", str(PORT), "--enforce-eager", "--max-model-len", "1024"]
    with open("server.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **settings})
        try:
            while True:
                assert process.poll() is None, Path("server.log").read_text(encoding="utf-8")[-4000:]
                with suppress(OSError), urlopen(f"http://127.0.0.1:{PORT}/health"):
                    break
                time.sleep(1)
            yield f"http://127.0.0.1:{PORT}"
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def default(repository, tmp_path, monkeypatch):
    """Parameters and data of the default run, its base, and the adapter that is a rival of it."""
    if not (repository / "data/features/training").is_dir():
        pytest.skip("needs the default's questions and features: `dvc repro encode`")
    for name in ("base", "curated", "features", "phantom", "rivals"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(repository / "data" / name)
    shutil.copyfile(repository / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    params = load_params()
    params.models, params.benchmarks, params.modes = ["base", "seed_11"], [], ["reasoning"]
    write_json("data/models/base/base.json", base_pointer(params.base))
    rivals.write_folder("seed_11", params.rival["seed_11"], Path("data/models/seed_11"))
    return params


def asked(params, url, model):
    """Completions of a model at a server, as a rival, and of the same weights here."""
    rival = Rival(label="vLLM", base_url=f"{url}/v1", model=model, timeout_s=600)
    params = params.model_copy(update={"rival": {"vllm": rival}})
    rivals.write_folder("vllm", rival, Path("data/models/vllm"))
    found = []
    for name in (model if Path("data/models", model).is_dir() else "seed_11", "vllm"):
        started = time.perf_counter()
        predictions.infer(name, params)
        file = predictions_file(name, "reasoning", "silvar_med")
        found.append([one.completion for one in read_records(file, Prediction)])
        print(f"{name}: {len(found[-1]) / (time.perf_counter() - started):.0f} questions a second")
    return found


@real
def test_a_server_gives_our_greedy_texts_and_log_probabilities(default, monkeypatch):
    """Of the base and an adapter; and through TRL, for a step of GRPO."""
    with running([PROGRAM, *arguments(("base", "seed_11"), default), *ROLLOUTS], VLLM_SERVER_DEV_MODE="1") as url:
        check_server(url)
        for model in ("base", "seed_11"):
            ours, served = asked(default, url, model)
            assert len(ours) == 150 and served == ours
        # TRL copies weights over NCCL, which needs a GPU. Before the first update they are those of the base.
        for module in (vllm_client, vllm_generation):
            monkeypatch.setattr(module, "is_vllm_available", lambda: True)
        monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda self, device: None)
        monkeypatch.setattr(vllm_client.VLLMClient, "update_named_params", lambda self, names, weights: [*weights])
        default.rl.vllm, default.rl.vllm_url = "server", url
        batch = first_batch(prepare("grpo", default)[1])
        mask = batch["completion_mask"].bool()
        assert len(mask) == 32
        torch.testing.assert_close(
            batch["sampling_per_token_logps"][mask], batch["old_per_token_logps"][mask], rtol=0, atol=1e-4
        )


@real
@pytest.mark.parametrize("folder", ["data/base", "merged"])
def test_shipped_and_merged_folders_serve_as_they_are(default, folder):
    if folder == "merged":
        merge("seed_11", Path("merged"), default)
    with running([PROGRAM, "serve", folder, "--served-model-name", Path(folder).name, "--dtype", "float32"]) as url:
        ours, served = asked(default, url, Path(folder).name)
        assert served == ours
