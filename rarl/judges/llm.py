"""The LLM judge: asks a language model at an OpenAI-compatible endpoint, as in the paper (section 3.2).

OpenAI, Gemini (through its compatible endpoint), vLLM, Ollama or an own server: a block under `judge:` names address,
model, and the environment variable with the key. The prompt is appendix B's (`rubric`), the temperature 0. The paper
gives no version of GPT-4o mini or Gemini 1.5 Flash, nor how responses were parsed: pinned names and structured output
are ours.

What leaves the machine: question, reference answers, annotated reasoning, and the model's reasoning and answer. No
image, no file name, no id of a sample or patient. A host that is neither this machine nor at a private address is
asked only with `consent: true`.

Responses are kept in `.cache/llm` (`journal`), so that nothing is paid for twice; if all are there, neither key nor
consent nor network is needed. A prediction without a response is unscored, with the reason, and asked about again by
the next run.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import click

from rarl.chat.journal import Journal, Messages, key_of
from rarl.chat.remote import Remote, Role, address
from rarl.judges import rubric
from rarl.params import Judge
from rarl.records import Prediction, Sample, Verdict

JUDGE = Role(
    block="judge",
    listed="judges",
    task="rate",
    unit="predictions",
    sends="the question, the reference answers, the annotated reasoning, and the model's reasoning and answer of "
    "{whose}; no image, no file name, no id. What these texts themselves say about a patient is sent unchanged.",
    read="the texts",
    instead="a judge on your own machine (kind `local`, or `llm` at a server of your own)",
)
#: The same in a training, where it grades the reasoning (`rarl/training/judged.py`).
REWARD = replace(
    JUDGE,
    listed="reward.judge",
    unit="think texts",
    sends="{whose} of the policy, with the question, the reference answers and the annotated reasoning; no image, no "
    "file name, no id. What these texts themselves say about a patient is sent unchanged.",
)


def judge(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    settings: Judge,
    *,
    name: str = "llm",
    in_training: bool = False,
    **_,
) -> list[Verdict]:
    """Rate each prediction by the model's response; equal questions are asked once.

    Best called once for all predictions of a run: the estimate and the limits then apply to all of them. A training
    (`in_training`) asks at each step: nothing is printed, Ctrl-C is left to it, and a missing response is an error.

    Raises:
        UserError: consent, key or budget are missing, or the endpoint cannot be asked.
    """
    from rarl.chat import client

    remote = Remote(REWARD if in_training else JUDGE, name, settings)

    def ask(ahead: list[rubric.Case], total: int) -> dict[str, str]:
        remote.check(quiet=in_training)
        asked = client.Client(remote, journal, pending, settings.max_tokens, rubric.SCHEMA, not in_training)
        if in_training:
            if failures := asyncio.run(asked.run(ahead)):
                found = f"{len(failures)} of {len(ahead)} {remote.role.unit} without a response: "
                found += next(iter(failures.values()))
                raise remote.error(found, "a response to each", "look at the endpoint's state")
            return {}
        click.echo(remote.disclosure(len(ahead)))
        sent = sum(client.tokens(case.messages) for case in ahead)
        click.echo(remote.estimate(len(ahead), total, sent, client.USUAL_RESPONSE * len(ahead), journal))
        failures = asyncio.run(asked.run(ahead))
        click.echo(f"{remote.title}: {journal.calls} calls on record, {journal.cost(settings):.4f} USD")
        return {journal.key_for(ahead[number].messages): why for number, why in failures.items()}

    def pending(case: rubric.Case) -> Messages | None:
        return found if isinstance(found := rubric.outcome(case, journal.known), list) else None

    with Journal(address(settings), settings.model, partial(key_for, settings)) as journal:
        return rubric.rate(samples, predictions, journal, ask)


def key_for(settings: Judge, messages: Messages) -> str:
    """Key of one response: everything that determines it, and nothing else."""
    return key_of(**depends(settings), messages=messages)


def depends(settings: Judge) -> dict:
    """What responses depend on beside the chat (no API key, no rate limit)."""
    names = ("model", "temperature", "max_tokens", "response_format")
    return {"endpoint": address(settings), **{name: getattr(settings, name) for name in names}}


def check(name: str, settings: Judge, role: Role = JUDGE) -> None:
    """Check what this judge needs before it may ask anything (`Remote.check`)."""
    Remote(role, name, settings).check()
