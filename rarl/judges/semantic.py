"""The semantic judge: open answers and reasoning by the cosine similarity of sentence embeddings.

It accepts what the lexical judge accepts, as it is or in the wording of `synonyms.py`, and open answers whose cosine
reaches the threshold. An encoder gives "no mass" and "mass", or "left lung" and "right lung", nearly the same vector.
So yes/no, choices and numbers have no cosine, and an answer that contradicts its reference (`contradicts`) is wrong at
any. The default encoder is all-MiniLM-L6-v2 with mean pooling.
"""

import re
from collections.abc import Sequence
from functools import cache

from rarl.answers.exact import kind_of
from rarl.answers.matching import is_right, matches
from rarl.answers.sentences import content_words, has_verb, words_of
from rarl.answers.spelling import list_items, normalise
from rarl.errors import UserError
from rarl.judges.failures import infrastructure_failure, model_failure
from rarl.judges.lexical import quoted, rate_answer
from rarl.judges.synonyms import in_one_wording
from rarl.records import Kind, Prediction, Sample, Verdict, batches
from rarl.text_encoder import encoder_path, one_thread

BATCH = 64
#: Tokens after which a text is truncated (all-MiniLM-L6-v2 was trained on 128).
MAX_TOKENS = 256
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
#: The "cosine" of texts that contradict each other: below every threshold.
CONTRADICTED = -1.0
#: Words for a place, and what each means.
SIDES = {
    "left": {"left"}, "right": {"right"}, "bilateral": {"left", "right"}, "both": {"left", "right"},
    "upper": {"upper"}, "superior": {"upper"}, "lower": {"lower"}, "inferior": {"lower"},
    "anterior": {"anterior"}, "posterior": {"posterior"},
}  # fmt: skip
#: Groups of words of which one in place of another changes an answer.
RIVALS = [
    frozenset(_WORD.findall(words))
    for words in (
        "black white gray red pink orange yellow green blue purple violet brown",
        "mm cm m um nm ml l cc mg g kg hu",
        "ray mri ct ultrasound pet mammography angiography",
        "axial coronal sagittal oblique",
        "pa ap lateral",
        "large small",
        "benign malignant",
        "acute chronic",
        "lung heart brain liver kidney spleen stomach pancreas gallbladder bladder bowel colon rectum esophagus "
        "trachea aorta diaphragm pleura mediastinum uterus ovary prostate thyroid breast skin eye spine bone muscle",
        "frontal temporal parietal occipital",
        "apical basal",
        "ascending descending",
        "abdomen pelvis chest head neck",
        "effusion thickening",
        "subdural epidural subarachnoid",
        "hypertrophy dilatation atrophy stenosis",
        "round oval irregular",
    )
]
#: Words with which an answer leaves open which of several it is.
ALTERNATIVES = {"or", "either", "versus", "vs"}
#: Words that add nothing to the name of a place.
VAGUE_PLACES = {"lobe", "side", "region", "area", "cavity"}
#: Words that a negation in a reasoning does not deny: "no mass in the left lung" does not deny the lung.
PLACES = SIDES.keys() | set(
    _WORD.findall("""
    abdomen bladder brain chest colon head heart kidney liver lobe lung pelvis side spleen stomach
""")
)


def judge(samples: Sequence[Sample], predictions: Sequence[Prediction], settings, *, encoder, **_) -> list[Verdict]:
    """Rate each prediction; the texts of the whole call are embedded together, each once.

    Of `settings` (`params.Judge`) the cosines `threshold` and `reasoning_threshold` are used, of `encoder`
    (`params.Encoder`) the `source`.

    Raises:
        UserError: a threshold is not set, or the encoder is missing.
    """
    for key in ("threshold", "reasoning_threshold"):
        if getattr(settings, key) is None:
            raise UserError(
                f"params.yaml, {key} of the semantic judge",
                "not set",
                "a cosine similarity from 0 to 1",
                f"add {key} to this judge's block under `judge:`",
            )
    rows = [(*row, _read(*row)) for row in zip(samples, predictions, strict=True)]
    texts: set[str] = set()
    for sample, prediction, decided in rows:
        if decided is None:
            texts |= {prediction.answer, *sample.answers}
        if _has_reasoning(sample, prediction):
            texts |= {prediction.think, sample.reasoning}
    vectors = embed(sorted(texts), encoder.source) if texts else {}
    return [
        infrastructure_failure(prediction) or _verdict(sample, prediction, decided, settings, vectors)
        for sample, prediction, decided in rows
    ]


def _read(sample: Sample, prediction: Prediction) -> tuple[bool, str] | None:
    """What can be decided without the encoder, with the reason; None if the cosine decides."""
    right, why = rate_answer(sample, prediction)
    if right or prediction.error or model_failure(prediction, prediction.answer):
        return right, why
    if by_synonyms(prediction.answer, sample.answers, sample.question, sample.kind, sample.choices):
        return True, f"Right: {quoted(prediction.answer)} states a synonym of {quoted(' / '.join(sample.answers))}."
    return None if sample.kind == "open" else (right, why)


def by_synonyms(
    answer: str, references: Sequence[str], question: str, kind: Kind = "open", choices: Sequence[str] = ()
) -> bool:
    """Return whether the lexical judge accepts an answer once all texts have one wording for what means the same.

    >>> by_synonyms("The plane is posteroanterior.", ["PA"], "In which plane was it taken?")
    True
    """
    question, answer, *references = map(in_one_wording, (question, answer, *references))
    return is_right(answer, references, kind, [in_one_wording(choice) for choice in choices], question)


