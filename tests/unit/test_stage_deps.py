"""DVC does not see imports: every stage must name, as a dependency, the project's code that it runs."""

import ast
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rarl.cache import CUDA_ONLY
from rarl.registry import DATA_SETS, JUDGE_KINDS, REWARDS

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
#: Code that cannot change a stage's output for given parameters: a change of it re-runs nothing.
PLUMBING = {
    "rarl/__init__.py",
    "stages/__init__.py",
    "rarl/errors.py",
    "rarl/running/entry.py",
    "rarl/processes/cost.py",
    "rarl/params.py",
    "rarl/processes/pinning.py",  # named by the stages whose bits depend on it: those that run a model
    "rarl/cache.py",
    # Where and when work is done, and not what: what runs ahead is kept under keys of its own.
    "rarl/running/ahead.py",
    "rarl/processes/forks.py",
    "rarl/registry.py",  # names; the stages of `SHOWN` depend on its labels
    "rarl/processes/launch.py",
    # A text beside the weights, and a text before the training: no weight depends on them.
    "rarl/sharing/model_card.py",
    "rarl/planning/memory.py",
    # Warnings. They can change weights only with `train.stop_when`, and then a training's key has this file's code.
    "rarl/health.py",
    "rarl/rehearsal/bases.py",
    # The folder that vLLM loads, whose weights the training's replace.
    "rarl/sharing/hub_layout.py",
    # What is shown while a stage runs, and how it ends early.
    "rarl/processes/status.py",
    "rarl/processes/stopping.py",
    "rarl/training/groups.py",
    "rarl/training/live.py",
    *CUDA_ONLY,
}
#: Folders whose modules are imported by their names in the registry.
BY_NAME = {"rarl/data/adapters": DATA_SETS, "rarl/judges": JUDGE_KINDS, "rarl/rewards": REWARDS}
#: Code of `PLUMBING` whose output these stages show.
SHOWN = {"rarl/registry.py": {"audit", "score", "report"}, "rarl/health.py": {"report"}}


def named(dep: Path, file: Path) -> bool:
    """Whether a dependency is a file, or a folder that it is in."""
    return dep == file or dep in file.parents


def entry(stage: dict) -> str:
    return f"stages/{stage['cmd'].removeprefix('python -m stages.').split()[0]}.py"


def file_of(module: str) -> str | None:
    """The file of a module of the project, such as `rarl.pretraining.tiny`; None where it is no module."""
    path = Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / file).is_file():
            return file.as_posix()
    return None


def is_empty(file: str) -> bool:
    """Whether a file has a docstring at most, as the `__init__.py` of a folder that only holds modules."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) for node in body)


@cache
def imports(file: str, inside_functions: bool = True) -> frozenset[str]:
    """The project's files that one file imports.

    Importing `rarl.pretraining.tiny` also runs `rarl/models/__init__.py`: what that imports at its top
    counts too, what its functions import does not, as nobody calls them.
    """
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import; this project writes them out"
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    package = str(Path(file).parent)
    if Path(file).name == "__init__.py" and package in BY_NAME:
        modules |= {f"{package.replace('/', '.')}.{name}" for name in BY_NAME[package]}
    found = {name for module in modules if module.startswith(("rarl", "stages")) and (name := file_of(module))}
    for module in {name.removesuffix("/__init__.py").removesuffix(".py") for name in found}:
        package = f"{Path(module).parent.as_posix()}/__init__.py"
        if package not in (file, "./__init__.py", "rarl/__init__.py", "stages/__init__.py"):
            found |= imports(package, inside_functions=False)
    return frozenset(found)


def reached(file: str) -> set[str]:
    """All of the project's files that a file imports, directly or through others, and itself."""
    found, ahead = set(), {file}
    while ahead:
        found |= ahead
        ahead = {name for known in ahead for name in imports(known)} - found
    return found


@pytest.mark.parametrize("name", STAGES)
def test_stage_names_the_code_that_it_imports(name):
    stage = STAGES[name]
    deps = [Path(dep) for dep in stage["deps"]]
    code = reached(entry(stage))
    needed = code - PLUMBING | (code & {file for file, names in SHOWN.items() if name in names})
    unnamed = {file for file in needed if not is_empty(file) and not any(named(dep, Path(file)) for dep in deps)}
    assert not unnamed, f"dvc.yaml: stage {name} runs code that its deps do not name"


@pytest.mark.parametrize("name", STAGES)
def test_stage_names_no_code_that_it_does_not_use(name):
    """A dependency that is not used re-runs a stage, perhaps hours of training, for nothing."""
    stage = STAGES[name]
    files = {Path(file) for file in reached(entry(stage))}
    for dep in (Path(dep) for dep in stage["deps"] if dep.startswith(("rarl/", "stages/"))):
        assert (ROOT / dep).exists(), f"dvc.yaml: {name} depends on {dep}, which is not there"
        if dep.suffix == ".py" or any((ROOT / dep).rglob("*.py")):
            used = any(named(dep, file) for file in files)
        else:  # data, which the code names
            names = f'"{dep.name}"', f'"{dep.stem}"'
            used = any(name in (ROOT / file).read_text(encoding="utf-8") for file in files for name in names)
        assert used, f"dvc.yaml: {name} depends on {dep}, which it does not use"


def test_what_runs_on_cuda_devices_only_is_no_dependency():
    deps = {Path(dep) for name, stage in STAGES.items() if name != "pretrain" for dep in stage["deps"]}
    for file in map(Path, CUDA_ONLY):
        assert (ROOT / file).is_file() and not any(named(dep, file) for dep in deps)


def test_imports_inside_functions_and_through_others_are_seen():
    """The check itself can fail: `infer` reaches the models only from inside its `main`."""
    body = ast.parse((ROOT / "stages/infer.py").read_text(encoding="utf-8")).body
    top = {node.module for node in body if isinstance(node, ast.ImportFrom)}
    assert not any(module.startswith("rarl.models") for module in top)
    assert any(file.startswith("rarl/models/") for file in reached("stages/infer.py"))
