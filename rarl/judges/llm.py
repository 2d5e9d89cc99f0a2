"""The LLM judge: asks a language model over an OpenAI-compatible endpoint, as the paper does (3.2).

OpenAI, Gemini (by its compatible endpoint), vLLM, Ollama, an own server: a block under `judge:` names
address, model, and the environment variable that holds the key. The question is appendix B's
(`rubric`), the temperature 0. The paper gives no version of GPT-4o mini or Gemini 1.5 Flash, and does
not say how replies were read: pinned names and structured output are ours.

What leaves the machine: question, reference answers, annotated reasoning, and the model's reasoning
and answer. No image, no file name, no id of a sample or patient. A host that is neither this machine
nor a private address is asked only with `consent: true`.

Replies are kept in `.cache/llm` (`journal`), so that nothing is paid for twice; where all are there,
neither key nor consent nor network is needed. What remains without a reply is unscored, with the
reason, and asked for again by the next run.
"""

import os
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import click

from rarl.errors import UserError
from rarl.judges import rubric
from rarl.judges.journal import Journal, cost
from rarl.params import Judge
from rarl.records import Prediction, Sample, Verdict

#: Private networks: RFC 1918 and RFC 4193. Not link-local, shared, documentation, benchmark or reserved ranges, which
#: Python's `is_private` counts with them: nobody says who answers there.
PRIVATE = [ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]


def judge(
    samples: Sequence[Sample], predictions: Sequence[Prediction], settings: Judge, *, name: str = "llm", **_
) -> list[Verdict]:
    """Rate each prediction by the model's reply; equal questions are asked once.

    Args:
        samples, predictions: one for one, in the same order. Best all of a run at once: the estimate
            and the limits are then for all of them.
        name: the judge's slug.

    Raises:
        UserError: consent, key or budget are missing, or the endpoint cannot be asked.
    """
    from rarl.judges import chat

    cases = [rubric.case(s, p) for s, p in zip(samples, predictions, strict=True)]
    keys = [case and chat.key_for(settings, case.messages) for case in cases]
    distinct = {key: case for key, case in zip(keys, cases) if case}
    failures: dict[str, str] = {}
    with Journal(chat.address(settings), settings.model) as journal:

        def known(messages):
            return journal.get(chat.key_for(settings, messages))

        if ahead := rubric.unanswered(list(distinct.values()), known):
            check(name, settings)
            click.echo(leaves(name, settings, len(ahead)))
            click.echo(estimate(name, settings, ahead, len(distinct), journal))
            private = is_private(settings.base_url)
            failures = chat.ask_all(name, settings, secret(name, settings), private, ahead, journal)
            click.echo(f"judge {name}: {journal.calls} calls on record, {journal.cost(settings):.4f} USD")
        return [
            rubric.verdict(sample, prediction, case, known, failures.get(key))
            for sample, prediction, case, key in zip(samples, predictions, cases, keys)
        ]


def check(name: str, settings: Judge) -> None:
    """Look for what this judge needs before it may ask anything. Sends nothing; quick.

    Raises:
        UserError: consent is not given, or the key is not in the environment.
    """
    if not settings.consent and not is_private(settings.base_url):
        raise UserError(
            f"judge.{name}.consent", "false",
            f"your consent: {leaves(name, settings)}",
            f"set judge.{name}.consent to true if your data may go there, or take `{name}` off `judges` and use "
            "a judge on your own machine (kind `local`, or `llm` at a server of your own)",
        )  # fmt: skip
    plain = urlsplit(settings.base_url).scheme == "http" and not is_here(settings.base_url)
    if plain and settings.api_key_env and not is_private(settings.base_url):
        raise UserError(
            f"judge.{name}.base_url", "http:// to another network, where anybody on the way can read the key",
            "https://", f"correct judge.{name}.base_url, or set api_key_env to null if no key is needed",
        )  # fmt: skip
    if plain:
        read = "the texts and the key" if settings.api_key_env else "the texts"
        click.secho(
            f"  WARNING: judge.{name}.base_url: http:// to another machine, where anybody on the way can read {read}",
            fg="yellow",
            bold=True,
        )
    secret(name, settings)


def secret(name: str, settings: Judge) -> str | None:
    """The API key from the environment; None where the judge needs none.

    Raises:
        UserError: it is not there, or cannot be a key.
    """
    if settings.api_key_env is None:
        return None
    found = os.environ.get(settings.api_key_env, "").strip()
    if not re.fullmatch(r"[!-~]+", found):
        raise UserError(
            f"judge.{name}.api_key_env = {settings.api_key_env}",
            "no such environment variable" if not found else "blanks or special characters in the variable's value",
            "the key to the endpoint in the environment; it stands in no file",
            f"`export {settings.api_key_env}=...` in the shell that runs `dvc repro`, or take `{name}` off `judges`",
        )  # fmt: skip
    return found


def is_private(url: str) -> bool:
    """Whether an address is this machine's or a private network's, by itself and without asking the network.

    >>> is_private("http://localhost:8000/v1"), is_private("http://10.0.0.7/v1"), is_private("https://a.org")
    (True, True, False)
    """
    address = _address(url)
    return is_here(url) or any(address in net for net in PRIVATE if address)


def is_here(url: str) -> bool:
    """Whether an address is this machine's, by itself and without asking the network."""
    host, address = urlsplit(url).hostname or "", _address(url)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _address(url: str):
    """The IP address in a URL; None where a name stands there."""
    try:
        address = ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def leaves(name: str, settings: Judge, count: int | None = None) -> str:
    """What leaves the machine, and where to."""
    address = urlsplit(settings.base_url)
    where = "this machine or network" if is_private(settings.base_url) else "a remote service"
    whose = "each prediction" if count is None else f"{count} predictions"
    return (
        f"judge {name} sends to {address.scheme}://{address.netloc} ({where}) the question, the reference answers, "
        f"the annotated reasoning, and the model's reasoning and answer of {whose}; no image, no file name, no id. "
        "What these texts themselves say of a patient is sent as it stands."
    )


def estimate(name: str, settings: Judge, ahead: Sequence[rubric.Case], total: int, journal: Journal) -> str:
    """What the calls ahead will come to, as a line.

    Raises:
        UserError: with them the judge would pass `max_calls` or `max_cost_usd`.
    """
    from rarl.judges import chat

    into = sum(chat.tokens(case.messages) for case in ahead)
    out = chat.USUAL_RESPONSE * len(ahead)
    spent = journal.cost(settings)
    price = cost(settings, into, out)
    free = settings.price_per_million_input is None and settings.price_per_million_output is None
    money = "no price set" if free else f"about {price:.2f} USD"
    line = (
        f"judge {name}: {len(ahead)} of {total} distinct questions to ask, about {into:,} tokens in and "
        f"{out:,} out, {money}; on record: {journal.calls} calls, {spent:.2f} USD"
    )
    for key, found, most in (
        ("max_calls", journal.calls + len(ahead), settings.max_calls),
        ("max_cost_usd", spent + price, settings.max_cost_usd),
    ):
        if most is not None and found > most:
            raise UserError(
                f"judge.{name}.{key} = {most:g}", f"{line}: {found:,.2f} together",
                f"at most {most:g}, over all runs with this model",
                f"raise judge.{name}.{key}, or list fewer models, modes or benchmarks; nothing was asked",
            )  # fmt: skip
    return line
