"""`rarl publish` against a stand-in of the hub: what is shown, what is sent, and what it refuses."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_server import TOKEN, serve
from huggingface_hub import ModelCard, constants, metadata_load

from rarl.cli.publish import main
from rarl.errors import UserError
from rarl.params import load_params
from rarl.records import read_json, write_json
from rarl.sharing.model_folder import measured
from rarl.sharing.model_index import eval_results, with_results

ROOT = Path(__file__).parents[2]
CARD = "---\nbase_model: {base}\nlibrary_name: peft\nlicense: {licence}\ntags: [phantom]\n---\n\n# rarl\n"
PUSHED = ["README.md", "adapter_config.json", "adapter_model.safetensors", "base.json"]


def write_model(base: str, sha256: str | None, licence: str) -> Path:
    """An adapter's folder, with files that must not leave it."""
    folder = Path("data/models/rarl")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "base.json", {"source": base, "revision": None, "sha256": sha256})
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "README.md").write_text(CARD.format(base=Path(base).name if sha256 else base, licence=licence))
    (folder / "patients.csv").write_text("name,finding\nA. Patient,mass\n")
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a trained adapter on a base of the hub, and its scores, which `dvc status` calls up to date."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    write_model("Qwen/Qwen2-VL-2B-Instruct", None, "apache-2.0")
    Path("metrics/scores").mkdir(parents=True)
    shutil.copy(ROOT / "metrics/scores/rarl.json", "metrics/scores/rarl.json")
    monkeypatch.setattr("rarl.sharing.publishing.measured", lambda folder: read_json("metrics/scores/rarl.json"))
    return tmp_path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that the client of this process is logged in to."""
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def publish(*args: str, to: str = "me/rarl-tiny"):
    return CliRunner().invoke(main, ["rarl", "--to", to, *args], catch_exceptions=False)


def test_nothing_is_sent_without_yes(project, hub):
    result = publish()
    assert result.exit_code == 0 and "Nothing was sent" in result.output
    assert not hub.calls and not list(Path(".cache").iterdir())
    for file in PUSHED:
        assert file in result.output
    for line in (
        "me/rarl-tiny (private)",
        "10,240 bytes",
        "base_model: Qwen/Qwen2-VL-2B-Instruct",
        "license: apache-2.0",
        "SLAKE, synthetic images: 51.2 accuracy in %, lexical judge (95 % interval 43.68 to 58.67)",
        "PHANTOM",
        "not for clinical use",
    ):
        assert line in result.output, line
    assert "patients.csv" not in result.output


def test_exactly_the_shown_files_arrive(project, hub):
    shown = publish("--yes").output
    assert hub.private == {"me/rarl-tiny": True}
    files = hub.files["me/rarl-tiny"]
    assert sorted(files) == PUSHED
    for name, content in files.items():
        assert f"{len(content):,} bytes  {name}" in shown
    assert files["adapter_model.safetensors"] == Path("data/models/rarl/adapter_model.safetensors").read_bytes()
    Path("card.md").write_bytes(files["README.md"])
    (index,) = metadata_load("card.md")["model-index"]
    assert index["name"] == "rarl-tiny" and len(index["results"]) == 7
    assert f"Pushed: {hub.url}/me/rarl-tiny/commit/1" in shown


@pytest.mark.parametrize("answer", ["n", "y"])
def test_a_terminal_is_asked_and_the_environment_names_hub_and_token(project, hub, answer):
    """As in a shell: another process, with the variables of the hub's own client."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "rarl", "publish", "rarl", "--to", "me/other", "--no-scores", "--public"]
    keyboard, terminal = pty.openpty()
    os.write(keyboard, f"{answer}\n".encode())
    done = subprocess.run(command, env=environment, stdin=terminal, capture_output=True, text=True)
    os.close(keyboard)
    os.close(terminal)
    assert done.returncode == 0 and "Push these files?" in done.stdout, done.stderr
    assert hub.private == ({"me/other": False} if answer == "y" else {})
    assert sorted(hub.files.get("me/other", [])) == (PUSHED if answer == "y" else [])
    assert TOKEN not in done.stdout + done.stderr


