"""What pyproject.toml declares: the dependencies, and what the installed package holds."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile

#: Module of a distribution whose name differs from it.
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "ruamel.yaml": "ruamel"}
#: Declared although nothing imports it.
NOT_IMPORTED = {
    "bitsandbytes": "transformers loads it if `model.quantization` or `train.optimizer` asks for it",
    "flash-attn": "transformers loads it if `model.attention` asks for it",
    "tensorboard": "transformers loads it if `RARL_REPORT_TO` asks for it",
    "ruamel.yaml.clib": "DVC reads dvc.lock four times as fast with it",
}
#: Imported although it is not declared.
NOT_DECLARED = {
    "deepspeed": "for the engine that `accelerate.config` names: docs/gpu.md says how to install it",
    "playwright": "`rarl bench scale` measures a page in a browser where it is installed",
    "dvc_data": "a part of DVC, pinned by it",
    "dvc_objects": "a part of DVC, pinned by it",
    "hydra": "DVC reads the values of -S with it, and pins it",
}


def test_dependencies_that_are_declared_are_used_and_those_used_are_declared(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    used = ("annotate", "dvclive", "flash", "quantization", "rate", "tensorboard")
    optional = [text for extra in used for text in extras[extra]]
    names = [re.match(r"[\w.-]+", text)[0] for text in (*project["dependencies"], *optional)]
    declared = {MODULES.get(name, name.replace("-", "_")): name for name in names}
    imported = set()
    for file in (*(repository / "rarl").rglob("*.py"), *(repository / "stages").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "rarl", "stages"}
    assert {name for module, name in declared.items() if module not in imported} == set(NOT_IMPORTED)
    assert imported - set(declared) == set(NOT_DECLARED)


def test_a_wheel_holds_the_package_rarl_with_its_data_files_and_the_command(repository, tmp_path):
    files = subprocess.run(["git", "ls-files", "rarl"], cwd=repository, capture_output=True, text=True, check=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", *files.stdout.split()):
        if (repository / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((repository / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        held = set(wheel.namelist())
        (entry,) = (name for name in held if name.endswith("entry_points.txt"))
        assert "rarl = rarl.cli:main" in wheel.read(entry).decode()
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"rarl"}
    assert {name for name in files.stdout.split() if (repository / name).is_file()} <= held
