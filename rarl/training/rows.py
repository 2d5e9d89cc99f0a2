"""The rows of a training's log: the trainer's values under our names, one row a step."""

import csv
from pathlib import Path

from rarl.records import atomic_file
from rarl.registry import REWARDS

#: The trainers' names of logged values, and the names in our logs.
LOGGED = {
    "dev_score": "dev_score", "loss": "loss", "reward": "reward", "kl": "kl", "entropy": "entropy",
    "grad_norm": "grad_norm", "learning_rate": "learning_rate", "mean_token_accuracy": "token_accuracy",
    "completions/mean_length": "completion_length", "completions/clipped_ratio": "truncated_share",
    "frac_reward_zero_std": "zero_signal_share", "clip_ratio/region_mean": "clip_ratio",
    **{f"rewards/{name}/mean": f"reward_{name}" for name in REWARDS},
}  # fmt: skip


def named(logs: dict) -> dict[str, float]:
    """A step's values under our names; times are left out, so that equal runs have equal logs.

    >>> named({"loss": 0.12345678, "completions/mean_length": 12, "step_time": 3.0, "kl": None})
    {'loss': 0.123457, 'completion_length': 12.0}
    """
    return {ours: float(f"{float(logs[key]):.6g}") for key, ours in LOGGED.items() if logs.get(key) is not None}


def first_and_last(rows: list[dict], share: float = 0.2) -> dict:
    """Mean of each reward over the first and the last fifth of the steps; single steps are too noisy."""
    metrics = {}
    for name in ("reward", *(f"reward_{reward}" for reward in REWARDS)):
        values = [row[name] for row in rows if name in row]
        if values:
            n = max(1, round(len(values) * share))
            metrics[f"{name}_first"] = round(sum(values[:n]) / n, 4)
            metrics[f"{name}_last"] = round(sum(values[-n:]) / n, 4)
    return metrics


def write_csv(path: Path, rows: list[dict]) -> list[str]:
    """Write a run's log; returns its columns."""
    names = ["step", *LOGGED.values()]
    names = [name for name in names if any(name in row for row in rows) or name == "dev_score"]
    with atomic_file(path) as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return names