def _has_reasoning(sample: Sample, prediction: Prediction) -> bool:
    return bool(sample.reasoning and prediction.think and prediction.error is None)


def _verdict(
    sample: Sample, prediction: Prediction, decided: tuple[bool, str] | None, settings, vectors: dict
) -> Verdict:
    if decided is None:
        near, reference = max(
            (similarity(vectors, prediction.answer, reference, exact=True), reference) for reference in sample.answers
        )
        right = near >= settings.threshold
        why = (
            f"{'Right' if right else 'Wrong'}: {quoted(prediction.answer)} {_relation(near)} "
            f"the reference {quoted(reference)} (threshold {settings.threshold:g})."
        )
    else:
        right, why = decided
    reasoning_score = None
    if sample.reasoning:
        near = 0.0
        if _has_reasoning(sample, prediction):
            near = similarity(vectors, prediction.think, sample.reasoning)
        reasoning_score = int(bool(prediction.think) and near >= settings.reasoning_threshold)
        why += f" The reasoning {_relation(near)} the reference's."
    return Verdict(id=sample.id, evaluation=why, reasoning_score=reasoning_score, prediction_score=int(right))


def _relation(near: float) -> str:
    return "contradicts" if near == CONTRADICTED else f"has a cosine of {near:.2f} to"


def similarity(vectors: dict, text: str, reference: str, exact: bool = False) -> float:
    """The cosine of two texts' embeddings; `CONTRADICTED` if one contradicts the other."""
    if contradicts(text, reference, exact):
        return CONTRADICTED
    return round(float(vectors[text] @ vectors[reference]), 4)


def contradicts(text: str, reference: str, exact: bool = False) -> bool:
    """Whether a text denies what the reference states, or states what it denies.

    With `exact`, for answers, another side, level or number than the reference's is a contradiction too, a rival in
    place of one of its words (`RIVALS`), and a denied place; a reasoning may mention other places. So is another
    number of items where the reference is a list, or where the answer is one without a verb; an answer that leaves
    open which of several it is; and one that has only some of the reference's words and none of its own.

    >>> contradicts("There is no mass.", "Mass"), contradicts("A mass, no edema.", "Mass")
    (True, False)
    >>> contradicts("Mass, edema", "Mass", True), contradicts("A mass.", "Mass", True)
    (True, False)
    >>> [contradicts(t, "2 nodules, left", True) for t in ("Left, two nodules", "3 nodules, left", "2 nodules, lung")]
    [False, True, True]
    """
    found, wanted = content_words(text), content_words(reference)
    reversed_word = any(
        (word, not denied) in found and (word, denied) not in found and (word, not denied) not in wanted
        for word, denied in wanted
        if exact or word not in PLACES
    )
    if reversed_word or not exact:
        return reversed_word
    text, reference = in_one_wording(text), in_one_wording(reference)
    items = len(list_items(reference))
    given, asked_for = ({word for word, _ in content_words(one)} - VAGUE_PLACES for one in (text, reference))
    return (
        _sides(text) != _sides(reference) != set()
        or given < asked_for
        or bool(ALTERNATIVES & {*words_of(text)} - {*words_of(reference)})
        or ((items > 1 or not has_verb(text)) and len(list_items(text)) != items)
        or _other_numbers(text, reference)
        or _names_a_rival(text, reference)
    )


def _sides(text: str) -> set[str]:
    return set().union(*(SIDES.get(word, ()) for word in _words(text)))


def _names_a_rival(text: str, reference: str) -> bool:
    given, wanted = {*words_of(text)}, {*words_of(reference)}
    return any(wanted & group and given & group and not wanted & given & group for group in RIVALS)


def _words(text: str) -> list[str]:
    """Words and decimal numbers; letters and digits are separated ("5cm", "T2")."""
    return _WORD.findall(normalise(text))


def _other_numbers(text: str, reference: str) -> bool:
    """Whether the reference has numbers, in digits or words, and the text has others."""
    found, wanted = ([w for w in _words(t) if kind_of(w) == "number"] for t in (text, reference))
    return bool(wanted) and not all(
        any(matches(number, [other], "number") for other in others)
        for numbers, others in ((found, wanted), (wanted, found))
        for number in numbers
    )


def embed(texts: Sequence[str], source: str) -> dict[str, object]:
    """Unit-length sentence embeddings (numpy, float32) of distinct texts.

    Mean pooling over the tokens, as the encoder's model card has it. Batches hold texts of similar length, in a fixed
    order and on one thread, for reproducibility. `SentenceTransformer.encode` sorts a batch again, which changes bits
    (by up to 3e-8), and takes two more seconds to import in each run of the stage.
    """
    import torch

    tokenizer, model = load_encoder(source)
    ids = {text: tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"] for text in texts}
    vectors = {}
    with one_thread():
        for batch in batches(sorted(ids, key=lambda text: (len(ids[text]), text)), BATCH):
            inputs = tokenizer.pad({"input_ids": [ids[text] for text in batch]}, return_tensors="pt")
            mask = inputs["attention_mask"]
            with torch.inference_mode():
                states = model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
            means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            unit = torch.nn.functional.normalize(means, dim=-1).numpy()
            vectors |= dict(zip(batch, unit, strict=True))
    return vectors


@cache
def load_encoder(source: str):
    """Tokenizer and model, on the CPU: the texts are few and short."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    path = encoder_path(source)
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModel.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"encoder.source: {source}",
            " ".join(str(error).split())[:200],
            "a sentence encoder in the hub's layout",
            "name a local folder, or `embedded`",
        ) from None
    return tokenizer, model.eval().requires_grad_(False)
