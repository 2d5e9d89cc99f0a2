"""Gold in, full marks out; shuffled answers in, few marks out: every offline judge on every drawn test set."""

import json
import random

import pytest

from rarl.data.adapters import load_adapter, silvar_med
from rarl.data.release import Pictures, read
from rarl.judges import judge_of
from rarl.params import Encoder, Judge, Phantom
from rarl.phantom.releases import write_releases
from rarl.records import Prediction
from rarl.registry import BENCHMARKS

OFFLINE = {
    "lexical": Judge(kind="lexical"),
    "semantic": Judge(kind="semantic", threshold=0.5, reasoning_threshold=0.88),
    "truth": Judge(kind="truth"),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(samples of every test set, truth file)."""
    root = tmp_path_factory.mktemp("phantom")
    written = write_releases(root, Phantom(benchmark_rows=40, image_size=48))
    truth = root / "truth.jsonl"
    truth.write_text("".join(json.dumps(line) + "\n" for line in written.truth), encoding="utf-8")
    own = silvar_med.training(root, None, Pictures(root))
    samples = [s for release in own.values() if release.split == "test" for s in release.samples]
    for name in BENCHMARKS:
        if name not in ("own", "sat"):
            samples += read(load_adapter(name), root, "test").samples
    return samples, truth


def rate(kind, samples, answers, thinks, truth):
    predictions = [
        Prediction(id=s.id, completion=f"<think>{t}</think> <answer>{a}</answer>", think=t, answer=a)
        for s, a, t in zip(samples, answers, thinks)
    ]
    return judge_of(kind)(samples, predictions, OFFLINE[kind], name=kind, encoder=Encoder(), truth_file=truth)


@pytest.mark.parametrize("kind", OFFLINE)
def test_gold_answers_get_full_marks(kind, drawn):
    samples, truth = drawn
    assert {s.dataset for s in samples} >= {"silvar_med", "slake", "vqa_rad", "vqa_med", "path_vqa", "cv_bench"}
    most = max(len(sample.answers) for sample in samples)
    for place in range(most):
        answers = [s.answers[min(place, len(s.answers) - 1)] for s in samples]
        verdicts = rate(kind, samples, answers, [s.reasoning or "So." for s in samples], truth)
        wrong = [
            (s.question, a, v.evaluation)
            for s, a, v in zip(samples, answers, verdicts)
            if v.prediction_score != 1 or v.reasoning_score != (1 if s.reasoning else None)
        ]
        assert not wrong, wrong[:3]


@pytest.mark.parametrize("kind", OFFLINE)
def test_shuffled_answers_do_not(kind, drawn):
    """Each question gets a wrong answer of another question of its data set and kind."""
    samples, truth = drawn
    rng = random.Random(5)
    kept, answers, thinks = [], [], []
    for sample in samples:
        others = [
            other
            for other in samples
            if (other.dataset, other.kind, other.choices) == (sample.dataset, sample.kind, sample.choices)
            and not {a.casefold() for a in other.answers} & {a.casefold() for a in sample.answers}
        ]
        if others:
            other = rng.choice(others)
            kept.append(sample)
            answers.append(other.answers[0])
            thinks.append(rng.choice([o.reasoning for o in others if o.reasoning] or ["So."]))
    assert len(kept) > 300
    verdicts = rate(kind, kept, answers, thinks, truth)
    right = sum(verdict.prediction_score for verdict in verdicts) / len(kept)
    reasoned = [v.reasoning_score for v in verdicts if v.reasoning_score is not None]
    assert right < 0.05, [
        (s.question, s.answers, a, v.evaluation) for s, a, v in zip(kept, answers, verdicts) if v.prediction_score
    ][:5]
    assert sum(reasoned) / len(reasoned) < 0.4
