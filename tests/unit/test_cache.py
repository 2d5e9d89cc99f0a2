"""Keys of resumable work: what changes them, and what does not."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rarl import cache
from rarl.params import load_params

CODE = '''"""A module."""
SIDE = 4  # pixels


class Image:
    """An image."""

    side: int = SIDE
    """Its side."""

    def area(self):
        "Square pixels."
        return self.side ** 2
'''


CUDA = cache.CUDA_ONLY[0].removeprefix("rarl/").removesuffix(".py")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of two stages over three modules, a text and a folder."""
    deps = {"sft": ["data/x", "rarl/one.py", "rarl/models"], "grpo": ["rarl/one.py", "rarl/rl.py", "rarl/models"]}
    YAML().dump({"stages": {name: {"deps": paths} for name, paths in deps.items()}}, tmp_path / "dvc.yaml")
    (tmp_path / f"rarl/{CUDA}").parent.mkdir(parents=True)
    for name in ("one", "rl", "models/plain", CUDA):
        (tmp_path / f"rarl/{name}.py").write_text(CODE)
    (tmp_path / "rarl/models/prompt.txt").write_text("Is it?")
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    return tmp_path


def keys(device: str = "cpu") -> list[str]:
    return [cache.key_of(code=cache.code_key(stage, device)) for stage in ("sft", "grpo")]


@pytest.mark.parametrize(
    "same",
    [
        CODE.replace("# pixels", "# of an image\n#: Everything."),
        CODE.replace("A module.", "Images of one side."),
        CODE.replace('    """An image."""\n\n', ""),
        CODE.replace('    """Its side."""\n', ""),
        CODE.replace("self.side ** 2", "(\n            self.side**2\n        )"),
    ],
    ids=["comment", "docstring", "no docstring", "attribute's docstring", "formatting"],
)
def test_comments_docstrings_and_formatting_are_in_no_key(project, same):
    before = keys()
    assert same != CODE
    (project / "rarl/one.py").write_text(same)
    assert keys() == before


@pytest.mark.parametrize(
    ("file", "changed"),
    [("one", ["sft", "grpo"]), ("rl", ["grpo"]), ("models/plain", ["sft", "grpo"]), (CUDA, [])],
)
def test_code_is_in_the_keys_of_the_stages_that_run_it(project, monkeypatch, file, changed):
    before, on_gpu = keys(), keys("cuda")
    (project / f"rarl/{file}.py").write_text(CODE.replace("** 2", "** 3"))
    after = keys()
    assert [stage for stage, old, new in zip(("sft", "grpo"), before, after) if old != new] == changed
    assert keys("cuda") != on_gpu, "what a GPU runs is in a GPU's keys"


def test_texts_and_the_place_of_the_project_are_in_no_key_of_code(project, tmp_path):
    before = keys()
    (project / "rarl/models/prompt.txt").write_text("Is it so?")
    (project / "rarl/models/__pycache__").mkdir()
    project.rename(tmp_path.with_name("elsewhere"))
    cache.ROOT = tmp_path.with_name("elsewhere")
    assert keys() == before


def test_every_stage_that_keeps_work_has_code_in_its_key():
    for stage in ("encode", "encode_benchmarks", "sft", "grpo", "rarl", "infer"):
        assert "rarl/models/loading.py" in cache.code_key(stage, "cpu")
    assert "rarl/training/rl.py" in cache.code_key("rarl", "cpu")
    assert "rarl/rewards/lexicon.yaml" in cache.code_key("rarl", "cpu")
    assert {"rarl/answers/sentences.py", "rarl/judges/lexical.py"} <= cache.code_key("judge", "cpu").keys()
    assert not {"rarl/training/rl.py", "rarl/rewards/format.py"} & cache.code_key("sft", "cpu").keys()
    assert set(cache.CUDA_ONLY) == cache.code_key("sft", "cuda").keys() - cache.code_key("sft", "cpu").keys()


def test_work_of_another_versions_keys_is_named_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cache.announce_format()
    assert not capsys.readouterr().out
    cache.announce_format()
    Path(".cache/format").unlink()
    Path(".cache/training/0123").mkdir(parents=True)
    cache.announce_format()
    assert ".cache/training/: made by a version before 0.2.0" in capsys.readouterr().out
    cache.announce_format()
    assert not capsys.readouterr().out


@pytest.mark.parametrize("block, key, value", [("model", "quantization", "nf4"), ("train", "optimizer", "adamw_8bit")])
def test_the_version_of_bitsandbytes_is_in_the_keys_of_what_it_computes(repository, block, key, value):
    pytest.importorskip("bitsandbytes")
    params = load_params(repository / "params.yaml")
    assert cache.packages(params) == cache.packages()
    setattr(getattr(params, block), key, value)
    assert cache.packages(params).keys() - cache.packages().keys() == {"bitsandbytes"}
