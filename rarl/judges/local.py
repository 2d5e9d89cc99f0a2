"""The local judge: a chat model on this machine through transformers, without an endpoint.

Prompt and parsing are the LLM judge's (`rubric`); greedy decoding. Nothing leaves the machine. Responses are kept in
`.cache/llm` (`journal`), so that a stopped run resumes. With `accelerate.processes`, processes on several GPUs share
the batches, each with its own copy of the model; batches, and so verdicts, are those of one process.
"""

import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path

import click
from tqdm import tqdm

from rarl.cache import hash_path
from rarl.chat.journal import Answer, Journal, key_of
from rarl.errors import UserError
from rarl.judges import rubric
from rarl.params import Judge
from rarl.records import Prediction, Sample, Verdict, batches


def judge(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    settings: Judge,
    *,
    name: str = "local",
    processes: int = 1,
    in_training: bool = False,
    **_,
) -> list[Verdict]:
    """Rate each prediction by the model's response, on `processes` processes; equal questions are asked once.

    A training (`in_training`) asks at each step, on its own device: the model stays loaded, and nothing is printed.

    Raises:
        UserError: the model is missing, or is not a chat model.
    """
    check(name, settings)
    source, identity = settings.model, depends(settings)

    def key_for(messages: rubric.Messages) -> str:
        return key_of(**identity, messages=messages)

    def ask(ahead: list[rubric.Case], _total: int) -> dict[str, str]:
        devices = devices_of(processes)
        with _responder(name, settings, identity["dtype"], devices, in_training) as respond:
            while ahead:  # twice at most: the question, and the repair of an unusable response
                if not in_training:
                    click.echo(f"judge {name}: {len(ahead)} questions for {source} on {', '.join(devices)}")
                # Similar lengths together: less padding.
                chats = [rubric.outcome(case, journal.known) for case in ahead]
                chats.sort(key=lambda messages: sum(len(message["content"]) for message in messages))
                with tqdm(total=len(chats), desc=f"judge {name}", unit="", leave=None, disable=None) as bar:
                    together = list(batches(chats, settings.batch_size))
                    for batch, responses in zip(together, respond(together)):
                        for messages, (text, cut) in zip(batch, responses):
                            journal.add(Answer(key=key_for(messages), text=text, cut=cut, model=source))
                        bar.update(len(batch))
                ahead = rubric.unanswered(ahead, journal.known)
        return {}

    with Journal("transformers", source, key_for) as journal:
        return rubric.rate(samples, predictions, journal, ask)


def depends(settings: Judge) -> dict:
    """What responses depend on beside the chat."""
    import torch

    source = settings.model
    model = _content(source) if Path(source).is_dir() else f"{source}@{settings.revision}"
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return {"model": model, "max_tokens": settings.max_tokens, "dtype": dtype}


_content = cache(hash_path)  # a training asks at each step


def check(name: str, settings: Judge) -> None:
    """Check that the model exists; loads nothing.

    Raises:
        UserError: it is neither a folder nor a hub id at a pinned commit.
    """
    source, revision = settings.model, settings.revision or ""
    where = f"judge.{name}.model = {source}"
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            fix = "download the whole model repository there"
            raise UserError(where, "no config.json in it", "a model folder in the hub's layout", fix)
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(
            where, "no such folder", "a model folder, or a hub id (owner/name)", f"correct judge.{name}.model"
        )
    elif not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"judge.{name}.revision = {settings.revision}",
            f"no commit for {source}",
            "the hub repository's commit, 40 hexadecimal digits, for reproducible verdicts",
            f"copy the commit from the history of https://huggingface.co/{source}",
        )


def devices_of(processes: int) -> list[str]:
    """The device of each process; without a GPU one process uses all threads."""
    import torch

    if not torch.cuda.is_available():
        return ["cpu"]
    if processes == 1:
        return [f"cuda:{torch.cuda.current_device()}"]  # in a training, that of its process
    return [f"cuda:{number % torch.cuda.device_count()}" for number in range(processes)]


@contextmanager
def _responder(name: str, settings: Judge, dtype: str, devices: list[str], stays: bool) -> Iterator[Callable]:
    """A function that maps batches of chats to their responses, in order, with a copy of the model on each device.

    If it `stays`, the one of a single device is not loaded again.
    """
    if len(devices) == 1:
        load = _load_once if stays else _load
        model = load(name, settings.model, settings.revision, devices[0], dtype)
        yield partial(map, partial(_respond, *model, settings))
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not work in a forked process
    free = context.Queue()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _take_device, (free,))
    try:
        yield partial(pool.map, partial(_respond_there, name, settings, dtype))
    finally:
        pool.shutdown(cancel_futures=True)


#: The device of this process of a pool.
_device = None


def _take_device(free) -> None:
    global _device
    _device = free.get()


def _respond_there(name: str, settings: Judge, dtype: str, chats: list[rubric.Messages]):
    return _respond(*_load_once(name, settings.model, settings.revision, _device, dtype), settings, chats)


def _load(name: str, source: str, revision: str | None, device: str, dtype: str):
    """Tokenizer (padding on the left, for generation) and model."""
    where = f"judge.{name}.model = {source}"
    import torch
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
    )

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, padding_side="left")
        with torch.random.fork_rng([] if device == "cpu" else [device]):  # a training goes on with its random numbers
            causal = type(AutoConfig.from_pretrained(source, revision=revision)) in MODEL_FOR_CAUSAL_LM_MAPPING
            auto = AutoModelForCausalLM if causal else AutoModelForImageTextToText  # which reads texts alone, too
            model = auto.from_pretrained(source, revision=revision, dtype=dtype)
    except (OSError, ValueError) as error:
        found, fix = " ".join(str(error).split())[:300], "download the whole repository, or name another model"
        raise UserError(where, found, "a language model in the hub's layout", fix) from None
    if not tokenizer.chat_template:
        raise UserError(
            where, "no chat template", "an instruction-tuned (chat) model", "name the model's chat variant"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.to(device).eval()


_load_once = lru_cache(1)(_load)


def _respond(tokenizer, model, settings: Judge, chats: list[rubric.Messages]):
    """For each chat the text, and whether the token limit cut it off."""
    import torch
    from transformers import GenerationConfig

    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=settings.max_tokens, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    with torch.inference_mode():
        output = model.generate(**inputs, generation_config=greedy)
    new = output[:, inputs["input_ids"].shape[1] :]
    stops = torch.tensor(ends if isinstance(ends, list) else [ends], device=new.device)
    ended = torch.isin(new, stops).any(1).tolist()
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [(text, not end) for text, end in zip(texts, ended)]
