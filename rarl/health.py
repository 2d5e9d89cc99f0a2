"""Rules that a person would apply to a training's log: what is wrong, since which step, and what to change.

They read the rows of `metrics/train/<method>.csv` and need no torch. The running training (`rarl/training/health.py`)
applies them at each step, the report to the finished log. docs/training.md shows rules and limits.
"""

from collections.abc import Callable, Collection
from statistics import fmean, median
from typing import NamedTuple


class Limit(NamedTuple):
    """A threshold: its value, its unit, and the reason for the value."""

    value: float
    unit: str
    reason: str


WINDOW = 20
FIRST = 5
"""Steps that show the model before training: the learning rate is still warming up."""
LIMITS = {
    "window": Limit(WINDOW, "steps", "single steps are too noisy: they are means over a few prompts"),
    "format_rise": Limit(0.1, "reward", "what a completion gets for any of the tags"),
    "flat_accuracy": Limit(0.03, "reward and share", "ill trainings have less than 0, the slowest healthy one 0.07"),
    "kl": Limit(0.5, "nats per token", "a token is then 1.6 times as likely as under the reference, on average"),
    "entropy": Limit(0.25, "of the first 5 steps", "the completions of a group are then nearly the same"),
    "no_signal": Limit(0.5, "of the groups", "most of the sampling is then for nothing"),
    "length": Limit(1.5, "times the start", "half as long again, and no better"),
    "truncated": Limit(0.2, "of the completions", "a fifth of the answers are then lost"),
    "worse": Limit(1.5, "times the first 5 steps", "training is to make the loss smaller, and the reward larger"),
    "spike": Limit(3.0, "times the median", "batches alone make the mean gradient of SFT twice its median"),
    "dev_fall": Limit(0.15, "share", "over two standard errors of the difference of two scores of 100 rows"),
}


def limit(name: str) -> float:
    """The value of a threshold."""
    return LIMITS[name].value


class History(NamedTuple):
    """A training's log up to some step.

    rows: one per step, in order; a value that was not logged is absent or None.
    steps: optimizer steps that are planned.
    """

    rows: list[dict]
    steps: int

    def now(self, name: str, average: Callable = fmean) -> float | None:
        """Mean, or another average, of a column over the last window; None before there is one."""
        return _average(self.rows[-WINDOW:], name, average) if len(self.rows) >= WINDOW else None

    def change(self, name: str) -> tuple[float, float] | None:
        """Mean of a column over the first and over the last window; None before they are two."""
        if len(self.rows) < 2 * WINDOW:
            return None
        ends = _average(self.rows[:WINDOW], name), self.now(name)
        return None if None in ends else ends

    def dev_scores(self) -> list[float]:
        """Scores of the development split so far, as shares."""
        return [row["dev_score"] / 100 for row in self.rows if row.get("dev_score") is not None]

    def flat_accuracy(self) -> str | None:
        """What says that accuracy has not risen; None if it has, or if it is too early to tell.

        In the first half of the steps a healthy training may learn the format only. The rewards of a window are noisy,
        and development scores, which are of the same rows each time, are few. Each alone rises by less than a standard
        error in some healthy trainings, so the two rises are added. That of the score is over the first one, or over
        the accuracy reward at the start if that is lower. Where there are scores, at least two are waited for.
        """
        ends = self.change("reward_accuracy")
        if ends is None or 2 * self.rows[-1]["step"] < self.steps:
            return None
        rise, scores = ends[1] - ends[0], self.dev_scores()
        text = f"accuracy from {ends[0]:.2f} to {ends[1]:.2f}"
        if scores:
            rise += scores[-1] - min(scores[0], ends[0])
            text += f", the development score from {scores[0]:.1%} to {scores[-1]:.1%}"
        return text if len(scores) != 1 and rise < limit("flat_accuracy") else None


def _average(rows: list[dict], name: str, average: Callable = fmean) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return average(values) if values else None


def _format_only(log: History) -> str | None:
    ends = log.change("reward_format")
    if ends and ends[1] - ends[0] >= limit("format_rise") and (flat := log.flat_accuracy()):
        return f"the format reward went from {ends[0]:.2f} to {ends[1]:.2f}, {flat}"
    return None


def _above(column: str, name: str, text: str) -> Callable[[History], str | None]:
    """A rule: the mean of a column over the last window is above a limit."""

    def find(log: History) -> str | None:
        value = log.now(column)
        return text.format(value) if value and value > limit(name) else None

    return find


def _entropy(log: History) -> str | None:
    start, now = _average(log.rows[:FIRST], "entropy"), log.now("entropy")
    if start is None or now is None or log.now("reward") is None or now >= limit("entropy") * start:
        return None
    return f"the entropy of a token went from {start:.3f} to {now:.3f} nats"


