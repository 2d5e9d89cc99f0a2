"""How stages are started on several processes; that they work together is tested in tests/tiny/test_processes.py."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

from rarl.errors import UserError
from rarl.params import load_params
from rarl.processes import launch


@pytest.fixture
def started(monkeypatch):
    """The command lines that would be run."""
    lines = []

    def run(command, env):
        assert env[launch.STARTED] == "1"
        lines.append(" ".join(command[1:]))
        return 0

    monkeypatch.delenv(launch.STARTED, raising=False)
    monkeypatch.setattr(launch, "run_launcher", run)
    return lines


@pytest.fixture
def params(repository):
    return load_params(repository / "params.yaml")


def test_one_process_does_the_work_itself(started, params):
    assert not launch.on_several_processes(params, "stages.sft")
    assert started == []


@pytest.mark.parametrize("cuda", [True, False])
def test_processes_are_started_by_accelerate_or_on_a_cpu_by_torchrun(started, params, monkeypatch, cuda):
    monkeypatch.setattr(launch, "_cuda", lambda: cuda)
    params.model.device, params.accelerate.processes = "auto", 2
    assert launch.on_several_processes(params, "stages.infer", ["--model", "base"])
    (line,) = started
    assert line.endswith("-m stages.infer --model base")
    assert ("accelerate.commands.launch --multi_gpu --num_processes 2" in line) == cuda
    assert ("torch.distributed.run --standalone --nproc_per_node 2" in line) != cuda


def test_a_config_file_is_handed_on_and_must_be_there(started, params, repository, monkeypatch):
    params.model.device = "auto"
    monkeypatch.setattr(launch, "_cuda", lambda: True)
    params.accelerate.config = str(repository / "rarl/accelerate/fsdp.yaml")
    assert launch.on_several_processes(params, "stages.grpo")
    assert "fsdp.yaml --num_processes 1 -m stages.grpo" in started[0]
    params.accelerate.config = "nowhere.yaml"
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        launch.on_several_processes(params, "stages.grpo")


ZERO = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  "


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (ZERO + "deepspeed_config_file: ds.json", "cannot be read"),
        (ZERO + "deepspeed_config_file: nowhere.json", "cannot be read"),
        ("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 1", "fsdp_version 1"),
        ("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2", "FSDP without a GPU"),
        (ZERO + "zero_stage: 2", "DEEPSPEED without a GPU"),
        ("a: [", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_what_could_not_be_saved_or_would_not_be_done_is_refused_at_once(
    started, params, tmp_path, monkeypatch, file, reason
):

    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text("{", encoding="utf-8")
    Path("engine.yaml").write_text(file, encoding="utf-8")
    params.accelerate.config = "engine.yaml"
    from rarl.running import preflight

    for refuse in (preflight.check_config, lambda p: launch.on_several_processes(p, "stages.sft")):
        with pytest.raises(UserError, match=reason) as refused:
            refuse(params)
        assert "engine.yaml" in str(refused.value) and not started


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_shared_weights_are_refused_with_nf4_and_with_8_bit_adamw(params, repository, monkeypatch, name):
    params.model.device, params.train.optimizer = "auto", "adamw_8bit"
    monkeypatch.setattr(launch, "_cuda", lambda: True)
    params.accelerate.config = str(repository / f"rarl/accelerate/{name}.yaml")
    with pytest.raises(UserError, match=f"{name.upper()} with train.optimizer = adamw_8bit"):
        launch.check_config(params)
    params.model.quantization = "nf4"
    with pytest.raises(UserError, match=f"{name.upper()} with model.quantization = nf4"):
        launch.check_config(params)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_that_is_not_installed_is_missed_at_once(params, repository, monkeypatch):
    params.model.device = "auto"
    monkeypatch.setattr(launch, "_cuda", lambda: True)
    params.accelerate.config = str(repository / "rarl/accelerate/deepspeed.yaml")
    with pytest.raises(UserError, match="pip install deepspeed"):
        launch.check_config(params)


def test_a_process_that_fails_ends_the_stage(params, monkeypatch):
    monkeypatch.delenv(launch.STARTED, raising=False)
    params.model.device, params.accelerate.processes = "cpu", 2
    monkeypatch.setattr(launch, "run_launcher", lambda command, environment: 3)
    with pytest.raises(UserError, match="exit code 3"):
        launch.on_several_processes(params, "stages.sft")


@pytest.mark.parametrize(
    ("name", "kind", "settings", "plugin"),
    [
        ("ddp", "MULTI_GPU", None, None),
        ("fsdp", "FSDP", "fsdp_config", FullyShardedDataParallelPlugin),
        ("deepspeed", "DEEPSPEED", "deepspeed_config", DeepSpeedPlugin),
        ("zero3", "DEEPSPEED", "deepspeed_config", DeepSpeedPlugin),
    ],
)
def test_the_shipped_config_files_are_accelerates(repository, name, kind, settings, plugin):
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    config = load_config_from_file(str(repository / f"rarl/accelerate/{name}.yaml"))
    assert (config.distributed_type, config.mixed_precision) == (kind, "bf16")
    if plugin:
        given = getattr(config, settings)
        known = {f.removeprefix("fsdp_") for f in plugin.__dataclass_fields__}
        known |= {"transformer_layer_cls_to_wrap", "offload_optimizer_device", "version"}
        assert {key.removeprefix("fsdp_") for key in given} <= known
        if layer := given.get("fsdp_transformer_layer_cls_to_wrap"):
            assert hasattr(modeling_qwen2_vl, layer)
