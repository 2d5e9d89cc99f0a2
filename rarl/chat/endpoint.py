"""One request to an OpenAI-compatible endpoint through the `openai` SDK, and what each failure means.

The SDK builds the request and types the errors. Retries stay in `client`: the SDK's would neither count against the
budget nor record what they may have cost, and they ignore a `Retry-After` of more than a minute, Gemini's `retryDelay`
and Ctrl-C. `BoundedClient` is ours too, because the SDK reads a body to its end, however long it is.

The API key is held here alone and is removed from every text that an endpoint returns.
"""

import asyncio
import contextlib
import re
import time
import zlib
from email.utils import parsedate_to_datetime
from typing import NoReturn
from urllib.parse import urlsplit

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, Omit
from tqdm import tqdm

from rarl.chat.journal import Messages
from rarl.chat.remote import Remote, address, is_private
from rarl.errors import UserError

#: Seconds of pause before the second attempt.
FIRST_PAUSE = 1.0
#: An endpoint that asks for a longer pause, in seconds, ends the run.
LONGEST_WAIT = 900.0
#: Bytes of a decompressed response body after which reading stops: a thousand times the usual size.
LARGEST = 1_000_000
#: Attempts while no request has got through yet: nothing listens at the address.
CONNECTION_ATTEMPTS = 3

FORMATS = ("json_schema", "json_object", "text")
FORMAT_REFUSED = re.compile(
    r"response_format|json_schema|json_object|json mode|structured|guided|grammar|schema", re.I
)
#: How a server says that a model, or its format of messages, has no images, and with which status.
IMAGES_REFUSED = re.compile(
    r"(not|n't|no)\b.{0,40}(support|accept|allow|enable|have).{0,20}(image|vision|multi-?modal)|"
    r"(image|vision|multi-?modal).{0,40}(not|n't|only)\b.{0,20}(support|accept|allow|enable|available)|"
    r"not an? (multi-?modal|vision)|at most 0 image|mmproj|missing data required for image|variant.{0,3}image|"
    r"valid string|must be a string|expected a string|unmarshal array",
    re.I,
)
IMAGE_STATUS = (400, 404, 415, 422, 500, 501)
RETIRED = re.compile(
    r"deprecated|decommission|retired|discontinued|shut down|no longer(?! than)|end of life|sunset", re.I
)
#: Request headers that are sent. The SDK's others describe this machine or come from `OPENAI_*` variables.
HEADERS = set(b"accept accept-encoding authorization connection content-length content-type host user-agent".split())


class NoResponse(Exception):
    """One chat got no response; the message says why, as half a sentence. Other chats may get one."""


class Retry(Exception):
    """A request failed in a way that another attempt may mend.

    Args:
        why: the reason, as half a sentence.
        after: seconds to wait; None leaves the pause to the client.
        limited: whether the rate limit was hit, which is a matter of time and not of luck.
        billed: whether the endpoint may have processed the request, and charge for it.
    """

    def __init__(self, why: str, after: float | None = None, limited: bool = False, billed: bool = False):
        super().__init__(why)
        self.after, self.limited, self.billed = after, limited, billed


class TooLong(Exception):
    """A response of status 200 has more than `LARGEST` bytes."""


class BoundedClient(httpx2.AsyncClient):
    """Reads at most `LARGEST` bytes of a response, decompressed, and sends no headers but `HEADERS`."""

    async def send(self, request: httpx2.Request, **options) -> httpx2.Response:
        """Send a request and return the response with its body read.

        Raises:
            TooLong: a successful response is larger than `LARGEST`.
            Retry: the body is not the gzip that its header announces.
        """
        headers = [(name, value) for name, value in request.headers.raw if name.lower() in HEADERS]
        sent = httpx2.Request(request.method, request.url, headers=headers, content=request.content)
        response = await super().send(sent, **options | {"stream": True})
        try:
            content = await self._read(response)
        finally:
            await response.aclose()
        if content is None and response.is_success:
            raise TooLong
        headers = {name: value for name, value in response.headers.items() if name == "retry-after"}
        return httpx2.Response(response.status_code, headers=headers, content=content or b"", request=request)

    async def _read(self, response: httpx2.Response) -> bytes | None:
        gzipped = response.headers.get("content-encoding", "").lower() == "gzip"
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if gzipped else None
        content = bytearray()
        async for chunk in response.aiter_raw():
            try:
                content += unpacker.decompress(chunk, LARGEST + 1 - len(content)) if unpacker else chunk
            except zlib.error:
                raise Retry("the response is compressed incorrectly", billed=True) from None
            if len(content) > LARGEST:
                return None
        return bytes(content)


