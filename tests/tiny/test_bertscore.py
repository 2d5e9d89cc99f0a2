"""BERTScore against the bert-score package, the rewards that use it, and the semantic judge."""

import csv
import random
import time
from pathlib import Path

import pytest

from rarl.answers.completion import read_completion
from rarl.judges import semantic
from rarl.params import Encoder, Judge, Rewards
from rarl.records import Prediction, Sample
from rarl.rewards import reward_functions
from rarl.rewards.bertscore import BertScorer
from rarl.text_encoder import encoder_path

pytestmark = pytest.mark.tiny

PAIRS = [
    ("no", "yes"),
    ("Nodule", "Nodule"),
    ("nodule.", "Nodule"),
    ("Pneumonia", "Brain Edema"),
    ("Lung", "yes 0 15"),
    ("Brain Edema, Brain Tumor", "Brain Tumor, Brain Edema"),
    ("The picture shows a chest X-ray.", "There is a bright hazy area in the upper left lung."),
    ("A small bright round spot in the lower right lung suggests a nodule.", "Nodule"),
    ("long " * 300, "A dark round spot in the liver, so the patient has liver cancer."),
    ("é ñ — 漢字 ™", "fibrosis"),
    ("?", "..."),
]


@pytest.fixture(scope="module")
def scorer():
    return BertScorer("embedded", 6, device="cpu")


@pytest.fixture(scope="module")
def package():
    import bert_score

    return bert_score.BERTScorer(model_type=encoder_path("embedded"), num_layers=6, device="cpu", idf=False)


def test_f1_is_that_of_the_package(scorer, package):
    """Pair by pair: in a batch the package lets padding take part in the match of a short text."""
    ours = scorer.f1(PAIRS)
    theirs = [package.score([left], [right])[2].item() for left, right in PAIRS]
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[0] == pytest.approx(0.80, abs=0.02)
    assert ours[1] == 1.0


def test_another_layer_is_another_score(scorer, package):
    import bert_score

    shallow = BertScorer("embedded", 3, device="cpu")
    reference = bert_score.BERTScorer(model_type=encoder_path("embedded"), num_layers=3, device="cpu")
    pair = ("Pneumonia in the left lung", "Brain Edema")
    [ours] = shallow.f1([pair])
    assert ours == pytest.approx(reference.score([pair[0]], [pair[1]])[2].item(), abs=1e-5)
    assert ours != scorer.f1([pair])[0]


def test_empty_texts_score_zero(scorer):
    assert scorer.f1([("", "yes"), ("yes", ""), ("", ""), (" \n", "yes")]) == [0.0] * 4
    assert scorer.f1([]) == []


def test_a_score_does_not_depend_on_company_order_or_cache():
    """Bit for bit, with two threads set outside: a resumed run meets other batches."""
    rng = random.Random(1)
    words = [
        "nodule",
        "mass",
        "lung",
        "left",
        "right",
        "heart",
        "edema",
        "tumor",
        "bright",
        "spot",
        "shows",
        "a",
        "the",
        "in",
    ]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 25))) for _ in range(60)]
    pairs = [(rng.choice(texts), rng.choice(texts[:6])) for _ in range(80)]
    at_once = dict(zip(pairs, BertScorer("embedded", 6, device="cpu").f1(pairs)))
    for size in (1, 7, 32):
        fresh = BertScorer("embedded", 6, device="cpu")
        order = rng.sample(pairs, len(pairs))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            assert fresh.f1(part) == [at_once[pair] for pair in part]
        assert fresh.f1(pairs) == [at_once[pair] for pair in pairs]


def test_the_callers_threads_are_left_alone(scorer):
    import torch

    torch.set_num_threads(2)
    scorer.f1([("a text that was not scored before", "yes")])
    assert torch.get_num_threads() == 2


def test_what_was_scored_before_costs_nothing(scorer):
    pairs = [(f"spot number {number} in the lung", "Nodule") for number in range(32)]
    scorer.f1(pairs)
    started = time.perf_counter()
    scorer.f1(pairs)
    assert time.perf_counter() - started < 0.005


def test_an_encoder_that_is_not_there_is_the_users_error(tmp_path):
    with pytest.raises(Exception, match=r"encoder\.source"):
        BertScorer(str(tmp_path / "nothing"), 6)
    with pytest.raises(Exception, match=r"encoder\.num_layers"):
        BertScorer("embedded", None)


