from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.errors import UserError
from stages.params import load_params

SHIPPED = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def edited(tmp_path):
    """The shipped parameters with one text replaced by another."""

    def edit(before: str, after: str) -> Path:
        text = SHIPPED.read_text(encoding="utf-8")
        assert before in text
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(before, after, 1), encoding="utf-8")
        return path

    return edit


def test_shipped_params_are_valid_and_written_as_they_are_read():
    raw = YAML(typ="safe").load(SHIPPED.read_text(encoding="utf-8"))
    assert load_params(SHIPPED).model_dump(exclude_unset=True) == raw


def test_every_parameter_of_the_model_stands_in_the_shipped_file():
    """A knob that a user cannot see in params.yaml cannot be set with `-S` either."""
    raw = YAML(typ="safe").load(SHIPPED.read_text(encoding="utf-8"))
    shown = load_params(SHIPPED).model_dump(exclude={"judge"})
    assert {key: set(value) for key, value in shown.items() if isinstance(value, dict)} == {
        key: set(raw[key]) for key, value in shown.items() if isinstance(value, dict)
    }


@pytest.mark.parametrize("spelling", ["2e-05", "2e-5", "0.00002", "2.0e-5"])
def test_numbers_as_dvc_writes_them_are_numbers(edited, spelling):
    """`-S x=2e-5` writes `2e-05`, which YAML 1.1 reads as a string."""
    path = edited("  epsilon: 0.2", f"  epsilon: {spelling}")
    assert load_params(path).rl.epsilon == 2e-5


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("  alpha: 16", "  alfa: 16", ["lora.alfa: unknown key", "alpha?"]),
        ("  r: 8", "  r: 0", ["lora.r = 0", "greater than 0"]),
        ("  r: 8", "  r: eight", ["lora.r = 'eight'", "integer"]),
        ("- cv_bench", "- slake", ["benchmarks", "twice"]),
        ("- cv_bench", "- mimic", ["benchmarks.4 = 'mimic'", "'cv_bench'"]),
        ("- blank\n", "- dark\n", ["modes: 'dark' has no definition"]),
        ("  main_judge: lexical", "  main_judge: people", ["report.main_judge", "people"]),
        ("  - open\n", "  - shout\n", ["rarl.prompts", "shout.txt"]),
        ("lora:\n", "lora: [\n", ["valid YAML"]),
    ],
)
def test_mistake_is_named_with_what_to_do(edited, before, after, words):
    with pytest.raises(UserError) as raised:
        load_params(edited(before, after))
    message = raised.value.format_message()
    for word in ["params.yaml", "to do:", *words]:
        assert word in message


def test_all_mistakes_are_named_at_once(edited):
    path = edited("  r: 8\n  alpha: 16", "  r: 0\n  alpha: none\n  dropout_: 1")
    with pytest.raises(UserError) as raised:
        load_params(path)
    for key in ("lora.r", "lora.alpha", "lora.dropout_"):
        assert key in raised.value.format_message()


def test_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"git checkout params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_samples_of_the_own_test_set_lie_with_the_curated_rows(repository):
    params = load_params(repository / "params.yaml")
    assert params.own_test == "silvar_med"
    assert params.samples_file("silvar_med") == Path("data/curated/test.jsonl")
    assert params.samples_file("slake") == Path("data/benchmarks/slake.jsonl")
