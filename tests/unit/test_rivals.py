"""Rivals: their definitions, how their answers are read, what is checked before an hour of work, and their folders."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from rarl import rivals
from rarl.cli.rival import main as add_rival
from rarl.errors import UserError
from rarl.forms import read
from rarl.params import Rival, load_params, parse_params
from rarl.records import read_json, write_json
from rarl.registry import MODELS, RIVAL_COLOURS
from rarl.running.leftovers import remove_leftovers
from stages.rival import main

ROOT = Path(__file__).parents[2]
COMMIT = "0" * 39 + "a"


def rival(**settings) -> Rival:
    return Rival(**{"label": "Other", **settings})


# Definitions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "either `source`"),
        ({"source": "a/b", "base_url": "http://localhost/v1", "model": "m"}, "either `source`"),
        ({"base_url": "http://localhost/v1"}, "an endpoint needs `model`"),
        ({"base_url": "http://localhost/v1", "model": "m", "adapter": "x"}, "`adapter` needs `source`"),
        ({"source": "a/b", "prompt": "Answer."}, "{question}"),
        ({"base_url": "http://localhost/v1", "model": "m", "max_cost_usd": 1.0}, "price_per_million_input"),
    ],
)
def test_definitions_that_do_not_fit_together(settings, fault):
    with pytest.raises(ValueError, match=fault):
        rival(**settings)


def changed(**changes) -> str:
    raw = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return json.dumps(raw | changes)  # JSON is YAML


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"models": ["base", "nobody"]}, "'nobody' is neither a model's own name nor defined under `rival:`"),
        ({"rival": {"sft": {"label": "S", "source": "embedded"}}}, "rival.sft: a slug that is no model's own"),
        (
            {
                "models": ["base", "other"],
                "rival": {"other": {"label": "O", "source": "embedded", "modes": ["direct"]}},
            },
            "rival.other.modes: 'reasoning' among them",
        ),
    ],
)
def test_lists_that_name_no_usable_rival(changes, found):
    with pytest.raises(UserError) as error:
        parse_params(changed(**changes), Path("params.yaml"))
    assert found in str(error.value)


PUBLISHED = ["medvlm_r1", "med_r1", "lingshu_7b", "medgemma_4b", "qwen2_5_vl_7b", "qwen2_5_vl_3b"]


def test_shipped_definitions_are_added_as_they_are_and_consent_to_nothing(tmp_path):
    path = shutil.copy(ROOT / "params.yaml", tmp_path)
    before = load_params(ROOT / "params.yaml")
    assert [*before.rival] == ["seed_11"]
    listed = CliRunner().invoke(add_rival, []).output.splitlines()
    assert [line.split()[0] for line in listed] == [*PUBLISHED, "local_server", "gpt_4o_mini"]
    result = CliRunner().invoke(add_rival, [*PUBLISHED, "local_server", "gpt_4o_mini", "--params", str(path)])
    params = load_params(Path(path))
    assert result.exit_code == 0 and params.models == [*before.models, *PUBLISHED, "local_server", "gpt_4o_mini"]
    assert not any(one.consent for one in params.rival.values())
    assert "# Every knob" in Path(path).read_text(encoding="utf-8")


def test_an_unknown_definition_changes_nothing(tmp_path):
    path = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    result = CliRunner().invoke(add_rival, ["medvlm_r1", "nobody", "--params", str(path)])
    assert result.exit_code == 1 and "one of medvlm_r1" in result.output
    assert path.read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_a_file_that_is_missing_or_has_no_rivals(tmp_path):
    missing = CliRunner().invoke(add_rival, ["local_server", "--params", str(tmp_path / "params.yaml")])
    assert missing.exit_code == 1 and "no such file" in missing.output and "to do:" in missing.output
    raw = json.loads(changed(models=["base"]))
    del raw["rival"]
    (tmp_path / "params.yaml").write_text(json.dumps(raw))
    assert CliRunner().invoke(add_rival, ["local_server", "--params", str(tmp_path / "params.yaml")]).exit_code == 0
    assert [*load_params(tmp_path / "params.yaml").rival] == ["local_server"]


def test_rivals_are_asked_under_their_modes_only():
    params = load_params(ROOT / "params.yaml")
    params.rival["other"] = rival(source="embedded", modes=["shuffled", "reasoning"])
    assert params.modes_of("other") == ["reasoning", "shuffled"] and params.modes_of("sft") == params.modes


def test_listed_rivals_have_labels_and_colours_of_their_own():
    params = load_params(ROOT / "params.yaml")
    params.rival = {name: rival(label=name, source="embedded") for name in ("one", "two", "three")}
    params.models = ["base", "three", "sft", "two"]
    shown = params.all_models
    assert shown["base"] == MODELS["base"] and shown["two"].label == "two"
    assert [shown[slug].colour for slug in ("three", "two")] == list(RIVAL_COLOURS[:2])


#: Severity 1 in linear RGB (Machado, Oliveira and Fernandes, 2009).
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colour: str, sight) -> np.ndarray:
    """CIE L*a*b* (1976, D65) of a colour."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.clip(
        np.array(sight) @ np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4), 0, 1
    )
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_can_be_told_apart_whatever_the_reader_sees(sight):
    shown = [model.colour for model in MODELS.values()] + [*RIVAL_COLOURS]
    for first, second in combinations(shown, 2):
        if second in RIVAL_COLOURS:
            assert np.linalg.norm(lab(first, SIGHT[sight]) - lab(second, SIGHT[sight])) > 17, (first, second)


# Answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "form", "parts"),
    [
        ("<think>So.</think> <answer>Yes</answer>", "tags", ("So.", "Yes")),
        ("<think>So.</think> \\boxed{Yes}", "boxed", ("So.", "Yes")),
        ("It is \\boxed{No}, or rather \\boxed{\\text{Yes}}.", "boxed", ("It is \\boxed{No}, or rather", "Yes")),
        ("\\boxed {a \\frac{1}{2} b}", "boxed", (None, "a \\frac{1}{2} b")),
        ("So \\boxed{cut off", "boxed", ("So", "cut off")),
        ("<think>So.</think> Yes", "boxed", ("So.", "Yes")),
        ("So \\boxed{No}.</think> \\boxed{Yes}", "boxed", ("So \\boxed{No}.", "Yes")),
        ("<think>So.</think> <answer>Yes</answer>\n", "plain", ("So.", "<answer>Yes</answer>")),
        ("So.</think>\n\nYes", "plain", ("So.", "Yes")),
        ("<think>Cut off", "plain", (None, "")),
        ("", "boxed", (None, "")),
    ],
)
def test_answers_are_read_in_each_form(completion, form, parts):
    assert read(completion, form) == parts


# Checks and folders ---------------------------------------------------------------------------------


@pytest.fixture
def bases(tmp_path, monkeypatch):
    """Two bases, and an adapter of the first in PEFT's layout."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_json(f"{name}/config.json", {"model_type": "qwen2_vl"})
        Path(name, "model.safetensors").write_text(name)
        Path(name, "chat_template.jinja").write_text("{% if image %}")
    write_json("adapter/adapter_config.json", {"base_model_name_or_path": "/elsewhere/one"})
    Path("adapter/adapter_model.safetensors").write_text("weights")
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "key", "found"),
    [
        ({"source": "nowhere"}, "rival.x.source = nowhere", "no such folder"),
        ({"source": "owner/name"}, "rival.x.revision = None", "no commit"),
        ({"source": "owner/name", "revision": "main"}, "rival.x.revision = main", "no commit"),
        ({"source": "one", "adapter": "gone"}, "rival.x.adapter = gone", "no such folder"),
        ({"source": "one", "adapter": "owner/name", "adapter_revision": "v1"}, "adapter_revision = v1", "no commit"),
        ({"source": "one", "adapter": "two"}, "rival.x.adapter = two", "no adapter_config.json"),
        ({"base_url": "https://a.org/v1", "model": "m"}, "rival.x.consent", "false"),
        (
            {"base_url": "http://localhost/v1", "model": "m", "api_key_env": "NO_KEY"},
            "api_key_env = NO_KEY",
            "no such",
        ),
    ],
)
def test_what_cannot_be_used_is_one_message(bases, settings, key, found, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UserError) as error:
        rivals.check("x", rival(**settings))
    where, what, *_ = error.value.parts
    assert key in where and found in what


def test_consent_says_that_images_leave_the_machine(bases):
    with pytest.raises(UserError, match="the image and the text of each question"):
        rivals.check("x", rival(base_url="https://a.org/v1", model="m"))
    rivals.check("x", rival(base_url="https://a.org/v1", model="m", consent=True))
    rivals.check("x", rival(base_url="http://localhost:8000/v1", model="m"))


def test_a_base_of_an_unknown_family_names_the_rival(bases):
    write_json("one/config.json", {"model_type": "bert"})
    with pytest.raises(UserError, match=r"rival\.x\.source = one\n.*bert"):
        rivals.check("x", rival(source="one"))


def test_weights_that_are_quantized_already_are_refused(bases):
    write_json("one/config.json", {"model_type": "qwen2_vl", "quantization_config": {"quant_method": "awq"}})
    with pytest.raises(UserError, match=r"rival\.x\.source = one\n.*quantized already"):
        rivals.check("x", rival(source="one"))


def test_a_hub_id_is_looked_up_in_the_cache(bases, monkeypatch, capsys):
    from huggingface_hub import constants

    settings = rival(source="owner/name", revision=COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(bases / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(bases / "hub"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"rival\.x\.source = owner/name\n.*HF_HUB_OFFLINE is set"):
        rivals.check("x", settings)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    rivals.check("x", settings)
    assert "owner/name will be downloaded" in capsys.readouterr().out
    write_json(f"hub/models--owner--name/snapshots/{COMMIT}/config.json", {"model_type": "bert"})
    with pytest.raises(UserError, match=r"rival\.x\.source = owner/name\n.*a model of type bert"):
        rivals.check("x", settings)


@pytest.mark.parametrize(
    ("config", "base", "source"),
    [
        # By the hash of the weights in our own layout, by the hub's name in others'.
        ({"base_model_name_or_path": "one"}, {"source": "one", "sha256": "0" * 64}, {"source": "two"}),
        ({"base_model_name_or_path": "Qwen/A"}, None, {"source": "Qwen/B", "revision": COMMIT}),
    ],
)
def test_an_adapter_of_another_base_is_refused(bases, config, base, source):
    write_json("adapter/adapter_config.json", config)
    if base:
        write_json("adapter/base.json", base)
    for use in (
        lambda one: rivals.check("x", one),
        lambda one: rivals.write_folder("x", one, Path("data/models/x")),
    ):
        with pytest.raises(UserError, match=r"rival.x.adapter = adapter\n.*an adapter of (one|Qwen/A)"):
            use(rival(**source, adapter="adapter"))
    shutil.rmtree("data")
    rivals.write_folder("x", rival(source="one", adapter="adapter") if not base else rival(source="one"), Path("x"))


def test_the_folder_of_a_rival_is_a_model_folder(bases):
    settings = rival(source="one", adapter="adapter", reads="boxed")
    rivals.check("x", settings)
    rivals.write_folder("x", settings, Path("x"))
    files = {path.name for path in Path("x").iterdir()}
    assert files == {"rival.json", "base.json", "adapter_config.json", "adapter_model.safetensors"}
    assert read_json("x/base.json")["source"] == "one" and read_json("x/rival.json")["reads"] == "boxed"


def test_budget_and_consent_are_not_in_the_folder_so_that_they_ask_nothing_again(bases):
    settings = {"base_url": "http://localhost/v1", "model": "m"}
    for folder, more in (("x", {}), ("y", {"consent": True, "max_calls": 3, "timeout_s": 5.0})):
        rivals.write_folder("x", rival(**settings, **more), Path(folder))
    assert [path.name for path in Path("x").iterdir()] == ["rival.json"]
    assert Path("x/rival.json").read_bytes() == Path("y/rival.json").read_bytes()


def test_a_folder_that_came_after_its_pointer_is_not_taken_unseen(bases):
    settings = rival(source="later")
    rivals.write_folder("x", settings, Path("data/models/x"))
    shutil.copytree("one", "later")
    with pytest.raises(UserError, match="dvc repro -s -f rival@x"):
        rivals.check_written("x", settings, Path("data/models/x"))
    rivals.write_folder("x", settings, Path("data/models/x"))
    rivals.check_written("x", settings, Path("data/models/x"))


def test_what_is_no_longer_listed_goes_with_rivals(bases):
    params = load_params(ROOT / "params.yaml")
    for model in (*params.models, "gone"):
        write_json(f"data/predictions/{model}/rival.json", {})
        write_json(f"metrics/scores/{model}.json", {})
    Path("data/predictions/.gitignore").write_text("")
    assert [str(path) for path in remove_leftovers(params)] == ["data/predictions/gone", "metrics/scores/gone.json"]


def test_shipped_definitions_can_be_written_where_nothing_can_be_reached(bases, monkeypatch):
    """DVC runs the stage for all of them, listed or not."""
    from click.testing import CliRunner

    shutil.copy(ROOT / "params.yaml", "params.yaml")
    (bases / "data").mkdir(exist_ok=True)
    for name in ("base", "rivals"):
        (bases / "data" / name).symlink_to(ROOT / "data" / name)
    for slug in load_params().rival:
        result = CliRunner().invoke(main, ["--rival", slug])
        assert result.exit_code == 0, result.output
    assert read_json("data/models/seed_11/base.json")["source"] == "data/base"