def test_rewards_with_the_encoder(scorer):
    functions, weights = reward_functions(Rewards(reasoning=1.0), lambda: scorer)
    rewards = {function.__name__: function for function in functions}
    assert weights == [1.0] * 4
    thought = "A small bright round spot in the left lung: a nodule."
    completions = [
        f"<think>{thought}</think> <answer>Nodule</answer>",
        "<think>The liver is clear.</think> <answer>Pneumonia</answer>",
        "<think>Hm.</think> <answer></answer>",
        "<think>Hm.</think> <answer>no</answer>",
    ]
    columns = {
        "answers": [["Mass", "Nodule"], ["Nodule"], ["Nodule"], ["yes"]],
        "kind": ["open", "open", "open", "yes_no"],
        "choices": [[]] * 4,
        "reasoning": [thought, thought, None, thought],
        "completion_ids": [[1] * 30] * 4,
        "prompts": ["?"] * 4,
    }
    accuracy = rewards["accuracy"](completions, **columns)
    assert accuracy[0] == 1.0 and accuracy[2:] == [0.0, 0.0]
    assert accuracy[1] == scorer.f1([("Pneumonia", "Nodule")])[0]
    assert 0 < accuracy[1] < 1
    reasoning = rewards["reasoning"](completions, **columns)
    assert reasoning[0] == 1.0 and reasoning[2] is None
    assert reasoning[3] < reasoning[1] < 0.9


def test_accuracy_takes_the_best_reference(scorer):
    [accuracy] = [
        function for function in reward_functions(Rewards(), lambda: scorer)[0] if function.__name__ == "accuracy"
    ]
    near, far = "a nodule in the lung", "normal liver"
    [both] = accuracy(["lung nodule"], answers=[[far, near]], kind=["open"], choices=[[]])
    assert both == scorer.f1([("lung nodule", near)])[0] > scorer.f1([("lung nodule", far)])[0]


# The semantic judge ---------------------------------------------------------------------------------

SETTINGS = Judge(kind="semantic", threshold=0.8, reasoning_threshold=0.7)


def judged(rows, settings=SETTINGS):
    samples, predictions = [], []
    for number, (reference, kind, reasoning, completion, fields) in enumerate(rows):
        think, answer = read_completion(completion)
        samples.append(
            Sample(
                id=f"x/{number}",
                dataset="x",
                split="test",
                image="1.png",
                image_sha256="ab",
                question="?",
                answers=reference,
                kind=kind,
                reasoning=reasoning,
                choices=["Heart", "Lung"] if kind == "choice" else [],
            )
        )
        predictions.append(Prediction(id=f"x/{number}", completion=completion, think=think, answer=answer, **fields))
    verdicts = semantic.judge(samples, predictions, settings, encoder=Encoder())
    assert [verdict.id for verdict in verdicts] == [sample.id for sample in samples]
    return [(v.prediction_score, v.reasoning_score, v.unscored) for v in verdicts]


def test_semantic_gold_in_full_marks_out():
    thought = "A dark round spot in the liver, so the patient has liver cancer."
    for reference, kind in (
        ("Yes", "yes_no"), ("(B)", "choice"), ("Lung", "choice"), ("3", "number"), ("None", "open"),
        ("Liver Cancer, Kidney Cancer", "open"),
    ):  # fmt: skip
        completion = f"<think>{thought}</think> <answer>{reference}</answer>"
        assert judged([([reference], kind, thought, completion, {})]) == [(1, 1, None)]


