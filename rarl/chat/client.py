"""Asks a chat model at an endpoint many questions, within a budget, and keeps every response.

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
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import click
from tqdm import tqdm

from rarl.chat import endpoint
from rarl.chat.endpoint import Endpoint, NoResponse, Retry, has_images
from rarl.chat.journal import TOO_LONG, Answer, Journal, Messages, cost
from rarl.chat.remote import Remote
from rarl.errors import UserError

#: Attempts for one chat, not counting those that met the rate limit, and the longest pause in seconds.
ATTEMPTS, LONGEST_PAUSE = 5, 60.0
#: Seconds after which a chat gives up while the endpoint answers "too many requests".
PATIENCE = 600.0
#: Questions in a row without a response, after which the endpoint counts as broken.
GIVE_UP = 20
#: For estimates: bytes of UTF-8 per token, and tokens of a usual response.
BYTES_PER_TOKEN, USUAL_RESPONSE = 4, 80
#: The same for an image, until calls on record tell more: some hundred for most models, and thousands for GPT-4o mini.
IMAGE_TOKENS = 1000

VERSION = re.compile(r"[-:@](latest|v?\d[\w.-]*)")


class Stopped(Exception):
    """The run is ending."""


Case = TypeVar("Case")


def tokens(messages: Messages) -> int:
    """Estimate the tokens of a chat.

    >>> tokens([{"role": "user", "content": "Is this normal? " * 10}])
    50
    """
    contents = [message["content"] for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts = [content for content in contents if isinstance(content, str)] + [part.get("text", "") for part in parts]
    images = sum(part["type"] == "image_url" for part in parts)
    return sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN + 10 + images * IMAGE_TOKENS


class Client(Generic[Case]):
    """One run over the cases of one model: concurrency, rate limit, budget and retries.

    Args:
        remote: the model.
        journal: where responses are kept.
        pending: gives the chat that a case still needs a response to; None if the journal has all.
        most_tokens: the token limit of a response.
        schema: JSON schema of the responses; None for free text.
        stops: whether Ctrl-C ends the run; if not, that is left to whoever handles it now.
    """

    def __init__(
        self,
        remote: Remote,
        journal: Journal,
        pending: Callable[[Case], Messages | None],
        most_tokens: int,
        schema: dict | None = None,
        stops: bool = True,
    ):
        self.remote, self.settings, self.journal, self.pending = remote, remote.settings, journal, pending
        self.most_tokens, self.stops = most_tokens, stops
        self.endpoint = Endpoint(remote, most_tokens, schema)
        self.error, self.clean = remote.error, self.endpoint.clean
        self.failures: dict[int, str] = {}
        self.failed_in_a_row = 0
        self.next_start = 0.0
        # On record, and what the running requests may add at most.
        self.calls, self.spent = journal.calls, journal.cost(remote.settings)
        self.calls_ahead, self.cost_ahead = 0, 0.0
        self.ended_by: BaseException | None = None
        self.ending = asyncio.Event()

    async def run(self, cases: Sequence[Case]) -> dict[int, str]:
        """Ask until the journal has the responses to every case.

        Returns:
            Number of a case -> why it got no response, for those that got none.

        Raises:
            UserError: the endpoint cannot or must not be asked any more. The responses so far are kept.
        """
        loop = asyncio.get_running_loop()
        if self.stops:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(signal.SIGINT, self._interrupt, loop)
        waiting = iter(enumerate(cases))
        # Under a training's bar (leave=None) it is removed at the end.
        with tqdm(total=len(cases), desc=self.remote.title, unit="", leave=None, disable=None) as bar:
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

    async def _work(self, waiting: Iterator[tuple[int, Case]], bar: tqdm) -> None:
        for number, case in waiting:
            try:
                await self._settle(number, case)
            except (UserError, OSError) as error:  # OSError: the response cannot be written to the disk
                self._end(error)
            except Stopped:
                return
            bar.update()

    async def _settle(self, number: int, case: Case) -> None:
        """Ask about one case until nothing is left to ask."""
        for _ in range(2):  # the question and at most one repair: never a loop that costs money
            if (messages := self.pending(case)) is None:
                return
            try:
                await self._ask(messages)
                self.failed_in_a_row = 0
            except NoResponse as error:
                self.failures[number] = str(error)
                self.failed_in_a_row += 1
                if self.failed_in_a_row >= GIVE_UP:
                    raise self.error(
                        f"{GIVE_UP} {self.remote.role.unit} in a row without a response, the last one: {error}",
                        "an endpoint that answers",
                        "look at the endpoint's state (is it slow? raise "
                        f"{self.remote.key}.timeout_s or lower {self.remote.key}.concurrency), then run the same "
                        "command again; the responses so far are kept",
                    ) from None
                return

    async def _ask(self, messages: Messages) -> None:
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

    async def _attempt(self, messages: Messages) -> None:
        await self._wait_for_start()
        sent = tokens(messages)
        if has_images(messages):
            sent = max(sent, self.journal.usual_input)
        worst = cost(self.settings, 2 * sent, self.most_tokens)
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
                f"responses of the model that this {self.remote.role.block} is defined by",
                f"define {answer.model} as a {self.remote.role.block} of its own, or name it in "
                f"{self.remote.key}.model; one model never replaces another silently",
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
            f"raise {self.remote.key}.{key} to go on; the responses so far are kept in {self.journal.path}",
        )

    def _read(self, content: bytes | None, messages: Messages) -> Answer:
        """The journal's entry for the body of a successful response, whatever the model wrote in it."""
        key, sent = self.journal.key_for(messages), tokens(messages)
        if content is None:
            return Answer(key=key, text=TOO_LONG, input_tokens=sent, output_tokens=self.most_tokens)
        try:
            # Not parsed by the SDK, which builds its objects from whatever an endpoint sends.
            body = json.loads(content)
            choice = body["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            text, refusal = message.get("content"), message.get("refusal")
            # A reasoning parser's part of the completion: SGLang and older vLLM, then vLLM and Ollama.
            reasoning = message.get("reasoning_content") or message.get("reasoning")
            usage = body.get("usage") or {}
            counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
            if not all(isinstance(value, str | None) for value in (text, refusal, finish)):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Retry("the endpoint's response is no chat completion", billed=True) from None
        if self.endpoint.schema is None and reasoning and isinstance(reasoning, str):
            text = f"<think>{reasoning}</think>\n{text or ''}"
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
