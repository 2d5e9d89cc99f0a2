from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rarl.errors import UserError
from rarl.params import load_params

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
        ("- blank\n", "- dark\n", ["modes: 'dark' is not defined"]),
        ("  main_judge: lexical", "  main_judge: people", ["report.main_judge", "people"]),
        ("  - open\n", "  - shout\n", ["rarl.prompts", "shout.txt"]),
        ("lora:\n", "lora: [\n", ["valid YAML"]),
        # What once passed, and stopped or spoiled a run later.
        ("\nseed: 7", "\nseed: -1", ["seed = -1", "greater than or equal to 0"]),
        ("\nseed: 7", "\nseed: 18446744073709551616", ["seed = 18446744073709551616", "2147483648"]),
        ("  r: 8", "  r: 1000000000000", ["lora.r = 1000000000000", "8192"]),
        ("  r: 8", "  r: true", ["lora.r = True", "integer"]),
        ("  dropout: 0.0", "  dropout: 1.0", ["lora.dropout = 1.0", "less than 1"]),
        ("  learning_rate: 0.006", "  learning_rate: .inf", ["sft.learning_rate = inf"]),
        ("  learning_rate: 0.005", "  learning_rate: .nan", ["rl.learning_rate = nan"]),
        ("    length: 1.0", "    length: .inf", ["grpo.rewards.length = inf", "finite"]),
        ("  max_pixels: 12544", "  max_pixels: 3135", ["model", "max_pixels of at least min_pixels (3136)"]),
        ("  stop_when: []", "  stop_when: [kl, kll]", ["train.stop_when.1 = 'kll'", "'format_only', 'kl', 'entropy'"]),
        ("  max_steps: 120", "  max_steps: 0", ["rl.max_steps = 0", "-1 for `epochs` epochs"]),
        ("  max_steps: 120", "  max_steps: 250001", ["rl", "max_steps x prompts_per_step"]),
        ("  loss: grpo", "  loss: ppo", ["rl.loss = 'ppo'", "'dr_grpo', 'dapo', 'bnpo', 'cispo', 'sapo', 'luspo'"]),
        ("  scale_rewards: group", "  scale_rewards: false", ["rl.scale_rewards = False", "'batch' or 'none'"]),
        ("  num_iterations: 1", "  num_iterations: 0", ["rl.num_iterations = 0"]),
        (
            "  num_iterations: 1",
            "  num_iterations: 4",
            ["train.eval_steps: a multiple of rl.num_iterations (4), not 50"],
        ),
        ("  warmup_ratio: 0.05", "  warmup_ratio: 1.0", ["sft.warmup_ratio = 1.0", "less than 1"]),
        ("  temperature: 1.0", "  temperature: 1e-300", ["rl.temperature = 1e-300"]),
        ("  temperature: 0.0\n", "  temperature: 0.001\n", ["decoding.temperature", "at least 0.01"]),
        (
            "  micro_prompts: 4",
            "  micro_prompts: 3",
            ["rl.prompts_per_step: a multiple of 3, not 4", "rl.micro_prompts"],
        ),
        ("  processes: 1", "  processes: 3", ["sft.batch_size: a multiple of 15, not 16", "accelerate.processes"]),
        ("  dev_share: 0.15", "  dev_share: 0.85", ["own", "a sum below 1"]),
        ("  test_seed: 97", "  test_seed: 11", ["phantom", "test_seed and seed that differ"]),
        ("  benchmark_rows: 100", "  benchmark_rows: 563", ["phantom.benchmark_rows = 563", "562"]),
        ("  - q_proj", "  - k_proj", ["lora.target_modules", "twice: k_proj"]),
        ("root: data/phantom", "root: ''", ["data.root = ''"]),
        ("root: data/phantom", 'root: "a\\0b"', ["data.root", "printable"]),
        ("root: data/phantom", f"root: {'a' * 256}", ["data.root", "255 bytes"]),
        (
            "    format: 1.0\n    length: 1.0\n    accuracy: 1.0",
            "    format: 0.0\n    length: 0.0\n    accuracy: 0.0",
            ["grpo.rewards", "at least one weight above 0"],
        ),
        # What once ended in a traceback.
        ("\nseed: 7", "\nseed: 2024-13-45", ["valid YAML"]),
        ("\nseed: 7", f"\nseed: {'1' * 5000}", ["valid YAML"]),
        ("\nseed: 7", "\nseed: 7\nseed: 8", ["valid YAML", "duplicate key"]),
        ("\nseed: 7", "\nseed:\t- 7", ["valid YAML"]),
        ("\nseed: 7", "\nseed: !!python/object:os.system x", ["valid YAML"]),
        ("\nseed: 7", f"\nseed: {'[' * 5000}", ["valid YAML"]),
    ],
)
def test_mistake_is_named_with_what_to_do(edited, before, after, words):
    with pytest.raises(UserError) as raised:
        load_params(edited(before, after))
    message = raised.value.format_message()
    for word in ["params.yaml", "to do:", *words]:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["grpo: ", "required"]),
        (b"# only a comment\n", ["required"]),
        (b"[]", ["valid dictionary"]),
        (b"seed\n", ["valid dictionary"]),
        (b"seed: \xff\n", ["no UTF-8 at byte 6"]),
        (b"---\n---\n", ["valid YAML"]),
        (
            "\n".join(
                f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" if i else "a0: &a0 [x]" for i in range(12)
            ).encode(),
            ["a11: unknown key"],
        ),
    ],
)
def test_file_that_is_no_parameter_file(tmp_path, content, words):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_params(path)
    message = raised.value.format_message()
    assert all(word in message for word in [str(path), *words]) and len(message) < 5000


@pytest.mark.parametrize(
    ("loss", "high", "words"),
    [
        ("sapo", 0.28, "null with loss sapo, which clips no ratio"),
        ("vespo", 5.0, "null with loss vespo, which clips no ratio"),
        ("cispo", 0.28, "at least 1 with loss cispo, whose largest ratio it is, not 0.28"),
        ("cispo", 5.0, None),
        ("gspo", 0.0004, None),
    ],
)
def test_epsilon_high_fits_the_loss(edited, loss, high, words):
    path = edited("  epsilon_high: null", f"  epsilon_high: {high}")
    path.write_text(path.read_text(encoding="utf-8").replace("  loss: grpo", f"  loss: {loss}"), encoding="utf-8")
    if words is None:
        assert load_params(path).rl.epsilon_high == high
        return
    with pytest.raises(UserError) as raised:
        load_params(path)
    assert "rl" in raised.value.format_message() and words in raised.value.format_message()


def test_anchors_are_read(edited):
    path = edited("  temperature: 1.0\n  top_p: 1.0", "  temperature: &t 0.7\n  top_p: *t")
    assert load_params(path).rl.top_p == 0.7


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
