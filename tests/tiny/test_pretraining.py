"""Packed dialogues give the loss of each dialogue alone, through the stock processor and model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rarl.models.processor import chat
from rarl.phantom import general
from rarl.pretraining.training import Packer, dialogues, encode, language_loss


@pytest.mark.parametrize("draw", [general.draw_shapes, general.draw_grey])
def test_packing_is_the_same_mathematics(random_base, draw):
    _, model, processor = random_base
    rng = np.random.default_rng(4)
    scene = draw(rng)
    talk = dialogues(rng, scene)
    batch = Packer(processor.tokenizer, processor, 112).pack([scene], [talk])
    with torch.no_grad():
        packed = language_loss(model, batch, encode(model, batch))
        total, count = 0.0, 0
        for question, completion in talk:
            said = completion + "<|im_end|>"
            inputs = processor(text=[chat(processor, question, said)], images=[scene.image], return_tensors="pt")
            n = len(processor.tokenizer(said, add_special_tokens=False).input_ids)
            logits = model(**inputs).logits[0, -n - 1 : -1]
            total += F.cross_entropy(logits, inputs["input_ids"][0, -n:], reduction="sum")
            count += n
    torch.testing.assert_close(packed, total / count, rtol=1e-5, atol=1e-5)


def test_questions_are_answered_by_the_scene():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = general.draw_shapes(rng, 56)
        for make in general.TASKS.values():
            question = make(rng, scene)
            if question is not None:
                assert question.answer in question.choices
                assert len(set(question.choices)) == len(question.choices)
    rows = general.cv_bench_rows(3, 12, 56)
    assert [row["task"] for _, row in rows[:4]] == ["Count", "Relation", "Depth", "Distance"]
    for _, row in rows:
        assert row["choices"]["ABCDEF".index(row["answer"][1])] in row["prompt"]