def _length(log: History) -> str | None:
    ends = log.change("completion_length")
    if ends and ends[1] >= limit("length") * ends[0] and (flat := log.flat_accuracy()):
        return f"completions went from {ends[0]:.0f} to {ends[1]:.0f} tokens, {flat}"
    return None


def _learning_rate(log: History) -> str | None:
    of_sft = log.now("reward") is None  # the loss of RL is near 0 and says little; its gradients have lone spikes
    return (_worse(log, "loss") or _spikes(log) if of_sft else _worse(log, "reward")) or _dev_fall(log)


def _worse(log: History, name: str) -> str | None:
    start, now = _average(log.rows[:FIRST], name), log.now(name)
    if start is None or now is None:
        return None
    low, high = (now, start) if name == "reward" else (start, now)
    return f"the {name} went from {start:.2f} to {now:.2f}" if high > limit("worse") * low else None


def _spikes(log: History) -> str | None:
    mean, usual = log.now("grad_norm"), log.now("grad_norm", median)
    if mean and usual and mean > limit("spike") * usual:
        return f"the gradient's norm has spikes: mean {mean:.2g}, median {usual:.2g}"
    return None


def _dev_fall(log: History) -> str | None:
    if log.rows[-1].get("dev_score") is None:
        return None
    *earlier, before, last = [0, 0, *log.dev_scores()]
    if max(earlier) - max(before, last) >= limit("dev_fall"):
        return f"the development score went from {max(earlier):.1%} to {before:.1%} and {last:.1%}"
    return None


class Rule(NamedTuple):
    """A rule: its title, the function that finds something in a log, and what to change then."""

    title: str
    find: Callable[[History], str | None]
    fix: str


#: Name in `train.stop_when` -> rule. In a fix, {method} and {block} are blocks of params.yaml.
RULES = {
    "format_only": Rule(
        "Only the format improves",
        _format_only,
        "raise {method}.rewards.accuracy or lower {method}.rewards.format; if the KL is high, lower rl.learning_rate",
    ),
    "kl": Rule(
        "The KL runs away",
        _above("kl", "kl", "the KL to the reference is {:.2f} nats per token"),
        "lower rl.learning_rate or raise rl.beta",
    ),
    "entropy": Rule("The entropy collapses", _entropy, "lower rl.learning_rate, or raise rl.beta or rl.epsilon_high"),
    "no_signal": Rule(
        "Most groups have no signal",
        _above("zero_signal_share", "no_signal", "{:.0%} of the groups have equal rewards"),
        "raise rl.group_size or rl.temperature, or weight a reward that differs in a group ({method}.rewards)",
    ),
    "length": Rule(
        "Completions only get longer",
        _length,
        "lower {method}.rewards.length or reward.length_cap, or set reward.guards.repetition: true",
    ),
    "truncated": Rule(
        "Completions are cut off",
        _above("truncated_share", "truncated", "{:.0%} of the completions are cut off"),
        "raise rl.max_completion_length or lower {method}.rewards.length",
    ),
    "learning_rate": Rule(
        "The learning rate is too high",
        _learning_rate,
        "lower {block}.learning_rate (learning_rate_full with train.trainable: full) or raise {block}.warmup_ratio",
    ),
}


class Finding(NamedTuple):
    """What a rule found: the rule's name, the first step at which it did, and the values in words."""

    rule: str
    step: int
    text: str

    def describe(self, method: str) -> str:
        """The finding, and what to change: the keys of `params.yaml` that `method` reads.

        >>> Finding("kl", 30, "the KL is 0.71").describe("grpo")
        'The KL runs away (step 30, kl): the KL is 0.71. Lower rl.learning_rate or raise rl.beta.'
        """
        title, _, fix = RULES[self.rule]
        fix = fix.format(method=method, block="sft" if method == "sft" else "rl")
        return f"{title} (step {self.step}, {self.rule}): {self.text}. {fix[0].upper()}{fix[1:]}."


def check(rows: list[dict], steps: int, known: Collection[str] = ()) -> list[Finding]:
    """What the rules find at the last row; rules in `known` have found something before, and are left out.

    >>> check([{"step": step, "truncated_share": 0.5} for step in range(1, 21)], steps=100)
    [Finding(rule='truncated', step=20, text='50% of the completions are cut off')]
    """
    log = History(rows, steps)
    found = ((name, rule.find(log)) for name, rule in RULES.items() if name not in known)
    return [Finding(name, int(rows[-1]["step"]), text) for name, text in found if text]


def review(rows: list[dict], steps: int) -> list[Finding]:
    """What the rules find in a whole log, each at its first step: what the running training has warned of."""
    found = {}
    for end in range(1, len(rows) + 1):
        found |= {finding.rule: finding for finding in check(rows[:end], steps, found)}
    return list(found.values())
