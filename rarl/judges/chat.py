"""A client for chat completions of any OpenAI-compatible endpoint, for many questions and little trust.

`POST {base_url}/chat/completions`, several requests in flight, evenly spaced under a rate limit. What
fails on the way is tried again (429, 5xx, timeout, cut connection, a reply that is no reply), after as
long as the endpoint asks for (`Retry-After` in seconds or as a date, Gemini's `retryDelay`), else
after growing pauses. Each reply is put into the journal before it counts. What no second try can
mend (key refused, model retired, money at its limit) stops the run: requests on their way are waited
for and kept.

The key is held here alone. It is taken out of every text that an endpoint sends back. A response is read in a stream
and no further than `LARGEST` bytes, also where it is compressed.
"""

import asyncio
import contextlib
import json
import random
import re
import signal
import time
import zlib
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import click
import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tqdm import tqdm

from rarl.errors import UserError
from rarl.judges import rubric
from rarl.judges.journal import TOO_LONG, Answer, Journal, cost, key_of
from rarl.params import Judge

#: Tries of one request, and seconds before the second one; each further pause is twice as long.
ATTEMPTS, FIRST_PAUSE, LONGEST_PAUSE = 5, 1.0, 60.0
#: Seconds for which one request goes on trying while the endpoint says "too many requests".
PATIENCE = 600.0
#: An endpoint that asks to wait for longer than this many seconds ends the run.
LONGEST_WAIT = 900.0
#: Bytes of a response, decompressed, beyond which it is not read on: a thousand times a usual one.
LARGEST = 1_000_000
#: Predictions in a row that got no reply, after which the endpoint is taken to be out of order.
GIVE_UP = 20
#: Tries while nothing at all has answered: an address where nobody is.
KNOCKS = 3
#: For estimates: bytes of UTF-8 a token, and tokens of a usual reply.
BYTES_PER_TOKEN, USUAL_REPLY = 4, 80

_FORMATS = ("json_schema", "json_object", "text")
_FORMAT_REFUSED = re.compile(
    r"response_format|json_schema|json_object|json mode|structured|guided|grammar|schema", re.I
)
#: The second is what OpenAI's reasoning models take in place of the first.
_LIMITS = ("max_tokens", "max_completion_tokens")
_RETIRED = re.compile(r"deprecated|decommission|retired|discontinued|shut down|no longer|end of life|sunset", re.I)
_VERSION = re.compile(r"[-:@](latest|v?\d[\w.-]*)")


class NoReply(Exception):
    """One question got no reply: why, as the half of a sentence. Others may."""


class _Again(Exception):
    """A request failed in a way that another try may mend."""

    def __init__(self, why: str, after: float | None = None, limited: bool = False, sent: bool = False):
        super().__init__(why)
        self.after, self.limited = after, limited
        self.sent = sent
        """Whether the endpoint may have worked on it, and bill it."""


class _Stopped(Exception):
    """The run is being stopped."""


def key_for(settings: Judge, messages: rubric.Messages) -> str:
    """Key of one reply: of all that determines it, and of nothing else (no API key, no rate limit)."""
    return key_of(
        endpoint=endpoint(settings),
        model=settings.model,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        response_format=settings.response_format,
        messages=messages,
    )


def endpoint(settings: Judge) -> str:
    return settings.base_url.rstrip("/")


def tokens(messages: rubric.Messages) -> int:
    """About how many tokens a chat has."""
    size = sum(len(message["content"].encode()) for message in messages)
    return size // BYTES_PER_TOKEN + 10


def ask_all(
    name: str, settings: Judge, secret: str | None, private: bool, cases: Sequence[rubric.Case], journal: Journal
) -> dict[str, str]:
    """Ask until every case has its replies in the journal.

    Args:
        name: the judge's slug, for messages.
        secret: the API key, or None.
        private: whether the endpoint is on this machine or network; then no proxy is used.

    Returns:
        key of a case's first chat -> why it got no reply, for those that got none.

    Raises:
        UserError: the endpoint cannot or must not be asked any further. What was answered is kept.
    """
    return asyncio.run(_Client(name, settings, secret, journal).run(cases, private))


