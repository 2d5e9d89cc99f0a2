"""README, docs/ and the other pages: links, paths, commands and figures hold."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from rarl.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "data/base/README.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: Paths that the pages name and that are not in git.
MADE = re.compile(r"metrics/cost/.*")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sections() -> list[tuple[str, str]]:
    """(name, text) of each section that names a file or folder in `metrics/`."""
    found = []
    for page in PAGES:
        for number, text in enumerate(re.split(r"^#+ ", prose(page), flags=re.MULTILINE)):
            if re.search(r"`metrics/\w", MADE.sub("", text)):
                found.append((f"{page.relative_to(ROOT)}, {number}", text))
    return found


def command_lines(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(code for language, code in FENCE.findall(text) if language == "bash")
    inline = re.findall(r"`((?:rarl|make) [^`]+)`", FENCE.sub("", text))
    return [line.split("#")[0].strip() for line in blocks.replace("\\\n", "").splitlines()] + inline


@every_page
def test_relative_links_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@every_page
def test_paths_exist(page):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in re.findall(r"`((?:rarl|stages|tests|docs|metrics|\.dvc)/[\w./-]*)`", prose(page)):
        assert MADE.fullmatch(path) or any(f"{file}/".startswith(f"{path.rstrip('/')}/") for file in tracked), path


@every_page
def test_commands_and_their_options_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in command_lines(page):
        words = shlex.split(line)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:1] == ["rarl"]:
            command, rest = main, words[1:]
            while isinstance(command, click.Group) and rest and rest[0] != "--help" and rest[0] != "...":
                command = command.get_command(click.Context(command), rest.pop(0))
                assert command, line
            options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
            assert {word for word in rest if word.startswith("--")} <= options, line


@pytest.mark.parametrize(("name", "text"), [pytest.param(*section, id=section[0]) for section in sections()])
def test_figures_are_in_the_files_that_their_section_names(name, text):
    numbers = []
    for path in re.findall(r"`(metrics/[\w./-]+)`", text):
        files = [ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("*.*")
        for file in files:
            numbers += [float(number) for number in re.findall(r"-?\d+\.\d+", file.read_text(encoding="utf-8"))]
    for figure in re.findall(r"(?<![\w.−-])[−-]?\d+\.\d+(?![\w.])", re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)):
        value, decimals = float(figure.replace("−", "-")), len(figure.split(".")[1])
        assert any(abs(number - value) <= 0.5 * 10**-decimals + 1e-9 for number in numbers), f"{name}: {figure}"


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The table of `rarl memory` with some options under the paper profile: GB of a device -> cells of the methods."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> str:
        result = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    run("profile paper")
    row = re.compile(r"^\| (\d+) GB \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)
    return lambda options="": {size: cells for size, *cells in row.findall(run(f"memory {options}"))}


def changes(cell: str) -> dict[str, str]:
    """The settings of a cell, as printed or as documented."""
    return dict(re.findall(r"`([\w.]+)(?: \w+ ->|:) (\w+)`", cell))


def test_the_memory_table_is_what_the_command_prints(memory):
    table, page = memory(), (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    for sizes, *cells in re.findall(r"^\| ([\d, or]+) GB \| (.*?) \| (.*?) \| (.*?) \|$", page, re.MULTILINE):
        for size in re.findall(r"\d+", sizes):
            for documented, printed in zip(cells, table.pop(size), strict=True):
                assert documented.split(",")[0] == printed.split(",")[0], (size, printed)
                assert changes(documented) == changes(printed)
    assert not table


def test_the_table_of_small_cards_is_what_the_command_prints(memory):
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w.-]+B) \| (\d+) GB \| (.*?) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for base, size, *cells in rows:
        slug = re.sub(r"\W", "_", base.lower().replace("medgemma", "gemma3"))
        found, settings = memory(f"--base {slug} --quantization nf4 --gb {size}")[size], {}
        for documented, printed in zip(cells, found, strict=True):
            number, _, rest = documented.partition(", ")
            # "the same" and "also" are added to the cell on the left.
            settings = changes(rest) | (settings if rest.startswith(("the same", "also")) else {})
            assert (number, settings) == (printed.split(",")[0], changes(printed)), (base, printed)


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1150


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert YAML(typ="safe").load(ROOT / "CITATION.cff")["version"] == version
    releases = re.findall(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert releases[0] == version


def test_the_largest_deviations_from_stock_are_in_the_page():
    found = json.loads((ROOT / "metrics/bench/deviations.json").read_text(encoding="utf-8")).values()
    text = " ".join((ROOT / "docs/training.md").read_text(encoding="utf-8").split())
    largest = [max(one[key] for one in found) for key in ("log-probabilities", "LoRA gradients, of the largest")]
    assert f"at most {largest[0]} in a log-probability and {largest[1]} of the largest LoRA gradient" in text
