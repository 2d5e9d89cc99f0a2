"""The rules on a training's log: near their limits, on trainings that were ill on purpose, and on the default's."""

import csv
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_report import make_run, score_and_report

from rarl.health import FIRST, LIMITS, RULES, WINDOW, check, limit, review
from rarl.params import Train, load_params
from rarl.records import read_json, write_json
from rarl.registry import METHODS

ROOT = Path(__file__).parents[2]
LOGS = Path(__file__).parent / "training_logs"
#: Log -> what it was trained with, on the default base, and the rules that fire. Each is `metrics/train/<method>.csv`
#: after `dvc exp run -S <change> ... <method>`, without the columns that no rule reads for that method.
ILL = {
    "grpo_ill_rate": ("rl.learning_rate=0.1 rl.max_steps=60", {"learning_rate", "kl", "truncated"}),
    "grpo_ill_length": (
        "grpo.rewards.format=0 grpo.rewards.accuracy=0.01 reward.length_per_token=0.1 reward.length_cap=100 rl.beta=0 "
        "rl.prompts_per_step=1 rl.micro_prompts=1 rl.max_steps=50 train.dev_samples=20 train.eval_steps=40",
        {"length", "truncated", "no_signal"},
    ),
    "grpo_ill_format": (
        "grpo.rewards.format=10 grpo.rewards.accuracy=0.001 grpo.rewards.length=0 rl.beta=0 rl.prompts_per_step=2 "
        "rl.micro_prompts=2 rl.max_steps=60 train.eval_steps=20",
        {"format_only"},
    ),
    "grpo_ill_late_rate": (
        "rl.learning_rate=0.02 rl.warmup_ratio=0.95 rl.max_steps=100 train.eval_steps=10 train.dev_samples=66",
        {"kl", "format_only", "learning_rate", "truncated", "length"},
    ),
    "sft_ill_rate": ("sft.learning_rate=0.06 sft.epochs=3", {"learning_rate"}),
    "sft_ill_late_rate": (
        "sft.learning_rate=0.04 sft.warmup_ratio=0.95 sft.epochs=4 train.eval_steps=20",
        {"learning_rate"},
    ),
}
#: What shows that the learning rate is too high: one that is from the start, or becomes so after a good one.
SHOWN_BY = {
    "grpo_ill_rate": "the reward went from 0.65 to 0.29",
    "grpo_ill_late_rate": "the development score went from 53.0% to 37.9% and 36.4%",
    "sft_ill_rate": "the loss went from 4.12 to 6.40",
    "sft_ill_late_rate": "the development score went from 46.2% to 27.3% and 6.1%",
}


def log(steps: int = 100, **columns) -> list[dict]:
    """Rows of a training; a column is a function of the step, or the value of each step."""
    steps = range(1, steps + 1)
    columns = {name: column if callable(column) else lambda _, value=column: value for name, column in columns.items()}
    return [{"step": step, **{name: column(step) for name, column in columns.items()}} for step in steps]


def found(rows: list[dict], steps: int = 100) -> set[str]:
    return {finding.rule for finding in review(rows, steps)}


def grows(first: float, last: float, at: int = 50):
    """A column that is `first` until a step, and `last` after it."""
    return lambda step: first if step <= at else last


def below_and_above(name: str, of: float = 1.0) -> tuple[float, float]:
    return 0.98 * limit(name) * of, 1.02 * limit(name) * of


@pytest.mark.parametrize(
    "rule, rows",
    [
        ("kl", lambda value: log(reward=1.0, kl=grows(0.01, value))),
        ("no_signal", lambda value: log(reward=1.0, zero_signal_share=value)),
        ("truncated", lambda value: log(reward=1.0, truncated_share=value)),
    ],
)
def test_a_mean_above_its_limit(rule, rows):
    below, above = below_and_above(rule)
    assert found(rows(below)) == set() and found(rows(above)) == {rule}


@pytest.mark.parametrize("rise", below_and_above("format_rise"))
@pytest.mark.parametrize("gain", below_and_above("flat_accuracy"))
def test_format_alone(rise, gain):
    rows = log(reward_format=grows(0.5, 0.5 + rise, at=70), reward_accuracy=grows(0.45, 0.45 + gain), reward=1.0)
    alone = rise > limit("format_rise") and gain < limit("flat_accuracy")
    assert found(rows) == ({"format_only"} if alone else set())