def test_semantic_verdicts():
    thought = "A dark round spot in the liver, so the patient has liver cancer."
    near = "There is a dark spot in the liver, which means cancer of the liver."
    far = "The picture is a chest X-ray."
    assert judged(
        [
            (["x", "Lung nodule"], "open", None, "<answer>nodule of the lung</answer>", {}),
            (["Liver Cancer"], "open", None, "<answer>Pneumothorax</answer>", {}),
            (["Lung"], "choice", None, "<answer>lungs</answer>", {}),
            (["Yes"], "yes_no", thought, f"<think>{near}</think> <answer>No</answer>", {}),
            (["Yes"], "yes_no", thought, f"<think>{far}</think> <answer>Yes</answer>", {}),
            (["Yes"], "yes_no", thought, "Yes", {}),
            (["Mass"], "open", thought, "", {}),
            (["Mass"], "open", None, "<answer>Mass</answer>", {"truncated": True}),
            (["Mass"], "open", thought, "", {"error": "1.png: cannot be read"}),
        ]
    ) == [
        (1, None, None),
        (0, None, None),
        (0, None, None),
        (0, 1, None),
        (1, 0, None),
        (1, 0, None),
        (0, 0, None),
        (0, None, None),
        (None, None, "1.png: cannot be read"),
    ]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("There is a mass.", "Mass", 1),
        ("There is no mass.", "Mass", 0),
        ("Mass", "No mass", 0),
        ("No mass is seen", "No mass", 1),
        ("not the heart", "Heart", 0),
        ("a mass in the left lung", "Mass in the left lung", 1),
        ("a mass in the right lung", "Mass in the left lung", 0),
        ("a mass in the lung", "Mass in the left lung", 0),
        ("superior left lung lobe", "upper left lung lobe", 1),
        ("two lung nodules", "2 nodules of the lung", 1),
        ("three lung nodules", "2 nodules of the lung", 0),
        ("mass, nodule", "Mass", 0),
        ("5 cm", "5 mm", 0),
        ("gray", "black", 0),
        ("stomach", "liver", 0),
        ("the spleen", "liver", 0),
        ("CT scan", "MRI scan", 0),
        ("benign tumor", "malignant tumor", 0),
    ],
)
def test_semantic_sees_what_embeddings_do_not(answer, reference, right):
    """Each pair has a cosine above this threshold: what is wrong is so by what it says."""
    vectors = semantic.embed([answer, reference], "embedded")
    assert float(vectors[answer] @ vectors[reference]) > 0.3
    settings = Judge(kind="semantic", threshold=0.3, reasoning_threshold=0.7)
    row = ([reference], "open", None, f"<answer>{answer}</answer>", {})
    assert judged([row], settings) == [(right, None, None)]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The modality is a chest radiograph.", "X-Ray", 1),
        ("Magnetic resonance imaging (MRI)", "mri", 1),
        ("It was taken in the posteroanterior plane.", "PA", 1),
        ("The renal tumour", "kidney tumor", 1),
        ("The plane is anteroposterior, not posteroanterior.", "PA", 0),
        ("No radiograph", "X-Ray", 0),
    ],
)
def test_semantic_knows_synonyms_without_its_encoder(answer, reference, right):
    settings = Judge(kind="semantic", threshold=1.0, reasoning_threshold=0.7)
    assert judged([([reference], "open", None, answer, {})], settings) == [(right, None, None)]


def test_semantic_accepts_what_lexical_accepts():
    table = Path(__file__).parents[1] / "unit/answers_in_sentences.csv"
    rows = [row for row in csv.DictReader(table.open(encoding="utf-8")) if row["judge"] == "1" and not row["choices"]]
    samples = [
        Sample(
            id=str(n), dataset="x", split="test", image="1.png", image_sha256="ab", question=row["question"],
            answers=[row["reference"]], kind=row["kind"],
        )
        for n, row in enumerate(rows)
    ]  # fmt: skip
    answers = [row["completion"].replace("\\n", "\n") for row in rows]
    predictions = [Prediction(id=str(n), completion=text, answer=text) for n, text in enumerate(answers)]
    settings = Judge(kind="semantic", threshold=1.0, reasoning_threshold=1.0)
    verdicts = semantic.judge(samples, predictions, settings, encoder=Encoder())
    assert [row["why"] for row, verdict in zip(rows, verdicts) if verdict.prediction_score != 1] == []


def test_a_reasoning_that_denies_its_reference_is_not_sound():
    thought = "A dark spot in the left lung. This is a nodule."
    same, denied, elsewhere = (
        "This is a nodule, as there is a dark spot in the left lung.",
        "A dark spot in the left lung. This is not a nodule.",
        "A dark spot in the left lung, and none in the right lung. This is a nodule.",
    )
    rows = [
        (["Yes"], "yes_no", thought, f"<think>{text}</think> <answer>Yes</answer>", {})
        for text in (same, denied, elsewhere)
    ]
    assert [verdict[1] for verdict in judged(rows)] == [1, 0, 1]


def test_semantic_embeddings_are_those_of_sentence_transformers_pooling():
    """Mean of the token states under the mask, unit length: padding must not take part."""
    import torch

    texts = ["Nodule", "A small bright round spot in the upper left lung suggests a nodule."]
    together = semantic.embed(texts, "embedded")
    tokenizer, model = semantic.load_encoder("embedded")
    for text in texts:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        alone = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        assert together[text] == pytest.approx(alone, abs=1e-5)


def test_semantic_needs_its_thresholds():
    with pytest.raises(Exception, match="reasoning_threshold"):
        judged([(["Mass"], "open", None, "Mass", {})], Judge(kind="semantic", threshold=0.8))
