"""Replies of language models kept on disk: what was answered once is neither asked nor paid for again.

One file for each endpoint and model, `.cache/llm/<model>_<hash>.jsonl`, that only grows: a line for each
reply, on disk (fsync) before it counts as received, found again by a key of all that it depends on.
Calls that were sent and lost (timeout, cut connection) have a line too, as they may be billed. The
text that was asked is not in it, and no key to the endpoint.

A lock lets one process at a time ask one model; the next one waits, and then finds the replies. It is
the operating system's, so that a killed process leaves nothing behind; a line that it left half
written is dropped.
"""

import hashlib
import json
import os
import re
import threading
from pathlib import Path

import click
from pydantic import BaseModel, ConfigDict, ValidationError

#: Environment variable that names another folder than `.cache/llm`, for several working copies to share.
FOLDER = "RARL_LLM_CACHE"
#: Text of an answer that was too long to be read.
TOO_LONG = "(a reply of more than 1 MB, which was not read to its end)"


class Answer(BaseModel):
    """What came back for one call."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str | None
    """Key of what was asked; None for a call whose reply got lost."""
    text: str = ""
    refusal: str | None = None
    """The model's or the filter's words where it did not want to answer."""
    cut: bool = False
    """The reply reached the token limit without an end."""
    input_tokens: int = 0
    output_tokens: int = 0
    model: str = ""
    """Who answered, by the endpoint's own word."""


def folder() -> Path:
    """Where the replies are kept.

    `dvc exp run --temp` and `--queue` work on a copy in `.dvc/tmp/exps` that is deleted afterwards: paid
    replies go to the repository that it was copied from.
    """
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER])
    here = Path.cwd()
    for parent in here.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2] / ".cache/llm"
    return Path(".cache/llm")


def key_of(**depends: object) -> str:
    """SHA-256 of everything that determines a reply (JSON-serialisable)."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def cost(prices, input_tokens: float, output_tokens: float) -> float:
    """US dollars, by the prices of a `params.Judge`; 0 where none are set."""
    of_input, of_output = prices.price_per_million_input, prices.price_per_million_output
    return (input_tokens * (of_input or 0) + output_tokens * (of_output or 0)) / 1e6


class Journal:
    """The kept replies of one model at one endpoint; a context that holds the lock.

    Attributes:
        calls: calls on record, lost ones included.
        input_tokens, output_tokens: what they came to.
    """

    def __init__(self, endpoint: str, model: str):
        name = re.sub(r"[^a-z0-9]+", "_", model.rstrip("/").rsplit("/", 1)[-1].lower()).strip("_")
        self.path = folder() / f"{name[:60]}_{key_of(endpoint=endpoint, model=model)[:12]}.jsonl"

    def __enter__(self):
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{self.path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            click.echo(f"Another process asks the same model ({self.path}): waiting for its end.")
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
            click.echo(f"{self.path}: {broken} lines cannot be read, and are asked for again")

    def _count(self, answer: Answer) -> None:
        self.calls += 1
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        if answer.key is not None:
            self._answers[answer.key] = answer

    def cost(self, prices) -> float:
        """US dollars on record, by the prices of a `params.Judge`; 0 where none are set."""
        return cost(prices, self.input_tokens, self.output_tokens)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def add(self, answer: Answer) -> None:
        """Put an answer on disk, then count it. Safe to call from several threads.

        Raises:
            OSError: it cannot be written, as on a full disk; the file is as it was.
        """
        line = json.dumps(answer.model_dump(), ensure_ascii=True).encode() + b"\n"
        with self._writing:
            before = os.fstat(self._file.fileno()).st_size
            try:
                while line:  # a disk that is almost full takes a part
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
            except OSError as error:
                os.truncate(self.path, before)
                error.filename = str(self.path)
                raise
            self._count(answer)
