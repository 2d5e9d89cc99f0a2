"""The paper's sizes on a CUDA device, at random weights: does a step fit, and does the device say what a CPU says?"""

from math import isfinite

import pytest
import torch

from rarl.measuring.sides import Case, make_trainer, prepared
from rarl.models.generation import Request, ask
from rarl.models.loading import Loaded
from rarl.models.shared_prefix import cuda_graph


def two_questions(rows, folder):
    """About the image of each row, which is saved in the folder."""
    requests = []
    for index, row in enumerate(rows):
        row["image"].save(path := folder / f"{index}.png")
        requests += [Request(f"{index}{q}", q, path) for q in ("Where?", "Is it?")]
    return requests


def test_a_step_of_the_2b_model_fits(tmp_path):
    """Qwen2-VL-2B, bfloat16, LoRA r = 8, G = 8, 401,408 px at most, 256 tokens: under 24 GB, and so under 40."""
    case = Case("one prompt", model="qwen2_vl_2b", pixels=616, tokens=256, prompts=1)
    trainer, _ = make_trainer(case, ours=True, steps=1, folder=str(tmp_path))
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    assert isfinite(trainer.state.log_history[0]["loss"])
    assert torch.cuda.max_memory_allocated() < 24e9


def test_a_recorded_step_says_what_an_unrecorded_one_says(tmp_path, monkeypatch):
    """The same operations, asked for one by one and as a CUDA graph."""
    case = Case("2b", model="qwen2_vl_2b", pixels=616, prompts=2)
    model, processor, rows, _ = prepared(case, True, 1)
    requests = two_questions(rows, tmp_path)
    loaded = Loaded(model.eval(), processor, model.device, "sdpa")
    recorded, record = [], cuda_graph.GraphedDecoder._capture

    def listen(self):
        recorded.append(record(self))
        torch.cuda.empty_cache()  # what a graph needs is not free
        return recorded[-1]

    monkeypatch.setattr(cuda_graph.GraphedDecoder, "_capture", listen)
    said = [ask(loaded, requests, 64, 1.0) for _ in range(3)]
    assert recorded == [True] * 3
    monkeypatch.setattr(cuda_graph, "WARMUP", 1000)
    said.append(ask(loaded, requests, 64, 1.0))
    assert all(one == said[0] for one in said) and recorded == [True] * 3


@pytest.mark.parametrize("shared", [False, True], ids=["ours", "generate"])
def test_the_device_answers_as_the_cpu(tmp_path, monkeypatch, shared):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, processor, rows, _ = prepared(Case("small", pixels=112, prompts=4), False, 1)
    requests = two_questions(rows, tmp_path)
    said = [
        ask(Loaded(model.float().to(device), processor, torch.device(device), "sdpa", shared), requests, 16)
        for device in ("cuda", "cpu")
    ]
    assert said[0] == said[1]
