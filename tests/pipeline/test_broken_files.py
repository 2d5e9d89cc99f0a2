"""Broken outputs under the real `dvc`, with the real stages `judge` and `score`: the message's advice mends them."""

import json
import re
import shutil

import pytest
from project import ROOT, Project

from rarl.records import Prediction, Sample, write_records

PARAMS = """
data: {root: data}
grpo: {prompts: [reasoning], rewards: {format: 1.0}}
rarl: {prompts: [reasoning], rewards: {format: 1.0}}
models: [base]
benchmarks: [slake]
modes: [reasoning]
mode:
  reasoning: {prompt: reasoning}
judges: [lexical]
judge:
  lexical: {kind: lexical}
"""
#: The real commands; the model's answers come from a file.
STAGES = """
stages:
  infer:
    matrix: {model: [base]}
    cmd: mkdir -p data/predictions && cp -r answers data/predictions/${item.model}
    deps: [answers]
    outs: ['data/predictions/${item.model}']
  judge:
    matrix: {model: [base]}
    cmd: python -m stages.judge --model ${item.model}
    deps: ['data/predictions/${item.model}']
    outs: ['data/verdicts/${item.model}']
  score:
    matrix: {model: [base]}
    cmd: python -m stages.score --model ${item.model}
    deps: ['data/predictions/${item.model}', 'data/verdicts/${item.model}']
    outs:
    - metrics/scores/${item.model}.json: {cache: false}
"""


@pytest.fixture(scope="session")
def judged(tmp_path_factory) -> Project:
    folder = tmp_path_factory.mktemp("judged") / "project"
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in ("rarl", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    (folder / "dvc.yaml").write_text(STAGES, encoding="utf-8")
    for name, place in (("silvar_med", "curated/test"), ("slake", "benchmarks/slake")):
        samples = [
            Sample(
                id=f"{name}/{i}",
                dataset=name,
                split="test",
                image="x.png",
                image_sha256="0",
                question="Is it?",
                answers=["Yes"],
                kind="yes_no",
            )
            for i in range(4)
        ]
        write_records(folder / f"data/{place}.jsonl", samples)
        write_records(
            folder / f"answers/reasoning/{name}.jsonl",
            [Prediction(id=s.id, completion="Yes", answer="Yes" if s.id[-1] in "12" else "No") for s in samples],
        )
    project = Project(folder)
    for arguments in (["init", "--quiet"], ["config", "user.name", "x"], ["config", "user.email", "x@y"]):
        project.git(*arguments)
    project.commit()
    project.dvc("repro")
    project.commit()
    return project


@pytest.fixture
def project(judged, tmp_path) -> Project:
    return judged.copy(tmp_path / "project")


def final(project: Project) -> float:
    scores = json.loads((project.folder / "metrics/scores/base.json").read_text(encoding="utf-8"))
    return scores["reasoning"]["silvar_med"]["lexical"]["final"]


def advice(project: Project) -> list[list[str]]:
    """The commands that the failing stage's message advises."""
    with pytest.raises(AssertionError) as raised:
        project.dvc("repro")
    [line] = re.findall(r"to do: +(.*)", str(raised.value))
    return [command.split() for command in re.findall(r"`(.*?)`", line)]


@pytest.mark.parametrize("kept", [False, True], ids=["on disk", "in DVC's cache too"])
@pytest.mark.parametrize("place", ["predictions/base/reasoning", "verdicts/base/lexical/reasoning"])
def test_a_broken_output_is_mended_by_what_the_message_advises(project, place, kept):
    path = project.folder / "data" / place / "silvar_med.jsonl"
    whole = path.read_bytes()
    assert final(project) == 50.0
    path.write_bytes(b"")
    if kept:  # as a version of this project did that took an empty file for a finished one
        project.dvc("commit", "--force", "infer@base" if "predictions" in place else "judge@base")
        commands = advice(project)
        assert commands[0][:4] == ["dvc", "repro", "-s", "-f"]
        for command in commands:
            project.run(*command)
    else:  # nobody has to do a thing: DVC restores it
        project.dvc("repro")
    assert path.read_bytes() == whole and final(project) == 50.0
    assert project.stages_run() == set()


def test_an_editor_cannot_reach_into_dvcs_cache(project):
    """Outputs that DVC has restored are copies: also root may write in them without changing what DVC keeps."""
    path = project.folder / "data/predictions/base/reasoning/silvar_med.jsonl"
    whole = path.read_bytes()
    shutil.rmtree(project.folder / "data/predictions")
    project.dvc("checkout", "--quiet")
    assert path.read_bytes() == whole and path.stat().st_nlink == 1 and not path.is_symlink()
    with path.open("r+b") as file:  # in place, as some editors write
        file.truncate(10)
    project.dvc("repro")
    assert path.read_bytes() == whole


def test_what_a_killed_writer_leaves_behind_changes_nothing(project):
    for folder in ("data/verdicts/base/lexical/reasoning", "metrics/scores"):
        (project.folder / folder / "x.json.01234567.partial").write_text("half")
    assert project.stages_run() == set()
    assert project.git("status", "--porcelain") == ""
    project.dvc("repro", "-f")
    assert not (project.folder / "data/verdicts/base/lexical/reasoning/x.json.01234567.partial").exists()
