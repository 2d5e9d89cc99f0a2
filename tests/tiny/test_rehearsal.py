"""The rehearsal: every part at a tiny size through the stages' code, its base's files, and what it refuses."""

import copy
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors import safe_open

from rarl.cli.rehearse import main
from rarl.errors import UserError
from rarl.params import load_params
from rarl.records import Prediction, predictions_file, read_json, read_records, write_json
from rarl.rehearsal import run
from rarl.rehearsal.bases import config_json
from rarl.rehearsal.parts import PARTS
from rarl.rehearsal.project import rehearsal_params, write_project


def tiny(slug: str) -> dict:
    """A published configuration with few and narrow layers, and a vocabulary above the tokenizer's."""
    config = copy.deepcopy(config_json(slug))
    text = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": 1500}
    vision = {"depth": 2, "num_heads": 4}
    if slug == "qwen3_vl_2b":
        config["text_config"] |= text | {"head_dim": 128}
        vision |= {"hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 128}
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 256}
    else:
        config |= text
        config["rope_scaling"]["mrope_section"] = [4, 6, 6]
        vision |= {"embed_dim": 64, "hidden_size": 128}
    config["vision_config"] |= vision
    return config


@pytest.fixture
def workspace(repository, tmp_path, monkeypatch):
    """A folder of one's own with the shipped parameters and the embedded base."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(repository / "data/base")
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("slug", ["qwen2_vl_2b", "qwen3_vl_2b"])
def test_every_part_runs_and_the_base_has_the_hubs_layout(workspace, monkeypatch, slug):
    monkeypatch.setattr("rarl.rehearsal.weights.SHARD_BYTES", 600_000)
    params = load_params()
    params.rl.num_iterations, params.rl.mask_truncated = 2, True  # replaced: one step, and random completions
    params = rehearsal_params(params, 84 * 84, 1, 2, 3)
    write_project(workspace / "rehearsal", params, tiny(slug))
    monkeypatch.chdir("rehearsal")
    params = load_params()
    for part in PARTS.values():
        part(params)

    index = read_json("base/model.safetensors.index.json")["weight_map"]
    assert len(set(index.values())) > 1 and "lm_head.weight" not in index  # tied
    first = "model.embed_tokens.weight" if slug == "qwen2_vl_2b" else "model.language_model.embed_tokens.weight"
    with safe_open(f"base/{index[first]}", "pt") as file:
        embedding = file.get_tensor(first)
    assert str(embedding.dtype) == "torch.bfloat16" and embedding.shape == (1500, 128)
    assert not (embedding[0] == embedding[1]).all()
    for method in ("sft", "grpo", "rarl"):
        assert read_json(f"metrics/train/{method}.json")["steps"] == 1
    for model in ("base", "sft", "grpo", "rarl"):
        file = predictions_file(model, params.modes[0], params.own_test)
        assert [one.error for one in read_records(file, Prediction)] == [None]


def test_names_of_the_weights_are_those_of_the_published_index():
    from rarl.rehearsal.bases import parse
    from rarl.rehearsal.weights import published_tensors

    file = Path(os.environ.get("RARL_DATA_ROOT", ""), "qwen2-vl-2b/model.safetensors.index.json")
    if not file.is_file():
        pytest.skip("no qwen2-vl-2b below RARL_DATA_ROOT")
    assert set(published_tensors(parse(config_json("qwen2_vl_2b")))) == set(read_json(file)["weight_map"])


def test_the_command_compares_and_cleans_up(workspace, monkeypatch):
    write_json("small/config.json", tiny("qwen2_vl_2b"))
    measured = {"seconds": 2.4, "peak": 10**9}
    monkeypatch.setattr(run, "run_part", lambda part, folder: measured)
    for arguments in (["--quantization", "nf4"], [], ["--keep", "--json"]):
        result = CliRunner().invoke(main, ["--base", "small", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    quantized, written = (read_json(run.RESULTS)[f"small, {name}"] for name in ("nf4", "none"))
    assert quantized["quantization"] == "nf4"
    assert [row["part"] for row in written["parts"]] == list(PARTS)
    assert json.loads(result.stdout) == written
    (kept,) = (workspace / ".cache").glob("rehearsal-*")
    assert (kept / "data/curated/train.jsonl").is_file() and f"kept: .cache/{kept.name}" in result.output
    table = run.RESULTS.with_suffix(".md").read_text()
    plan = written["parts"][1]["plan_gb"]
    assert f"| encode | {plan:.2f} | 1.00 | {round(100 * (plan - 1)):+d} % | 2 |" in table


def test_what_has_no_room_is_refused_before_anything_is_written(workspace, monkeypatch):
    monkeypatch.setattr(run, "available", lambda device: 3.0)
    arguments = (load_params(), 84 * 84, 1, 2, 3, False)
    with pytest.raises(UserError, match=r"free memory for (sft|grpo|rarl)\n  found:    3\.0 GB\n  expected: 5\.\d GB"):
        run.rehearse("qwen2_vl_2b", *arguments)
    monkeypatch.setattr(run, "available", lambda device: 1000.0)
    monkeypatch.setattr(run, "OTHER_FILES", 10**9)
    with pytest.raises(UserError, match=r"free disk in \.cache"):
        run.rehearse("qwen2_vl_2b", *arguments)
    with pytest.raises(UserError, match=r"a gemma3\n.*a Qwen"):
        run.rehearse("gemma3_4b", *arguments)
    arguments[0].model.quantization = "nf4"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="bitsandbytes is not installed"):
        run.rehearse("qwen2_vl_2b", *arguments)
    assert not list((workspace / ".cache").glob("rehearsal-*"))


def test_a_part_that_fails_shows_its_last_lines(tmp_path):
    with pytest.raises(UserError, match=r"rehearsal, sft\n  found:    exit code 1\n(.*\n)*.*no such file"):
        run.run_part("sft", tmp_path)