@pytest.mark.parametrize(
    "scores, rise, step",
    [
        ((40, 40, 40), 0, 60),
        ((40, 42.9, 40), 0, 60),
        ((40, 43.1, 40), 0, 90),
        ((48, 47.9, 47.9), 0, 60),
        ((48, 48.1, 48.1), 0, None),
        ((40, None, 40), 0, 90),
        ((None, None, None), 0, 50),
        ((40, 41, 41), 0.021, None),
        ((40, 39, 39), 0.039, 60),
        ((None, None, None), 0.031, None),
    ],
)
def test_the_rises_of_accuracy_and_of_the_development_score_are_added(scores, rise, step):
    """Accuracy is 0.45 at the start; scores are of steps 30, 60 and 90. One score alone tells nothing."""
    accuracy = grows(0.45, 0.45 + rise, at=20)
    rows = log(reward_format=grows(0.5, 0.9, at=20), reward_accuracy=accuracy, reward=1.0)
    for row, score in zip(rows[29::30], scores):
        row["dev_score"] = score
    assert [x.step for x in review(rows, 100) if x.rule == "format_only"] == ([step] if step else [])


def test_format_may_come_first_in_half_of_the_steps():
    rows = log(reward_format=grows(0.2, 0.9, at=20), reward_accuracy=grows(0.4, 0.6, at=60), reward=1.0)
    assert [(x.rule, x.step) for x in review(rows, 100)] == [("format_only", 50)]
    assert found(rows, steps=160) == set(), "at step 80 of 160 the accuracy has risen"
    assert found([row | {"reward_accuracy": None} for row in rows]) == set(), "without an accuracy reward"


@pytest.mark.parametrize("tokens", below_and_above("length", of=40))
@pytest.mark.parametrize("gain", below_and_above("flat_accuracy"))
def test_completions_that_only_get_longer(tokens, gain):
    rows = log(completion_length=grows(40, tokens, at=70), reward_accuracy=grows(0.4, 0.4 + gain), reward=1.0)
    hacked = tokens > 60 and gain < limit("flat_accuracy")
    assert found(rows) == ({"length"} if hacked else set())


def test_entropy_of_rl_collapses_and_that_of_sft_may():
    below, above = below_and_above("entropy", of=0.3)
    assert found(log(reward=1.0, entropy=grows(0.3, above))) == set()
    assert found(log(reward=1.0, entropy=grows(0.3, below))) == {"entropy"}
    assert found(log(loss=1.0, entropy=grows(0.3, below))) == set()


def test_training_makes_worse_what_it_optimizes():
    below, above = below_and_above("worse")
    rule = {"learning_rate"}
    assert found(log(loss=grows(2, 2 * below, at=FIRST))) == set()
    assert found(log(loss=grows(2, 2 * above, at=FIRST))) == rule
    assert found(log(reward=grows(1, 1 / below, at=FIRST), loss=grows(0.01, 0.9))) == set()
    assert found(log(reward=grows(1, 1 / above, at=FIRST), loss=0.0)) == rule


def test_gradients_of_sft_have_spikes_and_those_of_rl_may():
    def gradients(height):
        return lambda step: height if step % 10 == 0 else 1.0

    assert found(log(loss=1.0, grad_norm=gradients(20))) == set()
    assert found(log(loss=1.0, grad_norm=gradients(22))) == {"learning_rate"}
    assert found(log(loss=1.0, grad_norm=gradients(22), reward=1.0)) == set()


@pytest.mark.parametrize(
    "scores, ill",
    [
        ((60, 44.9, 44.9), True),
        ((60, 46, 40), False),
        ((60, 30), False),
        ((60, 30, 55), False),
        ((30, 60, 50, 44, 43), True),
        ((None, None, None), False),
    ],
)
def test_the_development_score_falls_for_good(scores, ill):
    rows = log(loss=1.0)
    for index, score in enumerate(scores):
        rows[20 * index + 19]["dev_score"] = score
    assert found(rows) == ({"learning_rate"} if ill else set())


def test_short_logs_and_values_that_are_missing():
    ill = {"kl": 9.0, "reward": 1.0, "truncated_share": 1.0}
    assert found(log(WINDOW - 1, **ill)) == set() and found(log(WINDOW, **ill)) == {"kl", "truncated"}
    assert review([], 100) == [] and found(log(steps=100)) == set()
    assert found([{"step": step, "kl": float("nan"), "loss": None} for step in range(1, 101)]) == set()


