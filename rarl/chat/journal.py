"""An append-only journal of language models' responses: no question is asked, or paid for, twice.

One file per endpoint and model, `.cache/llm/<model>_<hash>.jsonl`: a line per response, on disk (fsync) before it
counts as received, with a key of everything that it depends on. Calls whose response was lost (timeout, broken
connection) have a line too, because they may be billed. The file has neither the prompts nor the API key.

A lock lets one process at a time ask one model; the next one waits, and then finds the responses. It is the operating
system's, so that a killed process leaves none behind; a line that it left half written is dropped.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import click
from pydantic import BaseModel, ConfigDict, ValidationError

#: A chat: `{"role": "user" or "assistant", "content": text}` for each message. With images, the content is a list of
#: parts: `{"type": "text", "text": ...}` and `{"type": "image_url", "image_url": {"url": "data:..."}}`.
Messages = list[dict[str, str | list]]
#: Environment variable with another folder than `.cache/llm`, which several working copies can share.
FOLDER = "RARL_LLM_CACHE"
#: Text of a response that was too long to be read. Existing journals have it.
TOO_LONG = "(a reply of more than 1 MB, which was not read to its end)"


class Answer(BaseModel):
    """The response to one call."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str | None
    """Key of the prompt; None for a call whose response was lost."""
    text: str = ""
    refusal: str | None = None
    """The message of the model or of a filter that refused."""
    cut: bool = False
    """Whether the response reached the token limit."""
    input_tokens: int = 0
    output_tokens: int = 0
    model: str = ""
    """The model that the endpoint says has answered."""


def folder() -> Path:
    """The folder of the journals."""
    return Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else outside_copy(".cache/llm")


def outside_copy(path: str) -> Path:
    """A path of the repository, also in a copy of it.

    `dvc exp run --temp` and `--queue` run in a copy in `.dvc/tmp/exps` that is deleted afterwards; what must survive
    is in the repository that it was copied from.
    """
    for parent in Path.cwd().parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2] / path
    return Path(path)


def key_of(**depends: object) -> str:
    """SHA-256 of everything that determines a response (JSON-serialisable)."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def cost(prices, input_tokens: float, output_tokens: float) -> float:
    """US dollars at the prices of a `params.Endpoint`; 0 if none are set."""
    of_input, of_output = prices.price_per_million_input, prices.price_per_million_output
    return (input_tokens * (of_input or 0) + output_tokens * (of_output or 0)) / 1e6


class Journal:
    """The responses of one model at one endpoint; a context that holds the lock.

    `calls`, `input_tokens` and `output_tokens` count everything on record, including lost calls.

    Args:
        endpoint: where the model is.
        model: its name.
        key_for: gives the key of the response to a chat.
    """

    def __init__(self, endpoint: str, model: str, key_for: Callable[[Messages], str]):
        self.key_for = key_for
        name = re.sub(r"[^a-z0-9]+", "_", model.rstrip("/").rsplit("/", 1)[-1].lower()).strip("_")
        self.path = folder() / f"{name[:60]}_{key_of(endpoint=endpoint, model=model)[:12]}.jsonl"

    def __enter__(self):
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{self.path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            click.echo(f"Another process asks the same model ({self.path}): waiting for it to end.")
            self._lock.acquire()
        self.calls = self.input_tokens = self.output_tokens = 0
        self._answers: dict[str, Answer] = {}
        self._writing = threading.Lock()
        self._read()
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, *_):
        self._file.close()
        self._lock.release()

    def _read(self) -> None:
        kept = self.path.read_bytes() if self.path.is_file() else b""
        if kept and not kept.endswith(b"\n"):  # a kill in the middle of a line
            kept = kept[: kept.rfind(b"\n") + 1]
            os.truncate(self.path, len(kept))
        broken = 0
        for line in kept.splitlines():
            try:
                self._count(Answer.model_validate_json(line))
            except ValidationError:
                broken += 1
        if broken:
            click.echo(f"{self.path}: {broken} lines cannot be read; their questions are asked again")

    def _count(self, answer: Answer) -> None:
        self.calls += 1
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        if answer.key is not None:
            self._answers[answer.key] = answer

    @property
    def usual_input(self) -> int:
        """Input tokens of a call on record, on average; 0 without any."""
        return self.input_tokens // max(1, self.calls)

    def cost(self, prices) -> float:
        """US dollars on record at the prices of a `params.Endpoint`; 0 if none are set."""
        return cost(prices, self.input_tokens, self.output_tokens)

    def known(self, messages: Messages) -> Answer | None:
        """The response to a chat, or None."""
        return self.get(self.key_for(messages))

    def get(self, key: str) -> Answer | None:
        """The response of a key, or None."""
        return self._answers.get(key)

    def add(self, answer: Answer) -> None:
        """Write a response to disk, then count it. Thread-safe.

        Raises:
            OSError: it cannot be written, as on a full disk; the file is unchanged.
        """
        line = json.dumps(answer.model_dump(), ensure_ascii=True).encode() + b"\n"
        with self._writing:
            before = os.fstat(self._file.fileno()).st_size
            try:
                while line:  # an almost full disk takes only a part
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
            except OSError as error:
                os.truncate(self.path, before)
                error.filename = str(self.path)
                raise
            self._count(answer)
