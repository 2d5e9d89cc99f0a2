"""Trainings of a random tiny model that are ill on purpose: warned of once, and stopped where asked for."""

import copy
import shutil
from pathlib import Path

import pytest

from rarl.errors import UserError
from rarl.health import WINDOW
from rarl.params import Rewards
from rarl.reporting.inputs import Run


@pytest.fixture
def ill(params):
    """A GRPO training of a model that hardly ever ends a completion."""
    params = copy.deepcopy(params)
    params.rl.max_steps, params.train.eval_steps, params.rl.learning_rate = 3 * WINDOW, 8, 1e-2
    params.grpo.rewards = Rewards(format=1, length=50)
    params.train.stop_when = ["truncated"]
    return params


def outputs() -> dict[Path, bytes]:
    folders = Path("data/models/grpo"), Path("metrics/train")
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_a_training_stops_as_if_that_step_were_its_last(encoded, ill, capsys):
    """The step is scored and saved; a second run adds nothing, and a killed one ends at the same step and bytes."""
    from rarl.training.rl import train_rl

    metrics = train_rl("grpo", ill)
    assert (metrics["steps"], metrics["planned_steps"]) == (WINDOW, ill.rl.max_steps)
    first, said = outputs(), capsys.readouterr().out
    assert "| train.stop_when | truncated |" in Path("data/models/grpo/README.md").read_text()
    assert said.count("Completions are cut off (step 20, truncated)") == 1
    *_, last = Path("metrics/train/grpo.csv").read_text().splitlines()
    assert last.split(",")[:2] == [str(WINDOW), "0.0"], "no checkpoint is due at this step, and it is scored"

    train_rl("grpo", ill)
    said = capsys.readouterr().out
    assert outputs() == first and "nothing is left to train" in said and "cut off" not in said

    (folder,) = Path(".cache/training").iterdir()
    shutil.rmtree(folder / f"checkpoint-{WINDOW}")
    train_rl("grpo", ill)
    assert outputs() == first and f"resuming from {folder}/checkpoint-16" in capsys.readouterr().out


def test_without_stop_when_a_resumed_training_warns_once_and_goes_on(encoded, ill, capsys):
    from rarl.training.rl import train_rl

    ill.train.stop_when, ill.rl.max_steps = [], WINDOW + 6
    metrics = train_rl("grpo", ill)
    assert metrics["steps"] == ill.rl.max_steps and "planned_steps" not in metrics
    first = capsys.readouterr().out
    assert "stop_when" not in Path("data/models/grpo/README.md").read_text(), "the default's cards stay as they were"
    assert first.count("(step 20, truncated)") == 1
    (folder,) = Path(".cache/training").iterdir()
    shutil.rmtree(next(folder.glob(f"checkpoint-{ill.rl.max_steps}")))
    train_rl("grpo", ill)
    assert "truncated" not in capsys.readouterr().out, "the checkpoint that it resumed from is after the warning"
    reported = Run(ill).health["grpo"]
    assert all(finding.describe("grpo") in first for finding in reported), "the report says what was warned of"


def test_groups_without_a_difference_in_reward_end_a_training_early(encoded, ill, capsys):
    from rarl.training.rl import train_rl

    ill.train.stop_when, ill.grpo.rewards = ["no_signal"], Rewards(format=0, length=1, accuracy=0)
    ill.reward.length_cap = 0.0
    with pytest.raises(UserError, match="grpo, 20 steps"):
        train_rl("grpo", ill)
    assert "100% of the groups have equal rewards" in capsys.readouterr().out


def test_the_entropy_of_full_weights_collapses_at_a_large_learning_rate(encoded, ill, capsys):
    from rarl.training.rl import train_rl

    ill.train.trainable, ill.train.stop_when, ill.rl.beta, ill.rl.learning_rate_full = "full", ["entropy"], 0.0, 0.03
    metrics = train_rl("grpo", ill)
    assert metrics["steps"] < metrics["planned_steps"]
    assert f"The entropy collapses (step {metrics['steps']}, entropy)" in capsys.readouterr().out


def test_the_rules_are_in_the_key_only_where_they_can_change_the_weights(encoded, params, monkeypatch):
    from rarl.training import run

    def keys():
        return [run.Run("sft", each, {}).folder for each in (params, stopping)]

    stopping = copy.deepcopy(params)
    stopping.train.stop_when = ["kl"]
    before = keys()
    monkeypatch.setattr(run, "hash_code", lambda source: "other rules")
    assert keys()[0] == before[0] != before[1] != keys()[1]
