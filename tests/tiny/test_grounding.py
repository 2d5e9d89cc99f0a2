"""Another question's image, a grey one, and a vote over several samples."""

from collections import Counter

import pytest

from rarl.inference import local as inference
from rarl.inference.local import predict, shuffled, vote
from rarl.models.generation import Response
from rarl.params import Decoding, Mode
from rarl.records import Prediction, Sample


def a_sample(index: int, picture: str, modality: str = "mri", **fields) -> Sample:
    base = {
        "id": f"x/test/{index}", "dataset": "x", "split": "test", "image": f"{picture}.png", "image_sha256": picture,
        "question": "Is there a spot?", "answers": ["Yes"], "kind": "yes_no", "modality": modality,
    }  # fmt: skip
    return Sample(**(base | fields))


def said(answer: str, index: int = 0) -> Prediction:
    return Prediction(id="x/test/0", completion=f"{index}: {answer}", answer=answer)


def test_every_question_gets_another_picture_of_its_modality():
    samples = [a_sample(i, f"{modality}{i // 2}", modality) for modality in ("mri", "ct", "xray") for i in range(14)]
    given = shuffled(samples, 7)
    modality = {sample.image: sample.modality for sample in samples}
    for sample, image in zip(samples, given):
        assert image != sample.image and modality[image] == sample.modality
    assert set(given) == set(modality), "every picture is shown, so the mix stays"
    assert given == shuffled(samples, 7) != shuffled(samples, 8)


def test_a_lone_picture_gets_one_of_another_modality():
    samples = [a_sample(0, "a"), a_sample(1, "b", "ct"), a_sample(2, "c", "ct")]
    assert shuffled(samples, 1)[0] in ("b.png", "c.png")
    assert shuffled(samples[:1], 1) == ["a.png"], "there is no other"


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["No", "Yes, there is.", "yes"], 2),
        (["Yes", "No"], 0),
        (["", "", "Mass"], 2),
        (["", ""], 0),
        (["Edema, Mass", "Nodule", "mass and edema", "Nodule", "Mass, Edema"], 0),
    ],
)
def test_the_answer_that_most_give_is_taken(answers, winner):
    given = [said(answer, i) for i, answer in enumerate(answers)]
    assert vote(given, "What is seen?", []).completion == f"{winner}: {answers[winner]}"


def test_a_vote_counts_options_by_letter_and_text():
    given = [said("(B) Brain"), said("Heart", 1), said("b", 2)]
    assert vote(given, "Which organ?", ["Heart", "Brain"]).completion == "0: (B) Brain"


class Loaded:
    """What `predict` asks of a model that is never run."""

    class device:
        type = "cpu"


def test_each_turn_has_a_seed_of_its_own_and_pictures_follow_the_mode(tmp_path, monkeypatch):
    samples = [a_sample(i, f"p{i}") for i in range(3)]
    turns, pictures = [], Counter()

    def ask(loaded, batch, new, temperature, seed):
        turns.append(seed)
        pictures.update((r.id, r.image.name, r.blank) for r in batch)
        answer = "Yes" if len(turns) > 1 else "No"
        return [Response(r.id, f"<answer>{answer}</answer>", 3, False) for r in batch]

    monkeypatch.setattr(inference, "ask", ask)
    found = predict(
        Loaded(), samples, tmp_path, Mode(prompt="reasoning", image="shuffled"),
        Decoding(samples=3, temperature=1.0), 7, tmp_path / "kept.jsonl",
    )  # fmt: skip
    assert turns == [7, "7 1", "7 2"]
    assert [p.answer for p in found] == ["Yes"] * 3
    expected = zip(samples, shuffled(samples, 7))
    assert pictures == {(s.id, image, False): 3 for s, image in expected}


def test_a_vote_without_a_temperature_is_refused():
    with pytest.raises(ValueError, match="temperature above 0"):
        Decoding(samples=5)