def test_each_rule_is_reported_once_at_its_first_step():
    rows = log(kl=grows(0.0, 1.0), reward=1.0)
    (finding,) = review(rows, 100)
    assert finding.step == 61 and finding.text == "the KL to the reference is 0.55 nats per token"
    assert check(rows[:61], 100) == [finding] and check(rows[:61], 100, {"kl"}) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_fix_names_parameters_that_the_method_has(method):
    """`learning_rate_full` is named without its block."""
    for rule in ("learning_rate",) if method == "sft" else RULES:
        (finding,) = check(ILL_ROWS[rule], 100)
        keys = re.findall(r"[a-z_]+(?:\.[a-z_]+)+", finding.describe(method))
        for key in keys:
            value = load_params(ROOT / "params.yaml")
            for part in key.split("."):
                value = getattr(value, part)
        assert keys, rule


ILL_ROWS = {
    "format_only": log(reward_format=grows(0.1, 0.9), reward_accuracy=0.4),
    "kl": log(kl=2.0),
    "entropy": log(entropy=grows(0.3, 0.01), reward=1.0),
    "no_signal": log(zero_signal_share=1.0),
    "length": log(completion_length=grows(20, 90), reward_accuracy=0.4),
    "truncated": log(truncated_share=0.9),
    "learning_rate": log(loss=grows(1.0, 9.0)),
}


# Real logs ------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ILL)
def test_trainings_of_the_default_base_that_were_ill_on_purpose(name):
    rows = read(LOGS / f"{name}.csv")
    assert found(rows, rows[-1]["step"]) == ILL[name][1]


@pytest.mark.parametrize("name", SHOWN_BY)
def test_what_shows_that_the_learning_rate_is_too_high(name):
    rows = read(LOGS / f"{name}.csv")
    assert [x.text for x in review(rows, rows[-1]["step"]) if x.rule == "learning_rate"] == [SHOWN_BY[name]]


@pytest.mark.parametrize("path", sorted(LOGS.glob("*_seed_*.csv")), ids=lambda path: path.stem)
def test_the_default_with_other_seeds_is_healthy(path):
    """Logs of `rarl study seeds --seeds 7,8,9`, and of the default at two earlier commits, which are other draws."""
    assert found(read(path), 120) == set()


def test_a_rule_that_fires_on_the_default_fires_on_a_training_that_has_not_beaten_its_base():
    own = pd.read_csv(ROOT / "metrics/tables/own_test.csv").query("mode == 'reasoning'").set_index("model")["final"]
    for method in METHODS:
        rows = read(ROOT / f"metrics/train/{method}.csv")
        assert not review(rows, len(rows)) or own[method] <= own["base"], method


def test_the_report_shows_what_the_rules_find_and_where_a_training_was_stopped(tmp_path, monkeypatch):
    make_run(tmp_path, models=["base", "grpo"], judges=["lexical"], benchmarks=[], modes=["reasoning"])
    html, output = score_and_report(tmp_path, monkeypatch)
    assert "find nothing in the training logs" in html and "unhealthy" not in output
    shutil.copy(LOGS / "grpo_ill_rate.csv", "metrics/train/grpo.csv")
    metrics = read_json("metrics/train/grpo.json")
    write_json("metrics/train/grpo.json", metrics | {"steps": 60, "planned_steps": 200})
    html, output = score_and_report(tmp_path, monkeypatch)
    assert '60<span class="range">stopped; 200 planned</span>' in html
    text = (
        "The learning rate is too high (step 20, learning_rate): the reward went from 0.65 to 0.29. Lower rl.learning"
    )
    for place in (html, " ".join(output.split()), Path("data/report/report.md").read_text().replace("\\", "")):
        assert "WARNING: The training log of RL + LoRA looks unhealthy." in place and text in place
    assert text in html[html.index("<h3>Health</h3>") :]


def test_the_tables_of_the_page_on_training_are_those_of_the_code():
    lines = (ROOT / "docs/training.md").read_text(encoding="utf-8").splitlines()
    for name, (value, unit, reason) in LIMITS.items():
        assert f"| `{name}` | {value:g} | {unit} | {reason} |" in lines
    for name, rule in RULES.items():
        (line,) = [line for line in lines if line.startswith(f"| `{name}` | {rule.title} | ")]
        assert line.endswith(f" | {rule.fix.format(method='grpo', block='rl')} |")


def test_a_training_stops_for_no_rule_by_default():
    assert Train().stop_when == load_params(ROOT / "params.yaml").train.stop_when == []