class Endpoint:
    """The endpoint of one model; `sdk` is to be closed.

    Args:
        remote: the model.
        most_tokens: the token limit of a response.
        schema: JSON schema of the responses; None for free text.

    Attributes:
        format: the structured output that is asked for, lowered when the endpoint refuses it.
        limit: the name of the token limit; OpenAI's reasoning models take only `max_completion_tokens`.
    """

    def __init__(self, remote: Remote, most_tokens: int, schema: dict | None = None):
        self.remote, self.settings, self.most_tokens, self.schema = remote, remote.settings, most_tokens, schema
        settings, secret, private = remote.settings, remote.secret(), is_private(remote.settings.base_url)
        self.where, self.error = remote.key, remote.error
        self.host = urlsplit(settings.base_url).hostname
        self.format, self.limit = settings.response_format if schema else "text", "max_tokens"
        self.reached, self.answered, self.attempts = False, False, 0
        self.key = spellings(secret) if secret and len(secret) >= 8 else None
        # The SDK would replace an absent key by `OPENAI_API_KEY`, which is another host's.
        self.headers = {"Authorization": f"Bearer {secret}" if secret else Omit(), "Accept-Encoding": "gzip"}
        limits = httpx2.Limits(max_connections=settings.concurrency)
        self.sdk = AsyncOpenAI(
            api_key="unused",
            base_url=address(settings),
            max_retries=0,
            timeout=None,
            http_client=BoundedClient(trust_env=not private, timeout=None, limits=limits),
        )

    async def post(self, messages: Messages) -> bytes | None:
        """Send one chat.

        Returns:
            The body of the response; None if it is larger than `LARGEST`.

        Raises:
            Retry: another attempt may succeed.
            NoResponse: the endpoint refuses this chat.
            UserError: the endpoint cannot or must not be asked any more.
        """
        body = {"model": self.settings.model, "messages": messages, self.limit: self.most_tokens}
        if self.settings.temperature is not None:
            body["temperature"] = self.settings.temperature
        if (used := self.format) != "text":
            body["response_format"] = {"type": used}
        if used == "json_schema":
            body["response_format"][used] = {"name": "verdict", "strict": True, "schema": self.schema}
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                create = self.sdk.chat.completions.with_raw_response.create
                content = (await create(**body, extra_headers=self.headers)).content
        except TimeoutError:
            raise Retry(f"no response within {self.settings.timeout_s:g} s", billed=True) from None
        except APIConnectionError as error:
            self._not_connected(error.__cause__)
        except TooLong:
            content = None
        except APIStatusError as error:
            self.reached = True
            self._refused(error, used, has_images(messages))
        self.reached = self.answered = True
        return content

    def _not_connected(self, cause: BaseException | None) -> NoReturn:
        if not isinstance(cause, httpx2.ConnectError | httpx2.ProxyError):
            raise Retry(f"the connection broke ({type(cause).__name__})", billed=True) from None
        self.attempts += 1
        if self.reached or self.attempts < CONNECTION_ATTEMPTS:
            raise Retry("the endpoint cannot be reached") from None
        raise self.error(
            f"nothing answers at {address(self.settings)} ({self.clean(cause)})",
            "an endpoint that can be reached",
            f"start the server, or correct {self.where}.base_url",
        ) from None

    def _refused(self, error: APIStatusError, used: str, images: bool) -> NoReturn:
        """Raise what a status other than 2xx means.

        Args:
            error: the status and its body.
            used: the structured output that was asked for.
            images: whether the chat has images.
        """
        status, (code, message) = error.status_code, error_in(error.body)
        detail = f"HTTP {status}: {self.clean(message) or 'no message'}"
        without_images = IMAGES_REFUSED.search(message.replace(self.settings.model, ""))
        if images and without_images and not self.answered and status in IMAGE_STATUS:
            raise self.error(
                f"{self.host} takes no images for {self.settings.model} ({detail})",
                "a vision-language model",
                f"name one in {self.where}.model, or load its vision part (llama.cpp: --mmproj)",
            ) from None
        if fatal := self._fatal(status, f"{code} {message}", detail):
            raise fatal from None
        if status in (408, 409, 425, 429) or status >= 500:
            after = retry_after(error.response)
            if after is not None and after > LONGEST_WAIT:
                raise self.error(
                    f"{self.host} asks to wait for {after:.0f} s ({detail})",
                    "a pause of minutes",
                    "run the same command again after that time; the responses so far are kept",
                ) from None
            # A pause of zero, or one that has passed, is ignored: the pauses then grow as if none were given.
            raise Retry(f"HTTP {status}", after if (after or 0) >= FIRST_PAUSE else None, status == 429) from None
        if status in (400, 422):
            self._adapt(f"{code} {message}", detail, used)
        raise NoResponse(f"the endpoint refused the request ({detail})") from None

    def _fatal(self, status: int, text: str, detail: str) -> UserError | None:
        """The error for a status after which no request can succeed; None for the others."""
        model, variable, role = self.settings.model, self.settings.api_key_env, self.remote.role
        if status in (401, 403):
            # Without the endpoint's message: some repeat the key, or a part of it.
            found = f"{self.host} refuses the key (HTTP {status})"
            if variable is None:
                fix = f"set {self.where}.api_key_env to the name of a variable"
                return self.error(found, "an endpoint that asks for no key", fix)
            expected = f"a valid key in the environment variable {variable}"
            return self.error(found, expected, f"set {variable} to a key that may use {model}")
        if status == 402 or (status == 429 and "insufficient_quota" in text):
            return self.error(
                f"the account at {self.host} has no credit left ({detail})",
                "an account that can pay",
                "top the account up, then run the same command again; the responses so far are kept",
            )
        if 300 <= status < 400:
            return self.error(
                f"{address(self.settings)} redirects to another address (HTTP {status})",
                "the endpoint's own address; the key is not sent to another one",
                f"correct {self.where}.base_url",
            )
        gone = status == 410 or (status == 404 and "model" in text.lower())
        if gone or (400 <= status < 500 and status != 429 and RETIRED.search(text)):
            return self.error(
                f"{self.host} does not serve {model} ({detail})",
                f"the model that this {role.block} is defined by",
                f"if its provider has retired it, it can {role.task} nothing more: remove `{self.remote.name}` from "
                f"`{role.listed}`. A successor needs a slug of its own under `{role.block}:`, as its scores do not "
                "compare; it is never used silently instead. A model of your own server may still have to be loaded",
            )
        if status == 404:
            return self.error(
                f"{address(self.settings)}/chat/completions does not exist ({detail})",
                "the address before /chat/completions, which mostly ends in /v1",
                f"correct {self.where}.base_url",
            )
        return None

    def _adapt(self, text: str, detail: str, used: str) -> None:
        """Change how the next attempt asks, if the endpoint refuses a parameter that can be changed."""
        if "max_completion_tokens" in text:
            self.limit = "max_completion_tokens"
            raise Retry(detail, after=0.0) from None
        if "temperature" in text and self.settings.temperature is not None:
            raise self.error(
                f"{self.host} refuses the temperature for {self.settings.model} ({detail})",
                "a temperature that it accepts, or none",
                f"set {self.where}.temperature to null, which sends none",
            ) from None
        if used != "text" and FORMAT_REFUSED.search(text):
            if self.format == used:
                self.format = FORMATS[FORMATS.index(used) + 1]
                tqdm.write(f"{self.host} has no {used} for {self.settings.model}: asking for {self.format}")
            raise Retry(detail, after=0.0) from None

    def clean(self, text: object, limit: int | None = 200) -> str:
        """A text of the endpoint without the key; lone surrogates become escapes."""
        found = str("" if text is None else text).encode("utf-8", "backslashreplace").decode()
        if self.key:
            found = self.key.sub("[key]", found)
        return found if limit is None else " ".join(found.split())[:limit]


