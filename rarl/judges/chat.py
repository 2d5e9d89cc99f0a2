"""Asks a chat model at an endpoint about many predictions, within a budget, and keeps every response.

Several requests run at once, evenly spaced under a rate limit. Failures that may pass (429, 5xx, a timeout, a broken
connection, a body that is no chat completion) are retried, after the pause that the endpoint asks for or after
growing ones. A response is in the journal before it counts. Failures that no retry can mend (key refused, model
retired, budget spent) stop the run; requests that are running are waited for and kept.
"""

import asyncio
import contextlib
import json
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence

import click
from tqdm import tqdm

from rarl.errors import UserError
from rarl.judges import endpoint, rubric
from rarl.judges.endpoint import Endpoint, NoResponse, Retry, address
from rarl.judges.journal import TOO_LONG, Answer, Journal, cost, key_of
from rarl.params import Judge

#: Attempts for one chat, not counting those that met the rate limit, and the longest pause in seconds.
ATTEMPTS, LONGEST_PAUSE = 5, 60.0
#: Seconds after which a chat gives up while the endpoint answers "too many requests".
PATIENCE = 600.0
#: Predictions in a row without a response, after which the endpoint counts as broken.
GIVE_UP = 20
#: For estimates: bytes of UTF-8 per token, and tokens of a usual response.
BYTES_PER_TOKEN, USUAL_RESPONSE = 4, 80

VERSION = re.compile(r"[-:@](latest|v?\d[\w.-]*)")


class Stopped(Exception):
    """The run is ending."""


def key_for(settings: Judge, messages: rubric.Messages) -> str:
    """Key of one response: everything that determines it, and nothing else (no API key, no rate limit)."""
    return key_of(
        endpoint=address(settings),
        model=settings.model,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        response_format=settings.response_format,
        messages=messages,
    )


def tokens(messages: rubric.Messages) -> int:
    """Estimate the tokens of a chat."""
    size = sum(len(message["content"].encode()) for message in messages)
    return size // BYTES_PER_TOKEN + 10


