"""The reasoning reward by a judge (`reward.reasoning: judge`): a language model grades the think texts of each step.

Prompt, parsing, budget, retries and kept responses are those of the judges (`rarl.judges.llm`, `local`, `rubric`).
The rubric is appendix B's; its reasoning score, 0 or 1, is the reward. The policy's answer is not sent: the accuracy
reward rates it, and a right answer is no reason to reward its reasoning.

A failure is never a reward of 0:

* Without a response after all retries, or at the end of the budget, the training stops with an error. Its last
  checkpoint and all responses are kept: the next run resumes there and asks nothing twice.
* After an unusable response (a refusal, no verdict after a repair), all completions to its question are left out of
  the reasoning reward in this step. None for one of them would be a 0 beside the others of its group, as TRL sums.
  `GIVE_UP` unusable responses in a row stop the training.

A training without a judge imports neither this module nor the judges, and does not depend on them. One with a judge
has all that its rewards depend on in its key and, for DVC, in `data/reward_judge/<method>.json` (stage `check`).
"""

from collections.abc import Sequence
from pathlib import Path

import click
from filelock import FileLock

from rarl.cache import CACHE, ROOT, hash_code, hash_path
from rarl.chat.journal import Messages, cost
from rarl.chat.remote import Remote, is_private
from rarl.errors import UserError
from rarl.judges import judge_of, llm, local, rubric
from rarl.params import Judge, Params
from rarl.processes.launch import is_main_process
from rarl.records import Prediction, Sample

#: Question, reference answers, annotated reasoning, think text.
Item = tuple[str, Sequence[str], str, str]
#: Unusable responses in a row after which a judge counts as unfit.
GIVE_UP = 20
GO_ON = "run the same command again: the training resumes from its last checkpoint, and nothing is asked twice"
#: Characters of a question, an answer and an annotation, and characters per token, for estimates.
QUESTION, ANSWER, ANNOTATION, CHARACTERS = 80, 16, 300, 4


class Grader:
    """Grades think texts by one judge.

    Args:
        name: its slug.
        settings: its block.
        in_training: whether it is asked at each step of a training.
    """

    def __init__(self, name: str, settings: Judge, in_training: bool = True):
        self.name, self.settings, self.in_training = name, settings, in_training
        self.known: dict[Item, float | None] = {}
        self.unusable = self.in_a_row = 0

    def __call__(self, items: Sequence[Item]) -> list[float | None]:
        """Return 0 or 1 for each think text; None without a usable response, in a training for its whole question.

        Raises:
            UserError: a response, consent, the key or budget is missing, or the judge is unfit.
        """
        items = [(question, tuple(answers), annotation, text) for question, answers, annotation, text in items]
        if new := [item for item in dict.fromkeys(items) if item not in self.known]:
            self.known |= zip(new, self._ask(new), strict=True)
        lost = {item[:3] for item in items if self.in_training and self.known[item] is None}
        return [None if item[:3] in lost else self.known[item] for item in items]

    def _ask(self, items: list[Item]) -> list[float | None]:
        samples, predictions = zip(*map(_rated, items))
        judge, options = judge_of(self.settings.kind), {"name": self.name, "in_training": self.in_training}
        if not self.in_training:
            verdicts = judge(samples, predictions, self.settings, **options)
        else:
            CACHE.mkdir(exist_ok=True)
            try:
                # The processes of a training take turns: limits hold for all of them, and equal texts are asked once.
                with FileLock(CACHE / f"judge_{self.name}.lock"):
                    verdicts = judge(samples, predictions, self.settings, **options)
            except UserError as error:
                *parts, fix = error.parts
                raise UserError(*parts, f"{fix}. Then {GO_ON}") from None
            for verdict in verdicts:
                self._count(verdict.unscored)
        return [None if verdict.unscored else float(verdict.reasoning_score) for verdict in verdicts]

    def _count(self, unusable: str | None) -> None:
        self.in_a_row = self.in_a_row + 1 if unusable else 0
        if not unusable:
            return
        self.unusable += 1
        click.echo(f"judge {self.name}: {unusable}; its question is left out ({self.unusable} such responses so far)")
        if self.in_a_row == GIVE_UP:
            raise UserError(
                f"judge.{self.name}",
                f"{GIVE_UP} think texts in a row without a usable verdict, the last one: {unusable}",
                "verdicts in the rubric's format",
                f"name another judge (reward.judge), or raise judge.{self.name}.max_tokens if responses are cut off",
            )


