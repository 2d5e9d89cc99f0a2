import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from rarl.cli.switch_profile import main
from rarl.params import Reward, load_params
from rarl.profiles import PROFILES, apply, leaves, round_trip

SHIPPED = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def params(tmp_path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_bytes(SHIPPED.read_bytes())
    return path


def values(path: Path) -> dict[str, object]:
    return dict(leaves(round_trip().load(path.read_text(encoding="utf-8"))))


def test_embedded_is_what_is_shipped(params):
    shipped = values(SHIPPED)
    profile = values(PROFILES / "embedded.yaml")
    assert profile == {key: shipped[key] for key in profile}, "params.yaml and profiles/embedded.yaml differ"
    assert apply(params, "embedded") == {}
    assert params.read_bytes() == SHIPPED.read_bytes()


def test_there_and_back_restores_every_byte(params):
    apply(params, "paper")
    assert params.read_bytes() != SHIPPED.read_bytes()
    apply(params, "embedded")
    assert params.read_bytes() == SHIPPED.read_bytes()


def test_paper_changes_its_keys_and_no_other(params):
    before, profile = values(params), values(PROFILES / "paper.yaml")
    apply(params, "paper")
    assert values(params) == before | profile
    comments = [re.findall("#.*", path.read_text(encoding="utf-8")) for path in (SHIPPED, params)]
    assert comments[0] == comments[1]


def test_paper_holds_the_figures_of_the_paper(params):
    """Section 2.3, and the base of the title's experiment."""
    apply(params, "paper")
    found = load_params(params)
    assert (found.lora.r, found.lora.alpha) == (8, 16)
    assert found.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (found.train.eval_steps, found.train.trainable) == (100, "lora")
    assert (found.sft.epochs, found.rl.epochs, found.rl.max_steps) == (5, 5, -1)
    assert found.base.source == "Qwen/Qwen2-VL-2B-Instruct"
    assert re.fullmatch("[0-9a-f]{40}", found.base.revision)
    # Section 2.2.2: no guards, 0.001 a token up to 1, the components summed without weights.
    assert found.reward == Reward()
    assert set(found.grpo.rewards.model_dump().values()) == {1.0, 0.0}
    assert set(found.rarl.rewards.model_dump().values()) == {1.0}


def test_profiles_hold_the_keys_in_which_they_differ():
    paper, embedded = values(PROFILES / "paper.yaml"), values(PROFILES / "embedded.yaml")
    assert list(paper) == list(embedded)
    assert [key for key in paper if paper[key] == embedded[key]] == []


@pytest.mark.parametrize("name", ["paper", "embedded"])
def test_every_value_of_a_profile_names_its_source(name):
    lines = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    # A value, or the head of a list; heads of blocks and a list's items need none.
    heads = [
        line
        for line, after in zip(lines, [*lines[1:], ""])
        if re.match(r" *\w+:", line) and not line.startswith("profile:")
        if not after.startswith("  ") or line.startswith("  ")
    ]
    assert len(heads) == len(values(PROFILES / f"{name}.yaml")) - 1
    for line in heads:
        assert re.search(r" # (paper, (section )?\d\S*|ours)(:| and)", line), line


def test_root_points_to_real_releases_and_drops_the_judge_of_drawings(params):
    result = CliRunner().invoke(main, ["embedded", "--root", "../releases", "--params", str(params)])
    assert result.exit_code == 0, result.output
    assert "data.root: data/phantom -> ../releases" in result.output
    found = load_params(params)
    assert (found.data.root, found.judges, found.base.source) == ("../releases", ["lexical", "semantic"], "embedded")
    apply(params, "embedded")
    assert params.read_bytes() == SHIPPED.read_bytes()


def test_invalid_params_are_left_as_they_are(params):
    params.write_text("lora:\n  rank: 8\n", encoding="utf-8")
    result = CliRunner().invoke(main, ["paper", "--params", str(params)])
    assert result.exit_code == 1
    assert "lora.rank: unknown key" in result.output and "Traceback" not in result.output
    assert params.read_text(encoding="utf-8") == "lora:\n  rank: 8\n"


def test_a_profile_that_would_make_invalid_params_is_not_written(params):
    """The profile lists a judge that this valid file does not define."""
    yaml = round_trip()
    text = yaml.load(params.read_text(encoding="utf-8"))
    del text["judge"]["semantic"]
    text["judges"] = ["lexical"]
    with params.open("w", encoding="utf-8") as file:
        yaml.dump(text, file)
    load_params(params)
    before = params.read_bytes()
    result = CliRunner().invoke(main, ["paper", "--params", str(params)])
    assert result.exit_code == 1 and f"Error: {params}\n" in result.output
    assert params.read_bytes() == before
