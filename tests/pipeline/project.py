"""A project of the real `dvc.yaml`, `params.yaml` and code, run by the real `dvc`.

The stages' entry files are stand-ins, except those of `REAL`, which are fast.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from rarl.profiles import round_trip

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
REAL = ("tidy", "check", "truth", "rival")
#: From the data to scores.
SCORED = {"check", "phantom", "base", "curate", "benchmark", "sft", "rarl", "infer", "judge", "score"}


class Project:
    """A git and DVC repository in a temporary folder."""

    def __init__(self, folder: Path, home: Path | None = None):
        self.folder = folder
        self.home = home or folder.parent / "home"
        self.home.mkdir(exist_ok=True)

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command in the project, on a machine without git configuration; `code` is its expected exit status."""
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GIT_", "DVC_", "XDG_", "HF_", "PYTHONPATH"))
        }
        env |= {
            "HOME": str(self.home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "DVC_SITE_CACHE_DIR": str(self.home / "site"),
            "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
            "RARL_RESOURCES": "ignore",
        }
        done = subprocess.run(command, cwd=self.folder, env=env, text=True, capture_output=True, timeout=240)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    def dvc(self, *arguments: str) -> str:
        return self.run("dvc", *arguments)

    def stages_run(self, *arguments: str) -> set[str]:
        """The stages whose command ran during a `dvc` command (by default `dvc repro`)."""
        return set(re.findall(r"Running stage '(.+)'", self.dvc(*(arguments or ("repro",)))))

    def change(self, key: str, value) -> None:
        """Set one key (dotted) of `params.yaml`, as an editor would: every other line stays."""
        path, yaml = self.folder / "params.yaml", round_trip()
        params = yaml.load(path.read_text(encoding="utf-8"))
        *blocks, name = key.split(".")
        block = params
        for part in blocks:
            block = block[part]
        assert block[name] != value, f"{key} is {value} already"
        block[name] = value
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(params, file)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")

    def copy(self, folder: Path) -> "Project":
        shutil.copytree(self.folder, folder, symlinks=True)
        shutil.copytree(self.home, folder.parent / "home", symlinks=True)
        return Project(folder)


def build(folder: Path, *benchmarks: str, whole: bool = True) -> Project:
    """A first commit of the real pipeline with stand-ins for the code of its stages.

    Args:
        whole: False keeps the stages of `SCORED` alone, without dependencies on code. DVC writes the whole lock file
            after each stage, so fewer and shorter entries save more than their share of the time.
    """
    folder.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", "Makefile", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
    for name in ("rarl", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("standin.py"), folder / "stages/standin.py")
    stages = YAML(typ="safe").load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    if not whole:
        shorten(folder / "dvc.yaml")
    for stage in stages.values():
        name = stage["cmd"].removeprefix("python -m stages.").split()[0]
        if name not in REAL:
            entry = folder / f"stages/{name}.py"
            entry.write_text("from stages.standin import main\n\nmain()\n", encoding="utf-8")
    # What studies and the frozen stage have made is kept in git.
    shutil.copytree(ROOT / "metrics/studies", folder / "metrics/studies")
    (folder / "data/base").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "chat_template.jinja"):
        shutil.copy(ROOT / "data/base" / name, folder / "data/base" / name)
    for entry in stages["pretrain"].get("metrics", []):
        file = folder / next(iter(entry))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}\n", encoding="utf-8")

    project = Project(folder)
    project.change("benchmarks", list(benchmarks))
    project.change("rival", {})  # each has a stage of its own
    project.git("init", "--quiet", "--initial-branch", "main")
    project.run("make", "--silent", "identity")
    project.commit()
    return project


def shorten(path: Path) -> None:
    """Take the stages out of a `dvc.yaml` that are not `SCORED`, and the dependencies on them and on code."""
    yaml = round_trip()
    pipeline = yaml.load(path.read_text(encoding="utf-8"))
    stages = pipeline["stages"]
    gone = ["rarl/", "stages/"]
    for name in set(stages) - SCORED:
        gone += [out if isinstance(out, str) else next(iter(out)) for out in stages.pop(name).get("outs", [])]
    for stage in stages.values():
        stage["deps"] = [dep for dep in stage.get("deps", []) if not dep.startswith(tuple(gone))]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(pipeline, file)


def reproduce(folder: Path, *models: str, whole: bool = True) -> Project:
    """A project of these models, two benchmarks and two judges after its first `dvc repro`."""
    project = build(folder, "slake", "vqa_rad", whole=whole)
    project.change("models", [*models])
    project.change("judges", ["lexical", "semantic"])
    project.commit()
    project.first_run = project.stages_run()
    project.commit()
    return project