class _Client:
    def __init__(self, name: str, settings: Judge, secret: str | None, journal: Journal):
        self.name, self.settings, self.secret, self.journal = name, settings, secret, journal
        self.key = _spellings(secret) if secret and len(secret) >= 8 else None
        self.where = f"judge.{name}"
        self.format, self.limit = settings.response_format, _LIMITS[0]
        self.failures: dict[str, str] = {}
        self.failed_in_a_row = 0
        self.reached, self.knocks = False, 0
        self.next_turn = 0.0
        # What is on record, and what the requests on their way may add to it at most.
        self.calls, self.spent = journal.calls, journal.cost(settings)
        self.calls_ahead, self.cost_ahead = 0, 0.0
        self.ended_by: BaseException | None = None

    async def run(self, cases: Sequence[rubric.Case], private: bool) -> dict[str, str]:
        self.ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(signal.SIGINT, self._interrupted, loop)
        headers = {"Accept-Encoding": "gzip"}
        if self.secret:
            headers["Authorization"] = f"Bearer {self.secret}"
        waiting = iter(cases)
        with tqdm(total=len(cases), desc=f"judge {self.name}", unit="", disable=None) as bar:
            async with (
                httpx2.AsyncClient(
                    headers=headers,
                    timeout=None,
                    trust_env=not private,
                    limits=httpx2.Limits(max_connections=self.settings.concurrency),
                ) as self.http,
                asyncio.TaskGroup() as group,
            ):
                for _ in range(min(self.settings.concurrency, len(cases))):
                    group.create_task(self._work(waiting, bar))
        if self.ended_by is not None:
            raise self.ended_by
        return self.failures

    def _interrupted(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C does not wait
        click.echo("\nStopping: waiting for the replies that are on their way.", err=True)
        self._end(KeyboardInterrupt())

    def _end(self, error: BaseException) -> None:
        self.ended_by = self.ended_by or error
        self.ending.set()

    async def _work(self, waiting, bar: tqdm) -> None:
        for case in waiting:
            try:
                await self._settle(case)
            except (UserError, OSError) as error:  # the second: a reply cannot be put on the disk
                self._end(error)
            except _Stopped:
                return
            bar.update()

    async def _settle(self, case: rubric.Case) -> None:
        """Ask until nothing more is to be asked about one case."""
        for _ in range(2):  # the question and at most one more: never a loop that costs money
            if not isinstance(messages := rubric.outcome(case, self.known), list):
                return
            try:
                await self._ask(messages)
                self.failed_in_a_row = 0
            except NoReply as error:
                self.failures[key_for(self.settings, case.messages)] = str(error)
                self.failed_in_a_row += 1
                if self.failed_in_a_row >= GIVE_UP:
                    raise self._user_error(
                        f"{GIVE_UP} predictions in a row without a reply, the last one: {error}",
                        "an endpoint that answers",
                        "look at the endpoint's state, then run the same command again; what was answered is kept",
                    ) from None
                return

    def known(self, messages: rubric.Messages) -> Answer | None:
        return self.journal.get(key_for(self.settings, messages))

    async def _ask(self, messages: rubric.Messages) -> None:
        """Put the reply to one chat into the journal.

        Raises:
            NoReply: there is none, after all tries.
        """
        failed = pauses = 0

        async def attempt() -> None:
            nonlocal failed
            try:
                await self._attempt(messages)
            except _Again as error:
                failed += not error.limited
                raise

        def enough(state: RetryCallState) -> bool:
            if state.outcome.exception().limited:  # a matter of time, not of luck
                return state.seconds_since_start > PATIENCE
            return failed >= ATTEMPTS

        def pause(state: RetryCallState) -> float:
            nonlocal pauses
            if (asked := state.outcome.exception().after) is not None:
                return asked
            pauses += 1
            # Spread, so that requests which failed together do not come back together.
            return min(FIRST_PAUSE * 2 ** (pauses - 1) * random.uniform(1, 1.5), LONGEST_PAUSE)

        try:
            await AsyncRetrying(
                retry=retry_if_exception_type(_Again), wait=pause, stop=enough, sleep=self._sleep, reraise=True
            )(attempt)
        except _Again as error:
            raise NoReply(str(error)) from None

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the run goes on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ending.wait(), seconds)

    async def _turn(self) -> None:
        """Wait for this request's place under the rate limit."""
        if self.settings.requests_per_minute:
            now = time.monotonic()
            turn = max(now, self.next_turn)
            self.next_turn = turn + 60 / self.settings.requests_per_minute
            if turn > now:
                await self._sleep(turn - now)
        if self.ending.is_set():
            raise _Stopped

    async def _attempt(self, messages: rubric.Messages) -> None:
        await self._turn()
        worst = cost(self.settings, 2 * tokens(messages), self.settings.max_tokens)
        self._check_budget(worst)
        self.calls_ahead += 1
        self.cost_ahead += worst
        try:
            answer = self._read(await self._post(messages), messages)
            same = not answer.model or same_model(self.settings.model, answer.model)
            await self._record(answer if same else answer.model_copy(update={"key": None}))
        except _Again as error:
            if error.sent:
                lost = Answer(key=None, input_tokens=tokens(messages), output_tokens=USUAL_REPLY)
                await self._record(lost)
            raise
        finally:
            self.calls_ahead -= 1
            self.cost_ahead -= worst
        if not same:
            raise self._user_error(
                f"asked {self.settings.model}, and {answer.model} answered",
                "answers of the model that this judge is defined by",
                f"define {answer.model} as a judge of its own, or name it in {self.where}.model; "
                "one model never stands in for another silently",
            )

    async def _record(self, answer: Answer) -> None:
        await asyncio.to_thread(self.journal.add, answer)
        self.calls += 1
        self.spent += cost(self.settings, answer.input_tokens, answer.output_tokens)

    def _check_budget(self, worst: float) -> None:
        settings, kept = self.settings, f"what was answered is kept in {self.journal.path}"
        most = settings.max_calls
        if most is not None and self.calls + self.calls_ahead + 1 > most:
            raise self._user_error(
                f"{self.calls} calls on record", f"at most {most} (max_calls)",
                f"raise {self.where}.max_calls to go on; {kept}",
            )  # fmt: skip
        most = settings.max_cost_usd
        if most is not None and self.spent + self.cost_ahead + worst > most:
            raise self._user_error(
                f"{self.spent:.4f} USD spent, by the tokens on record", f"at most {most:g} USD (max_cost_usd)",
                f"raise {self.where}.max_cost_usd to go on; {kept}",
            )  # fmt: skip

    async def _post(self, messages: rubric.Messages) -> bytes | None:
        """The body of a response of status 200; None where it is larger than `LARGEST`."""
        body = {"model": self.settings.model, "messages": messages, self.limit: self.settings.max_tokens}
        if self.settings.temperature is not None:
            body["temperature"] = self.settings.temperature
        used = self.format
        if used == "json_schema":
            schema = {"name": "verdict", "strict": True, "schema": rubric.SCHEMA}
            body["response_format"] = {"type": used, "json_schema": schema}
        elif used == "json_object":
            body["response_format"] = {"type": used}
        try:
            url = f"{endpoint(self.settings)}/chat/completions"
            async with asyncio.timeout(self.settings.timeout_s), self.http.stream("POST", url, json=body) as response:
                content = await _content(response)
        except TimeoutError:
            raise _Again(f"no reply within {self.settings.timeout_s:g} s", sent=True) from None
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            self.knocks += 1
            if not self.reached and self.knocks >= KNOCKS:
                raise self._user_error(
                    f"nobody answers at {endpoint(self.settings)} ({self._clean(error)})",
                    "an endpoint that can be reached",
                    f"start the server, or correct {self.where}.base_url",
                ) from None
            raise _Again("the endpoint cannot be reached") from None
        except httpx2.HTTPError as error:
            raise _Again(f"the connection broke ({type(error).__name__})", sent=True) from None
        self.reached = True
        if response.status_code != 200:
            headers = [pair for pair in response.headers.raw if pair[0].lower() == b"retry-after"]
            read = httpx2.Response(response.status_code, headers=headers, content=content or b"")
            self._refused(read, used)
        return content

    def _refused(self, response: httpx2.Response, used: str) -> None:
        """Raise what an HTTP status other than 200 means."""
        status, (code, message) = response.status_code, _error_in(response)
        said = f"HTTP {status}: {self._clean(message) or 'no words'}"
        host, model = urlsplit(self.settings.base_url).hostname, self.settings.model
        if status in (401, 403):
            # Not what the endpoint says: some repeat the key, or a part of it.
            name = self.settings.api_key_env
            raise self._user_error(
                f"{host} refuses the key (HTTP {status})",
                f"a valid key in the environment variable {name}" if name else "an endpoint that asks for no key",
                f"set {name} to a key that may use {model}" if name else f"set {self.where}.api_key_env to a variable's name",
            )  # fmt: skip
        if status == 402 or (status == 429 and "insufficient_quota" in f"{code} {message}"):
            raise self._user_error(
                f"the account at {host} has no credit left ({said})", "an account that can pay",
                "top the account up, then run the same command again; what was answered is kept",
            )  # fmt: skip
        if 300 <= status < 400:
            raise self._user_error(
                f"{endpoint(self.settings)} sends us elsewhere (HTTP {status})",
                "the endpoint's own address; a key is not carried to another one",
                f"correct {self.where}.base_url",
            )
        gone = status == 410 or (status == 404 and "model" in f"{code} {message}".lower())
        if gone or (400 <= status < 500 and status != 429 and _RETIRED.search(f"{code} {message}")):
            raise self._user_error(
                f"{host} does not serve {model} ({said})",
                "the model that this judge is defined by",
                f"if its provider has retired it, its verdicts can no longer be made: take `{self.name}` off `judges`. "
                "A successor is another judge, with a slug of its own under `judge:`, as its scores do not "
                "compare; none is put in its place silently. A model of your own server may still have to be loaded",
            )
        if status == 404:
            raise self._user_error(
                f"{endpoint(self.settings)}/chat/completions is not there ({said})",
                "the address before /chat/completions, which mostly ends in /v1",
                f"correct {self.where}.base_url",
            )
        if status in (408, 409, 425, 429) or status >= 500:
            after = _retry_after(response)
            if after is not None and after > LONGEST_WAIT:
                raise self._user_error(
                    f"{host} asks to wait for {after:.0f} s ({said})", "a pause of minutes",
                    "run the same command again after that time; what was answered is kept",
                )  # fmt: skip
            # No time at all, or one that has passed, is no advice: pauses then grow as where none is given.
            advised = after if after and after >= FIRST_PAUSE else None
            raise _Again(f"HTTP {status}", advised, limited=status == 429)
        if status in (400, 422) and _LIMITS[1] in message:
            self.limit = _LIMITS[1]
            raise _Again(said, after=0.0)
        if status in (400, 422) and "temperature" in message and self.settings.temperature is not None:
            raise self._user_error(
                f"{host} refuses the temperature for {model} ({said})", "a temperature that it takes, or none",
                f"set {self.where}.temperature to null, which sends none",
            )  # fmt: skip
        if status in (400, 422) and used != "text" and _FORMAT_REFUSED.search(f"{code} {message}"):
            if self.format == used:
                self.format = _FORMATS[_FORMATS.index(used) + 1]
                tqdm.write(f"{host} has no {used} for {model}: asking for {self.format}")
            raise _Again(said, after=0.0)
        raise NoReply(f"the endpoint refused the request ({said})")

    def _read(self, content: bytes | None, messages: rubric.Messages) -> Answer:
        """The answer in a response of status 200, whatever the model said in it."""
        key = key_for(self.settings, messages)
        if content is None:
            most = self.settings.max_tokens
            return Answer(key=key, text=TOO_LONG, input_tokens=tokens(messages), output_tokens=most)
        try:
            body = json.loads(content)
            choice = body["choices"][0]
            said, refusal = choice["message"].get("content"), choice["message"].get("refusal")
            finish = choice.get("finish_reason")
            usage = body.get("usage") or {}
            if not all(isinstance(value, str | None) for value in (said, refusal, finish)):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Again("the endpoint's reply is no chat completion", sent=True) from None
        counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
        said = self._clean(said, None)
        guessed = (tokens(messages), len(said.encode()) // BYTES_PER_TOKEN)
        counts = [count if isinstance(count, int) and count >= 0 else guess for count, guess in zip(counts, guessed)]
        model = body.get("model") if isinstance(body.get("model"), str) else ""
        if finish == "content_filter" and refusal is None:
            refusal = "content filter"
        return Answer(
            key=key,
            text=said,
            refusal=None if refusal is None else self._clean(refusal),
            cut=finish == "length",
            input_tokens=counts[0],
            output_tokens=counts[1],
            model=self._clean(model),
        )

    def _clean(self, said: object, limit: int | None = 200) -> str:
        """A text of the endpoint without the key. What is no text (lone surrogates) becomes an escape."""
        found = str(said if said is not None else "").encode("utf-8", "backslashreplace").decode()
        if self.key:
            found = self.key.sub("[key]", found)
        return found if limit is None else " ".join(found.split())[:limit]

    def _user_error(self, found: str, expected: str, fix: str) -> UserError:
        return UserError(self.where, found, expected, fix)


def same_model(asked: str, answered: str) -> bool:
    """Whether two names are one model's: the same but for a path before it or a version behind it.

    >>> same_model("gpt-4o-mini", "gpt-4o-mini-2024-07-18"), same_model("gpt-4o", "gpt-4o-mini")
    (True, False)
    """
    asked, answered = (name.rsplit("/", 1)[-1].lower() for name in (asked, answered))
    short, long = sorted((asked, answered), key=len)
    return short == long or (long.startswith(short) and _VERSION.fullmatch(long[len(short) :]) is not None)


async def _content(response: httpx2.Response) -> bytes | None:
    """The decompressed body; None where it is larger than `LARGEST`.

    Raises:
        _Again: it is no such body.
    """
    packed = response.headers.get("content-encoding", "").lower() == "gzip"
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if packed else None
    content = bytearray()
    async for chunk in response.aiter_raw():
        try:
            content += unpacker.decompress(chunk, LARGEST + 1 - len(content)) if unpacker else chunk
        except zlib.error:
            raise _Again("the endpoint's reply is compressed wrongly", sent=True) from None
        if len(content) > LARGEST:
            return None
    return bytes(content)


def _spellings(secret: str) -> re.Pattern:
    r"""Finds a key, also where some of its characters are JSON escapes, which are undone later.

    >>> _spellings("sk-key").sub("[key]", r"so: \u0073\u006B-key, \\u0073k-key")
    'so: [key], [key]'
    """
    backslashes = r"(?:\\|u005[cC]){0,16}"  # bounded: a text of nothing else must not take minutes
    return re.compile("".join(f"{backslashes}(?:{re.escape(c)}|(?i:u{ord(c):04x}))" for c in secret))


def _error_in(response: httpx2.Response) -> tuple[str, str]:
    """(code, message) of an error's body, in the shapes that are about; Gemini wraps it in a list."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return "", response.text
    body = body[0] if isinstance(body, list) and body else body
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", str(error)
    return f"{error.get('code')} {error.get('type')}", str(error.get("message", error))


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the endpoint asks to wait for; None where it does not say so readably."""
    asked = response.headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", asked):
        return float(asked)
    if asked:
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    delay = re.search(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"', response.text[:5000])
    return float(delay[1]) if delay else None
