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
import os
import re
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import click

from rarl.errors import UserError, warn
from rarl.judges import rubric
from rarl.judges.journal import Journal, cost
from rarl.params import Judge
from rarl.records import Prediction, Sample, Verdict

#: Private networks: RFC 1918 and RFC 4193. Python's `is_private` also counts link-local, shared, documentation,
#: benchmark and reserved ranges, where nobody knows who answers.
PRIVATE = [ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]


def judge(
    samples: Sequence[Sample], predictions: Sequence[Prediction], settings: Judge, *, name: str = "llm", **_
) -> list[Verdict]:
    """Rate each prediction by the model's response; equal questions are asked once.

    Best called once for all predictions of a run: the estimate and the limits then apply to all of them.

    Raises:
        UserError: consent, key or budget are missing, or the endpoint cannot be asked.
    """
    from rarl.judges import chat

    def ask(ahead: list[rubric.Case], total: int) -> dict[str, str]:
        check(name, settings)
        click.echo(disclosure(name, settings, len(ahead)))
        click.echo(estimate(name, settings, ahead, total, journal))
        client = chat.Client(name, settings, secret(name, settings), is_private(settings.base_url), journal)
        failures = asyncio.run(client.run(ahead))
        click.echo(f"judge {name}: {journal.calls} calls on record, {journal.cost(settings):.4f} USD")
        return failures

    with Journal(chat.address(settings), settings.model, partial(chat.key_for, settings)) as journal:
        return rubric.rate(samples, predictions, journal, ask)


def check(name: str, settings: Judge) -> None:
    """Check what this judge needs before it may ask anything. Sends nothing.

    Raises:
        UserError: consent is not given, or the key is not in the environment.
    """
    if not settings.consent and not is_private(settings.base_url):
        raise UserError(
            f"judge.{name}.consent",
            "false",
            f"your consent: {disclosure(name, settings)}",
            f"set judge.{name}.consent to true if your data may go there, or remove `{name}` from `judges` and use "
            "a judge on your own machine (kind `local`, or `llm` at a server of your own)",
        )
    plain = urlsplit(settings.base_url).scheme == "http" and not is_here(settings.base_url)
    if plain and settings.api_key_env and not is_private(settings.base_url):
        raise UserError(
            f"judge.{name}.base_url",
            "http:// to another network, where anybody on the way can read the key",
            "https://",
            f"correct judge.{name}.base_url, or set api_key_env to null if no key is needed",
        )
    if plain:
        read = "the texts and the key" if settings.api_key_env else "the texts"
        warn(f"judge.{name}.base_url: http:// to another machine, where anybody on the way can read {read}")
    secret(name, settings)


def secret(name: str, settings: Judge) -> str | None:
    """The API key from the environment; None if the judge needs none.

    Raises:
        UserError: it is missing, or cannot be a key.
    """
    if settings.api_key_env is None:
        return None
    found = os.environ.get(settings.api_key_env, "").strip()
    if not re.fullmatch(r"[!-~]+", found):
        raise UserError(
            f"judge.{name}.api_key_env = {settings.api_key_env}",
            "no such environment variable" if not found else "blanks or special characters in the variable's value",
            "the endpoint's key in the environment; it is in no file",
            f"`export {settings.api_key_env}=...` in the shell of `dvc repro`, or remove `{name}` from `judges`",
        )
    return found


def is_private(url: str) -> bool:
    """Whether an address is this machine's or a private network's, without a DNS query.

    >>> is_private("http://localhost:8000/v1"), is_private("http://10.0.0.7/v1"), is_private("https://a.org")
    (True, True, False)
    """
    address = _address(url)
    return is_here(url) or any(address in net for net in PRIVATE if address)


def is_here(url: str) -> bool:
    """Whether an address is this machine's, without a DNS query."""
    host, address = urlsplit(url).hostname or "", _address(url)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _address(url: str):
    """The IP address in a URL; None if it has a host name."""
    try:
        address = ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def disclosure(name: str, settings: Judge, count: int | None = None) -> str:
    """What leaves the machine, and where it goes."""
    address = urlsplit(settings.base_url)
    where = "this machine or network" if is_private(settings.base_url) else "a remote service"
    whose = "each prediction" if count is None else f"{count} predictions"
    return (
        f"judge {name} sends to {address.scheme}://{address.netloc} ({where}) the question, the reference answers, "
        f"the annotated reasoning, and the model's reasoning and answer of {whose}; no image, no file name, no id. "
        "What these texts themselves say about a patient is sent unchanged."
    )


def estimate(name: str, settings: Judge, ahead: Sequence[rubric.Case], total: int, journal: Journal) -> str:
    """Estimate the calls ahead, as a line.

    Raises:
        UserError: they would exceed `max_calls` or `max_cost_usd`.
    """
    from rarl.judges import chat

    sent = sum(chat.tokens(case.messages) for case in ahead)
    received = chat.USUAL_RESPONSE * len(ahead)
    spent, price = journal.cost(settings), cost(settings, sent, received)
    priced = {settings.price_per_million_input, settings.price_per_million_output} != {None}
    money = f"about {price:.2f} USD" if priced else "no price set"
    line = (
        f"judge {name}: {len(ahead)} of {total} distinct questions to ask, about {sent:,} tokens in and "
        f"{received:,} out, {money}; on record: {journal.calls} calls, {spent:.2f} USD"
    )
    for key, found, most in (
        ("max_calls", journal.calls + len(ahead), settings.max_calls),
        ("max_cost_usd", spent + price, settings.max_cost_usd),
    ):
        if most is not None and found > most:
            raise UserError(
                f"judge.{name}.{key} = {most:g}",
                f"{line}: {found:,.2f} together",
                f"at most {most:g}, over all runs with this model",
                f"raise judge.{name}.{key}, or list fewer models, modes or benchmarks; nothing was asked",
            )
    return line