def has_images(messages: Messages) -> bool:
    """Whether a chat has an image."""
    parts = (part for message in messages if isinstance(message["content"], list) for part in message["content"])
    return any(part["type"] == "image_url" for part in parts)


def spellings(secret: str) -> re.Pattern:
    r"""A pattern that finds a key, also where some of its characters are JSON escapes, which are decoded later.

    >>> spellings("sk-key").sub("[key]", r"so: \u0073\u006B-key, \\u0073k-key")
    'so: [key], [key]'
    """
    backslashes = r"(?:\\|u005[cC]){0,16}"  # bounded: a text of nothing else must not take minutes
    return re.compile("".join(f"{backslashes}(?:{re.escape(c)}|(?i:u{ord(c):04x}))" for c in secret))


def error_in(body: object) -> tuple[str, str]:
    """(code, message) in the body of an `APIStatusError`; Gemini wraps it in a list, others name it `detail`.

    >>> error_in([{"error": {"code": 404, "message": "no such model"}}]), error_in("<html>")
    (('404 None', 'no such model'), ('', '<html>'))
    """
    body = body[0] if isinstance(body, list) and body else body
    error = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", str(error)
    return f"{error.get('code')} {error.get('type')}", str(error.get("message", error))


def retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the endpoint asks to wait; None if it does not say so, or not legibly.

    >>> retry_after(httpx2.Response(429, text='[{"error": {"details": [{"retryDelay": "23s"}]}}]'))
    23.0
    """
    asked = response.headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", asked):
        return float(asked)
    if asked:
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    delay = re.search(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"', response.text[:5000])
    return float(delay[1]) if delay else None
