"""How stages are started on several processes; that they work together is tested in tests/tiny/test_processes.py."""

import subprocess
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

from stages import launch
from stages.errors import UserError
from stages.params import load_params


@pytest.fixture
def started(monkeypatch):
    """The command lines that would be run."""
    lines = []

    def run(command, env):
        assert env[launch.STARTED] == "1"
        lines.append(" ".join(command[1:]))
        return SimpleNamespace(returncode=0)

    monkeypatch.delenv(launch.STARTED, raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    return lines


@pytest.fixture
def params(repository):
    return load_params(repository / "params.yaml")


def test_one_process_does_the_work_itself(started, params):
    assert not launch.on_several_processes(params, "stages.sft")
    assert started == []


@pytest.mark.parametrize("cuda", [True, False])
def test_processes_are_started_by_accelerate_or_on_a_cpu_by_torchrun(
    started, params, monkeypatch, cuda
):
    monkeypatch.setattr(launch, "_cuda", lambda: cuda)
    params.model.device, params.accelerate.processes = "auto", 2
    assert launch.on_several_processes(params, "stages.infer", ["--model", "base"])
    (line,) = started
    assert line.endswith("-m stages.infer --model base")
    assert ("accelerate.commands.launch --multi_gpu --num_processes 2" in line) == cuda
    assert ("torch.distributed.run --standalone --nproc_per_node 2" in line) != cuda


def test_a_config_file_is_handed_on_and_must_be_there(started, params, repository):
    params.accelerate.config = str(repository / "stages/accelerate/fsdp.yaml")
    assert launch.on_several_processes(params, "stages.grpo")
    assert "fsdp.yaml --num_processes 1 -m stages.grpo" in started[0]
    params.accelerate.config = "nowhere.yaml"
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        launch.on_several_processes(params, "stages.grpo")


def test_a_process_that_fails_ends_the_stage(params, monkeypatch):
    monkeypatch.delenv(launch.STARTED, raising=False)
    params.model.device, params.accelerate.processes = "cpu", 2
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=3))
    with pytest.raises(UserError, match="exit code 3"):
        launch.on_several_processes(params, "stages.sft")


@pytest.mark.parametrize(
    ("name", "kind", "settings", "plugin"),
    [
        ("ddp", "MULTI_GPU", None, None),
        ("fsdp", "FSDP", "fsdp_config", FullyShardedDataParallelPlugin),
        ("deepspeed", "DEEPSPEED", "deepspeed_config", DeepSpeedPlugin),
    ],
)
def test_the_shipped_config_files_are_accelerates(repository, name, kind, settings, plugin):
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    config = load_config_from_file(str(repository / f"stages/accelerate/{name}.yaml"))
    assert (config.distributed_type, config.mixed_precision) == (kind, "bf16")
    if plugin:
        given = getattr(config, settings)
        known = {f.removeprefix("fsdp_") for f in plugin.__dataclass_fields__}
        known |= {"transformer_layer_cls_to_wrap", "offload_optimizer_device", "version"}
        assert {key.removeprefix("fsdp_") for key in given} <= known
        if layer := given.get("fsdp_transformer_layer_cls_to_wrap"):
            assert hasattr(modeling_qwen2_vl, layer)
