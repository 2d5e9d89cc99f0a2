"""A model at an endpoint, and what must be there before it may be asked anything: consent, key and budget.

A host that is neither this machine nor at a private address is asked only with `consent: true`.
"""

import os
import re
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from rarl.chat.journal import Journal, cost
from rarl.errors import UserError, warn
from rarl.params import Endpoint

#: Private networks: RFC 1918 and RFC 4193. Python's `is_private` also counts link-local, shared, documentation,
#: benchmark and reserved ranges, where nobody knows who answers.
PRIVATE = [ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]


@dataclass(frozen=True)
class Role:
    """What a model at an endpoint is asked for; the words of its messages.

    Attributes:
        block: its block in `params.yaml`, where it is defined by slug.
        listed: the list in `params.yaml` by which it is asked.
        task: completes "it can ... nothing more".
        unit: what one request is about, in the plural.
        sends: what a request has.
        read: what somebody on the way could read.
        instead: what to use where nothing may be sent.
    """

    block: str
    listed: str
    task: str
    unit: str
    sends: str
    read: str
    instead: str


@dataclass(frozen=True)
class Remote:
    """A model at an endpoint: its role, slug and settings."""

    role: Role
    name: str
    settings: Endpoint

    @property
    def title(self) -> str:
        """The name in messages, such as `judge gpt_4o_mini`."""
        return f"{self.role.block} {self.name}"

    @property
    def key(self) -> str:
        """The key in `params.yaml`."""
        return f"{self.role.block}.{self.name}"

    @property
    def error(self):
        """Make a `UserError` about this model from what was found, what was expected and what to do."""
        return partial(UserError, self.key)

    def check(self, quiet: bool = False) -> None:
        """Check what is needed before anything may be asked, and warn (unless `quiet`). Sends nothing.

        Raises:
            UserError: consent is not given, or the key is not in the environment.
        """
        key, settings, url = self.key, self.settings, self.settings.base_url
        if not settings.consent and not is_private(url):
            raise UserError(
                f"{key}.consent",
                "false",
                f"your consent: {self.disclosure()}",
                f"set {key}.consent to true if your data may go there, or remove `{self.name}` from "
                f"`{self.role.listed}` and use {self.role.instead}",
            )
        plain = urlsplit(url).scheme == "http" and not is_here(url)
        if plain and settings.api_key_env and not is_private(url):
            raise UserError(
                f"{key}.base_url",
                "http:// to another network, where anybody on the way can read the key",
                "https://",
                f"correct {key}.base_url, or set api_key_env to null if no key is needed",
            )
        if plain and not quiet:
            read = self.role.read + (" and the key" if settings.api_key_env else "")
            warn(f"{key}.base_url: http:// to another machine, where anybody on the way can read {read}")
        self.secret()

    def secret(self) -> str | None:
        """Return the API key from the environment; None if none is needed.

        Raises:
            UserError: it is missing, or cannot be a key.
        """
        variable = self.settings.api_key_env
        if variable is None:
            return None
        found = os.environ.get(variable, "").strip()
        if not re.fullmatch(r"[!-~]+", found):
            raise UserError(
                f"{self.key}.api_key_env = {variable}",
                "blanks or special characters in its value" if found else "no such environment variable",
                "the endpoint's key in the environment; it is in no file",
                f"`export {variable}=...` in the shell of `dvc repro`, or remove `{self.name}` from "
                f"`{self.role.listed}`",
            )
        return found

    def disclosure(self, count: int | None = None) -> str:
        """Return what leaves the machine, and where it goes."""
        url = urlsplit(self.settings.base_url)
        where = "this machine or network" if is_private(self.settings.base_url) else "a remote service"
        whose = f"each {self.role.unit[:-1]}" if count is None else f"{count} {self.role.unit}"
        sends = self.role.sends.replace("{whose}", whose)
        return f"{self.title} sends to {url.scheme}://{url.netloc} ({where}) {sends}"

    def estimate(self, ahead: int, total: int, sent: int, received: int, journal: Journal) -> str:
        """Estimate the calls ahead, as a line.

        Args:
            ahead: questions to ask, of `total`.
            total: distinct questions.
            sent: input tokens of the calls ahead.
            received: output tokens of the calls ahead.
            journal: the responses on record.

        Raises:
            UserError: the calls would exceed `max_calls` or `max_cost_usd`.
        """
        settings = self.settings
        spent, price = journal.cost(settings), cost(settings, sent, received)
        priced = {settings.price_per_million_input, settings.price_per_million_output} != {None}
        money = f"about {price:.2f} USD" if priced else "no price set"
        line = (
            f"{self.title}: {ahead} of {total} distinct questions to ask, about {sent:,} tokens in and "
            f"{received:,} out, {money}; on record: {journal.calls} calls, {spent:.2f} USD"
        )
        for key, found, most in (
            ("max_calls", journal.calls + ahead, settings.max_calls),
            ("max_cost_usd", spent + price, settings.max_cost_usd),
        ):
            if most is not None and found > most:
                raise UserError(
                    f"{self.key}.{key} = {most:g}",
                    f"{line}: {found:,.2f} together",
                    f"at most {most:g}, over all runs with this model",
                    f"raise {self.key}.{key}, or list fewer models, modes or benchmarks; nothing was asked",
                )
        return line


def address(settings: Endpoint) -> str:
    """The base URL without a slash at its end."""
    return settings.base_url.rstrip("/")


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
