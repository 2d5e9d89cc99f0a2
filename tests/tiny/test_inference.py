"""Inference that runs an image and the words before the question once: the replies of the library's `generate`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_step import move_adapter
from PIL import Image

from rarl.models.generation import Request, ask
from rarl.models.loading import load
from rarl.models.shared_prefix.fused_decoder import FusedDecoder
from rarl.prompts import render
from rarl.records import Sample, image_file, read_records

SAMPLED = 0.8
QUESTIONS = ("Is there a bright spot?", "Where is the spot, if there is one at all?", "Spot?")


@pytest.fixture
def asked(project, params):
    """A model with an adapter, and nine questions about three images of different sizes."""
    from peft import LoraConfig, get_peft_model

    loaded = load("data/models/base", params.model)
    torch.manual_seed(0)
    loaded.model = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=["q_proj", "o_proj"])).eval()
    move_adapter(loaded.model)
    requests = []
    for number, row in enumerate(read_records("data/curated/train.jsonl", Sample)[:3]):
        path = image_file(Path(params.data.root), row.image)
        Image.open(path).resize([(112, 112), (84, 112), (112, 56)][number]).save(path)
        requests += [Request(f"{number} {q}", render("reasoning", q), path) for q in QUESTIONS]
    return loaded, requests[::2] + requests[1::2]


def end_early(loaded):
    """So that some sampled replies end long before others."""
    likely = torch.zeros(len(loaded.processor.tokenizer))
    likely[loaded.processor.tokenizer.eos_token_id] = 3.0
    head = loaded.model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits: logits + likely)


@pytest.mark.parametrize("temperature", [0.0, SAMPLED])
def test_replies_are_those_of_generate(asked, temperature):
    loaded, requests = asked
    if temperature:
        end_early(loaded)
    stock = ask(replace(loaded, shared=True), requests, 24, temperature)
    ours = ask(loaded, requests, 24, temperature)
    assert ours == stock
    assert len({reply.text for reply in ours}) > 1
    assert len({reply.tokens for reply in ours}) > 3 or not temperature


def test_flash_attention_leaves_inference_its_shared_prompts(asked):
    """As where flash-attn is installed, which `auto` takes: the layout's attention does not come to it."""
    loaded, requests = asked
    ours = ask(loaded, requests, 8)
    loaded.model.config.text_config._attn_implementation = "flash_attention_2"
    assert ask(replace(loaded, attention="flash_attention_2"), requests, 8) == ours


def test_an_image_and_the_words_before_the_question_are_run_once(asked, monkeypatch):
    loaded, requests = asked
    end_early(loaded)
    seen = []
    model = loaded.model.get_base_model().model
    model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    call = FusedDecoder.__call__
    monkeypatch.setattr(FusedDecoder, "__call__", lambda self, *args: seen.append(len(args[0])) or call(self, *args))
    towered = []
    model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: towered.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    replies = ask(loaded, requests, 24, SAMPLED)
    prefill, *steps = seen
    images = towered.copy()
    seen.clear()
    ask(replace(loaded, shared=True), requests, 24, SAMPLED)
    assert images == [3] and towered[1:] == [9]
    assert prefill < 0.45 * seen[0]
    unfinished = [sum(reply.tokens > step for reply in replies) for step in range(1, 24)]
    assert steps == [rows for rows in unfinished if rows], "what has ended costs nothing"


def test_what_cannot_be_asked_says_why_and_leaves_the_others_as_they_are(asked):
    """Too long, without its image, with an image token in the text: a response with `error`, and no file's name."""
    loaded, requests = asked
    alone = {reply.id: reply for reply in ask(loaded, requests[:3], 8)}
    broken = requests[0].image.with_name("Gizzard^Wilhelmina.png")
    broken.write_bytes(b"gear")
    bad = {
        "long": (replace(requests[0], id="long", prompt="Is it a spot? " * 1000), "tokens"),
        "gone": (replace(requests[0], id="gone", image=broken.with_name("Gizzard.png")), "No such file"),
        "broken": (replace(requests[0], id="broken", image=broken), "damaged"),
        "token": (replace(requests[0], id="token", prompt="Is <|image_pad|> bent?"), "a token"),
    }
    replies = {r.id: r for r in ask(loaded, [request for request, _ in bad.values()] + requests[:3], 8)}
    assert replies.keys() == alone.keys() | bad.keys()
    for name, (_, reason) in bad.items():
        assert reason in replies[name].error and not replies[name].text
        assert "Gizzard" not in replies[name].error and "pictures" not in replies[name].error
    assert {name: replies[name] for name in alone} == alone
    assert len(ask(loaded, [bad["long"][0]], 8)) == 1, "a batch of nothing else"
