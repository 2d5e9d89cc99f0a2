"""The local judge: a chat model on this machine through transformers, for those with no endpoint.

Same question and same reading of the reply as the LLM judge (`rubric`); greedy decoding. Nothing leaves
the machine. Replies are kept in `.cache/llm` (`journal`), so that a stopped run goes on where it was.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import click
from tqdm import tqdm

from rarl.cache import hash_path
from rarl.errors import UserError
from rarl.judges import rubric
from rarl.judges.journal import Answer, Journal, key_of
from rarl.params import Judge
from rarl.records import Prediction, Sample, Verdict, batches


def judge(
    samples: Sequence[Sample], predictions: Sequence[Prediction], settings: Judge, *, name: str = "local", **_
) -> list[Verdict]:
    """Rate each prediction by the model's reply; equal questions are asked once.

    Args:
        samples, predictions: one for one, in the same order.
        name: the judge's slug.

    Raises:
        UserError: the model is not there, or is no chat model.
    """
    check(name, settings)
    source = settings.model
    folder = Path(source).is_dir()
    weights = hash_path(source) if folder else settings.revision
    device, dtype = _placed()
    cases = [rubric.case(s, p) for s, p in zip(samples, predictions, strict=True)]

    def key_for(messages: rubric.Messages) -> str:
        return key_of(
            model=weights if folder else f"{source}@{weights}",
            max_tokens=settings.max_tokens,
            dtype=dtype,
            messages=messages,
        )

    distinct = {key_for(case.messages): case for case in cases if case}
    with Journal("transformers", source) as journal:

        def known(messages: rubric.Messages) -> Answer | None:
            return journal.get(key_for(messages))

        loaded = None
        # Twice at most: the question, and where its reply was unusable the second one.
        while ahead := rubric.unanswered(list(distinct.values()), known):
            loaded = loaded or _load(name, settings, device, dtype)
            click.echo(f"judge {name}: {len(ahead)} questions for {source} on {device}")
            # Of like length together: less padding.
            chats = sorted((rubric.outcome(case, known) for case in ahead), key=_length)
            with tqdm(total=len(chats), desc=f"judge {name}", unit="", disable=None) as bar:
                for batch in batches(chats, settings.batch_size):
                    for messages, (text, cut) in zip(batch, _reply(*loaded, batch, settings)):
                        journal.add(Answer(key=key_for(messages), text=text, cut=cut, model=source))
                    bar.update(len(batch))
        return [
            rubric.verdict(sample, prediction, case, known, None)
            for sample, prediction, case in zip(samples, predictions, cases)
        ]


def check(name: str, settings: Judge) -> None:
    """Look for the model; loads nothing.

    Raises:
        UserError: it is no folder, and no hub id at a pinned commit.
    """
    source, revision = settings.model, settings.revision or ""
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise UserError(f"judge.{name}.model = {source}", "no config.json in it", "a model folder in the hub's layout",
                            "download the whole model repository there")  # fmt: skip
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"judge.{name}.model = {source}", "no such folder", "a model folder, or a hub id (owner/name)",
                        f"correct judge.{name}.model")  # fmt: skip
    elif not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"judge.{name}.revision = {settings.revision}", f"no commit for {source}",
            "the hub repository's commit, 40 hexadecimal digits, so that the verdicts can be had again",
            f"copy the commit from the history of https://huggingface.co/{source}",
        )  # fmt: skip


def _length(messages: rubric.Messages) -> int:
    return sum(len(message["content"]) for message in messages)


def _placed() -> tuple[str, str]:
    """(device, dtype)."""
    import torch

    return ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")


def _load(name: str, settings: Judge, device: str, dtype: str):
    """Tokenizer (padding on the left, for generation) and model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model, revision=settings.revision, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(settings.model, revision=settings.revision, dtype=dtype)
    except (OSError, ValueError) as error:
        raise UserError(
            f"judge.{name}.model = {settings.model}", " ".join(str(error).split())[:300],
            "a causal language model in the hub's layout", "download the whole repository, or name another model",
        ) from None  # fmt: skip
    if not tokenizer.chat_template:
        raise UserError(f"judge.{name}.model = {settings.model}", "no chat template", "an instruction-tuned (chat) model",
                        "name the model's chat variant")  # fmt: skip
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.to(device).eval()


def _reply(tokenizer, model, chats: list[rubric.Messages], settings: Judge):
    """(text, whether it was cut off at the token limit) for each chat."""
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