def test_a_local_base_is_named_without_its_path_and_not_linked(project, hub):
    write_model("/home/someone/bases/base0", "4a5f", "other")
    result = publish("--yes")
    assert "no one can use the adapter without it" in result.output and "not known here" in result.output
    files = hub.files["me/rarl-tiny"]
    assert b"/home/someone" not in b"".join(files.values()) and b"base_model" not in files["README.md"]
    assert b'"source": "base0"' in files["base.json"]


def test_refusals_are_one_message_each(project, hub, monkeypatch):
    def refused(said: str, *args: str, to: str = "me/rarl-tiny"):
        result = publish("--yes", *args, to=to)
        assert result.exit_code == 1 and said in result.output and "to do:" in result.output, result.output
        assert TOKEN not in result.output and not hub.files

    for name in ("rarl-tiny", "me/", "me/two/parts", "me/a--b", "me/" + "a" * 97):
        refused("--to", to=name)
    assert not hub.calls
    refused("the hub refuses it: You don't have the rights", to="someone/rarl-tiny")
    hub.private["me/seen"] = False
    refused("exists already and is public", to="me/seen")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    refused("does not accept the login")
    monkeypatch.delenv("HF_TOKEN")
    refused("no login on this machine")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("the push failed: [Errno 111]")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set")
    write_json("data/models/rarl/rival.json", {})
    refused("a rival, which others have trained")
    Path("data/models/rarl/rival.json").unlink()
    Path("data/models/rarl/README.md").unlink()
    refused("README.md")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        Path("data/models/rarl", file).unlink()
    refused("neither an adapter nor trained weights")
    Path("data/models/rarl/base.json").unlink()
    refused("model rarl")


def test_scores_in_the_card_are_those_of_the_file():
    """In the hub's own classes; real data is not named as synthetic."""
    params, scores = load_params(ROOT / "params.yaml"), read_json(ROOT / "metrics/scores/rarl.json")
    results = eval_results(scores, params)
    cells = [cell for judges in scores["reasoning"].values() for cell in judges.values()]
    expected = [cell[score] for cell in cells for score in ("final", "reasoning") if cell[score] is not None]
    assert [result.metric_value for result in results] == expected
    text = with_results(CARD.format(base="x/y", licence="other"), "rarl", results)
    read = ModelCard(text).data.eval_results
    assert read == results and text.endswith("---\n\n# rarl\n") and "base_model: x/y" in text
    first = read[0]
    assert (first.task_type, first.dataset_split, first.verified) == ("visual-question-answering", "test", False)
    assert first.dataset_type == "phantom-silvar-med" and first.metric_args["low"] == cells[0]["final_low"]
    params.data.root = "/mnt/releases"
    assert {result.dataset_name for result in eval_results(scores, params)} >= {"VQA-RAD", "SLAKE"}


DVC_YAML = """
stages:
  score:
    foreach: [rarl]
    do:
      cmd: echo
      deps: [data/models/rarl]
      outs: [{metrics/scores/rarl.json: {cache: false}}]
"""


def test_scores_are_refused_where_they_are_missing_or_stale(project):
    """With the real DVC."""
    folder = Path("data/models/rarl")

    def refused(said: str, folder: Path = folder):
        with pytest.raises(UserError, match=said):
            measured(folder)

    refused("stale: `dvc status` reports an error")
    Path("dvc.yaml").write_text(DVC_YAML)
    for arguments in (["init", "--no-scm", "--quiet"], ["commit", "--force", "--quiet"]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True)
    assert measured(folder) == read_json("metrics/scores/rarl.json")
    (folder / "adapter_model.safetensors").write_bytes(b"trained again")
    refused("stale: `dvc status` reports score@rarl")
    refused("missing", Path("copies/rarl"))
    Path("metrics/scores/rarl.json").unlink()
    refused("missing")