class Client:
    """One run over the cases of one judge: concurrency, rate limit, budget and retries.

    Args:
        name: the judge's slug, for messages.
        settings: the judge's block in `params.yaml`.
        secret: the API key, or None.
        private: whether the endpoint is on this machine or network; then no proxy is used.
        journal: where responses are kept.
    """

    def __init__(self, name: str, settings: Judge, secret: str | None, private: bool, journal: Journal):
        self.name, self.settings, self.journal = name, settings, journal
        self.endpoint = Endpoint(name, settings, secret, private)
        self.error, self.clean = self.endpoint.error, self.endpoint.clean
        self.failures: dict[str, str] = {}
        self.failed_in_a_row = 0
        self.next_start = 0.0
        # On record, and what the running requests may add at most.
        self.calls, self.spent = journal.calls, journal.cost(settings)
        self.calls_ahead, self.cost_ahead = 0, 0.0
        self.ended_by: BaseException | None = None
        self.ending = asyncio.Event()

    async def run(self, cases: Sequence[rubric.Case]) -> dict[str, str]:
        """Ask until the journal has the responses to every case.

        Returns:
            Key of a case's first chat -> why it got no response, for those that got none.

        Raises:
            UserError: the endpoint cannot or must not be asked any more. The responses so far are kept.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(signal.SIGINT, self._interrupt, loop)
        waiting = iter(cases)
        with tqdm(total=len(cases), desc=f"judge {self.name}", unit="", disable=None) as bar:
            async with self.endpoint.sdk, asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(cases))):
                    group.create_task(self._work(waiting, bar))
        if self.ended_by is not None:
            raise self.ended_by
        return self.failures

    def _interrupt(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C does not wait
        click.echo("\nStopping: waiting for the running requests.", err=True)
        self._end(KeyboardInterrupt())

    def _end(self, error: BaseException) -> None:
        self.ended_by = self.ended_by or error
        self.ending.set()

    async def _work(self, waiting: Iterator[rubric.Case], bar: tqdm) -> None:
        for case in waiting:
            try:
                await self._settle(case)
            except (UserError, OSError) as error:  # OSError: the response cannot be written to the disk
                self._end(error)
            except Stopped:
                return
            bar.update()

    async def _settle(self, case: rubric.Case) -> None:
        """Ask about one case until nothing is left to ask."""
        for _ in range(2):  # the question and at most one repair: never a loop that costs money
            if not isinstance(messages := rubric.outcome(case, self.journal.known), list):
                return
            try:
                await self._ask(messages)
                self.failed_in_a_row = 0
            except NoResponse as error:
                self.failures[self.journal.key_for(case.messages)] = str(error)
                self.failed_in_a_row += 1
                if self.failed_in_a_row >= GIVE_UP:
                    raise self.error(
                        f"{GIVE_UP} predictions in a row without a response, the last one: {error}",
                        "an endpoint that answers",
                        "look at the endpoint's state, then run the same command again; the responses so far are kept",
                    ) from None
                return

    async def _ask(self, messages: rubric.Messages) -> None:
        """Get the response to one chat into the journal, with retries.

        Raises:
            NoResponse: no attempt succeeded.
        """
        started, failed, pauses = time.monotonic(), 0, 0
        while True:
            try:
                return await self._attempt(messages)
            except Retry as error:
                failed += not error.limited
                if time.monotonic() - started > PATIENCE if error.limited else failed >= ATTEMPTS:
                    raise NoResponse(str(error)) from None
                if (pause := error.after) is None:
                    # Spread, so that requests that failed together do not return together.
                    pause = min(endpoint.FIRST_PAUSE * 2**pauses * random.uniform(1, 1.5), LONGEST_PAUSE)
                    pauses += 1
            await self._sleep(pause)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or return at once when the run ends."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ending.wait(), seconds)

    async def _wait_for_start(self) -> None:
        """Wait until the rate limit allows this request."""
        if self.settings.requests_per_minute:
            now = time.monotonic()
            start = max(now, self.next_start)
            self.next_start = start + 60 / self.settings.requests_per_minute
            if start > now:
                await self._sleep(start - now)
        if self.ending.is_set():
            raise Stopped

    async def _attempt(self, messages: rubric.Messages) -> None:
        await self._wait_for_start()
        worst = cost(self.settings, 2 * tokens(messages), self.settings.max_tokens)
        self._check_budget(worst)
        self.calls_ahead += 1
        self.cost_ahead += worst
        try:
            answer = self._read(await self.endpoint.post(messages), messages)
            same = not answer.model or same_model(self.settings.model, answer.model)
            await self._record(answer if same else answer.model_copy(update={"key": None}))
        except Retry as error:
            if error.billed:
                await self._record(Answer(key=None, input_tokens=tokens(messages), output_tokens=USUAL_RESPONSE))
            raise
        finally:
            self.calls_ahead -= 1
            self.cost_ahead -= worst
        if not same:
            raise self.error(
                f"asked {self.settings.model}, and {answer.model} answered",
                "responses of the model that this judge is defined by",
                f"define {answer.model} as a judge of its own, or name it in {self.endpoint.where}.model; "
                "one model never replaces another silently",
            )

    async def _record(self, answer: Answer) -> None:
        await asyncio.to_thread(self.journal.add, answer)
        self.calls += 1
        self.spent += cost(self.settings, answer.input_tokens, answer.output_tokens)

    def _check_budget(self, worst: float) -> None:
        """Refuse a request that could exceed the budget; it may cost `worst` US dollars at most."""
        calls, dollars = self.settings.max_calls, self.settings.max_cost_usd
        if calls is not None and self.calls + self.calls_ahead + 1 > calls:
            key, found, most = "max_calls", f"{self.calls} calls on record", f"{calls}"
        elif dollars is not None and self.spent + self.cost_ahead + worst > dollars:
            key, found, most = (
                "max_cost_usd",
                f"{self.spent:.4f} USD spent, by the tokens on record",
                f"{dollars:g} USD",
            )
        else:
            return
        raise self.error(
            found,
            f"at most {most} ({key})",
            f"raise {self.endpoint.where}.{key} to go on; the responses so far are kept in {self.journal.path}",
        )

    def _read(self, content: bytes | None, messages: rubric.Messages) -> Answer:
        """The journal's entry for the body of a successful response, whatever the model wrote in it."""
        key, sent = self.journal.key_for(messages), tokens(messages)
        if content is None:
            return Answer(key=key, text=TOO_LONG, input_tokens=sent, output_tokens=self.settings.max_tokens)
        try:
            # Not parsed by the SDK, which builds its objects from whatever an endpoint sends.
            body = json.loads(content)
            choice = body["choices"][0]
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
            finish = choice.get("finish_reason")
            usage = body.get("usage") or {}
            counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
            if not all(isinstance(value, str | None) for value in (text, refusal, finish)):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Retry("the endpoint's response is no chat completion", billed=True) from None
        text = self.clean(text, None)
        guessed = (sent, len(text.encode()) // BYTES_PER_TOKEN)
        counts = [count if isinstance(count, int) and count >= 0 else guess for count, guess in zip(counts, guessed)]
        if finish == "content_filter" and refusal is None:
            refusal = "content filter"
        return Answer(
            key=key,
            text=text,
            refusal=None if refusal is None else self.clean(refusal),
            cut=finish == "length",
            input_tokens=counts[0],
            output_tokens=counts[1],
            model=self.clean(body["model"]) if isinstance(body.get("model"), str) else "",
        )


def same_model(asked: str, answered: str) -> bool:
    """Whether two names mean one model: equal but for a path before them or a version after them.

    >>> same_model("gpt-4o-mini", "gpt-4o-mini-2024-07-18"), same_model("gpt-4o", "gpt-4o-mini")
    (True, False)
    """
    asked, answered = (name.rsplit("/", 1)[-1].lower() for name in (asked, answered))
    short, long = sorted((asked, answered), key=len)
    return short == long or (long.startswith(short) and VERSION.fullmatch(long[len(short) :]) is not None)
