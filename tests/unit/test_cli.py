"""The command `rarl`, and what the commands answer that had its work before."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rarl.cli import main
from stages import COMMANDS

ROOT = Path(__file__).parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_help_lists_every_command_on_one_screen():
    said = CliRunner().invoke(main, ["--help"]).output
    listed = [line.split()[0] for line in said[said.index("Commands:") :].splitlines()[1:]]
    assert listed == list(main.modules) and len(said.splitlines()) <= 30
    files = {f"rarl.cli.{path.stem}" for path in (ROOT / "rarl/cli").glob("[a-z]*.py")}
    commands = (*main.modules.values(), *main.get_command(None, "study").modules.values())
    assert files == {module.partition(":")[0] for module, _ in commands}


@pytest.mark.parametrize("name", main.modules)
def test_every_command_says_what_it_takes(name):
    result = CliRunner().invoke(main, [name, "--help"], catch_exceptions=False)
    assert result.exit_code == 0 and f"Usage: rarl {name} " in result.output


def test_every_study_says_what_it_takes():
    for name in main.get_command(None, "study").modules:
        result = CliRunner().invoke(main, ["study", name, "--help"], catch_exceptions=False)
        assert result.exit_code == 0 and ("--seed" in result.output or "--dry-run" in result.output)


def test_help_and_completion_load_no_library_that_computes():
    """They answer at once, and what a command pins is not loaded before it."""
    code = (
        "import sys\n"
        "from click.shell_completion import ShellComplete\n"
        "from rarl.cli import main\n"
        "shell = ShellComplete(main, {}, 'rarl', '_RARL_COMPLETE')\n"
        "assert [item.value for item in shell.get_completions([], 'me')] == ['memory', 'merge']\n"
        "main(['--help'], standalone_mode=False)\n"
        "assert not {'numpy', 'pandas', 'torch', 'pydantic'} & set(sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_command_pins_before_it_loads_what_is_pinned():
    code = (
        "import sys\n"
        "from rarl.cli import main\n"
        "for name in ('ask', 'merge', 'profile'):\n"
        "    main.get_command(None, name)\n"
        "    assert not {'numpy', 'torch'} & set(sys.modules), name"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("old", ["training.memory" if n == "training" else n for n in COMMANDS])
def test_an_old_command_answers_with_the_new_name(old):
    done = python("-m", f"stages.{old}", "--help")
    new = COMMANDS[old.split(".")[0]]
    assert done.returncode == 1 and f"it is now `rarl {new}`" in done.stderr
    assert "Traceback" not in done.stderr
    *group, name = new.split()
    of = main.get_command(None, *group) if group else main
    assert name in of.modules


def test_a_module_that_was_never_a_command_is_looked_for_in_the_library():
    with pytest.raises(ModuleNotFoundError, match="package `rarl`"):
        import stages.records  # noqa: F401


def test_stages_hold_an_entry_for_each_stage_and_nothing_else():
    from ruamel.yaml import YAML

    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    entries = {
        stage["cmd"].removeprefix("python -m stages.").split()[0]
        for stage in YAML(typ="safe").load(text)["stages"].values()
    }
    files = {path.name for path in (ROOT / "stages").iterdir() if path.name != "__pycache__"}
    assert files == {"__init__.py", *(f"{name}.py" for name in entries)}