def grader(params: Params, method: str, rows: int) -> Grader:
    """Make the grader of a training on `rows` rows; print what it sends, and what that costs at most."""
    name = params.reasoning_judge(method)
    if is_main_process():
        click.echo("\n".join(announcement(params, method, rows)))
    return Grader(name, params.judge[name])


def depends(params: Params, method: str) -> dict:
    """All that the rewards of a training depend on if a judge makes them, beside the texts; empty without a judge."""
    name = params.reasoning_judge(method)
    if name is None:
        return {}
    settings, judges = params.judge[name], ROOT / "rarl/judges"
    code = [Path(__file__), judges / "rubric.py", judges / f"{settings.kind}.py"]
    return {
        "kind": settings.kind,
        **{"llm": llm, "local": local}[settings.kind].depends(settings),
        "code": {file.name: hash_code(file.read_text(encoding="utf-8")) for file in code},
        "prompt": {file.name: hash_path(file) for file in sorted(judges.glob("*.txt"))},
    }


def check(params: Params, method: str, rows: int | None) -> list[str]:
    """Check what the judge of a training needs; return what it is sent at most, as lines, none without a judge.

    Raises:
        UserError: consent, key or model are missing, or a limit of what a remote service may be asked.
    """
    name = params.reasoning_judge(method)
    if name is None:
        return []
    settings = params.judge[name]
    if settings.kind == "local":
        local.check(name, settings)
    else:
        llm.check(name, settings, llm.REWARD)
        if not is_private(settings.base_url) and settings.max_cost_usd is None and settings.max_calls is None:
            expected = "a limit, because a training asks about every completion"
            fix = f"set one of them; {bill(params, method, rows)}"
            raise UserError(f"judge.{name}.max_cost_usd, max_calls", "null", expected, fix)
    return announcement(params, method, rows)


def announcement(params: Params, method: str, rows: int | None) -> list[str]:
    """What a training sends to its judge, and what that costs at most, as lines."""
    name = params.reasoning_judge(method)
    lines = [f"{method}: reasoning reward by judge {name}: {bill(params, method, rows)}"]
    if params.judge[name].kind == "llm":
        lines.append(Remote(llm.REWARD, name, params.judge[name]).disclosure())
    return lines


def bill(params: Params, method: str, rows: int | None) -> str:
    """The calls, tokens and cost of a training's judge; `rows` are None if they are not known yet.

    Every completion is counted, though neither rows without annotation nor equal texts are asked about.
    """
    rl, settings = params.rl, params.judge[params.reasoning_judge(method)]
    counted = "" if rows is not None or rl.max_steps > 0 else "per 1,000 training rows "
    item = "x" * QUESTION, ["x" * ANSWER], "x" * ANNOTATION, "x" * CHARACTERS * rl.max_completion_length
    calls = rl.batches(rows or 1000) * rl.prompts_per_step * rl.group_size
    return counted + priced(settings, calls, rubric.case(*_rated(item)).messages)


def priced(settings: Judge, calls: int, messages: Messages) -> str:
    """Tokens and cost of calls, each with a chat as long as `messages`, as half a line."""
    from rarl.chat import client

    sent, received = calls * client.tokens(messages), calls * client.USUAL_RESPONSE
    line = f"at most {calls:,} calls, {sent / 1e6:.1f} M tokens in, {received / 1e6:.1f} M out"
    if settings.kind == "local":
        return f"{line}, on this machine"
    if settings.price_per_million_input is None:
        return f"{line}, no price set"
    most = f" (max_cost_usd: {settings.max_cost_usd:g})" if settings.max_cost_usd is not None else ""
    return f"{line}, {cost(settings, sent, received):.2f} USD{most}"


def _rated(item: Item) -> tuple[Sample, Prediction]:
    """What a judge is asked about: the item and nothing else."""
    question, answers, annotation, text = item
    nowhere = {"id": "", "dataset": "", "split": "train", "image": "", "image_sha256": ""}
    sample = Sample(**nowhere, question=question, answers=list(answers), reasoning=annotation, kind="open")
    return sample, Prediction(id="", completion=text, think=text, answer="")
