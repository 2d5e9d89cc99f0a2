"""The semantic judge: open answers and reasoning by the cosine similarity of sentence embeddings.

To an encoder "no mass" and "mass", or "left lung" and "right lung", are nearly the same. So yes/no, choices and
numbers are rated exactly, as the lexical judge does, and what contradicts its reference (`contradicts`) is wrong at
any cosine. The encoder is all-MiniLM-L6-v2 by default, its token states averaged over the text.
"""

import re
from collections.abc import Sequence
from functools import cache

from rarl.answers import kind_of, list_items, matches, normalise
from rarl.errors import UserError
from rarl.judges.faults import machinery_fault, model_fault
from rarl.judges.lexical import content_words, quoted, rate_answer
from rarl.records import Prediction, Sample, Verdict, batches
from rarl.text_encoder import encoder_path

BATCH = 64
#: Longest text in tokens; what follows is not read (all-MiniLM-L6-v2 was trained on 128).
MAX_TOKENS = 256
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
#: What stands for the cosine of texts that contradict each other: below every threshold.
CONTRADICTED = -1.0
#: Words that say where, and what each means.
SIDES = {
    "left": {"left"}, "right": {"right"}, "bilateral": {"left", "right"}, "both": {"left", "right"},
    "upper": {"upper"}, "superior": {"upper"}, "lower": {"lower"}, "inferior": {"lower"},
    "anterior": {"anterior"}, "posterior": {"posterior"},
}  # fmt: skip
#: Words that a denial in a reasoning leaves as they are: "no mass in the left lung" does not deny the lung.
PLACES = SIDES.keys() | {
    "abdomen", "bladder", "brain", "chest", "colon", "head", "heart", "kidney", "liver", "lobe", "lung", "pelvis",
    "side", "spleen", "stomach",
}  # fmt: skip


def judge(samples: Sequence[Sample], predictions: Sequence[Prediction], settings, *, encoder, **_) -> list[Verdict]:
    """Rate each prediction; the texts of the whole call are embedded together, each once.

    Args:
        samples, predictions: one for one, in the same order.
        settings: `params.Judge`; `threshold` and `reasoning_threshold` are cosines.
        encoder: `params.Encoder`; its `source` says what embeds.

    Raises:
        UserError: a threshold is not set, or the encoder is not there.
    """
    for key in ("threshold", "reasoning_threshold"):
        if getattr(settings, key) is None:
            raise UserError(
                f"params.yaml, {key} of the semantic judge",
                "not set",
                "a cosine similarity from 0 to 1",
                f"add {key} to this judge's block under `judge:`",
            )
    rows = list(zip(samples, predictions, strict=True))
    texts: set[str] = set()
    for sample, prediction in rows:
        if _by_meaning(sample, prediction):
            texts |= {prediction.answer, *sample.answers}
        if _has_reasoning(sample, prediction):
            texts |= {prediction.think, sample.reasoning}
    vectors = embed(sorted(texts), encoder.source) if texts else {}
    return [
        machinery_fault(prediction) or _verdict(sample, prediction, settings, vectors) for sample, prediction in rows
    ]


def _by_meaning(sample: Sample, prediction: Prediction) -> bool:
    return (
        sample.kind == "open"
        and prediction.error is None
        and model_fault(prediction, prediction.answer) is None
        and not matches(prediction.answer, sample.answers, sample.kind, sample.choices)
    )


def _has_reasoning(sample: Sample, prediction: Prediction) -> bool:
    return bool(sample.reasoning and prediction.think and prediction.error is None)


def _verdict(sample: Sample, prediction: Prediction, settings, vectors: dict) -> Verdict:
    if _by_meaning(sample, prediction):
        near, reference = max(
            (similarity(vectors, prediction.answer, reference, exact=True), reference) for reference in sample.answers
        )
        right = near >= settings.threshold
        why = (
            f"{'Right' if right else 'Wrong'}: {quoted(prediction.answer)} {_said(near)} "
            f"the reference {quoted(reference)} (threshold {settings.threshold:g})."
        )
    else:
        right, why = rate_answer(sample, prediction)
    reasoning_score = None
    if sample.reasoning:
        near = 0.0
        if _has_reasoning(sample, prediction):
            near = similarity(vectors, prediction.think, sample.reasoning)
        reasoning_score = int(bool(prediction.think) and near >= settings.reasoning_threshold)
        why += f" The reasoning {_said(near)} the reference's."
    return Verdict(id=sample.id, evaluation=why, reasoning_score=reasoning_score, prediction_score=int(right))


def _said(near: float) -> str:
    return "contradicts" if near == CONTRADICTED else f"has a cosine of {near:.2f} to"


def similarity(vectors: dict, text: str, reference: str, exact: bool = False) -> float:
    """The cosine of two texts' embeddings; `CONTRADICTED` where the one contradicts the other."""
    if contradicts(text, reference, exact):
        return CONTRADICTED
    return round(float(vectors[text] @ vectors[reference]), 4)


def contradicts(text: str, reference: str, exact: bool = False) -> bool:
    """Whether the text denies what the reference says, or says what it denies.

    Args:
        exact: for answers: another side, level, number or count of listed items than the reference's is a contradiction
            as well, and so is a denied place. A reasoning may go on to other places.

    >>> contradicts("There is no mass.", "Mass"), contradicts("A mass, no edema.", "Mass")
    (True, False)
    >>> contradicts("Mass, edema", "Mass", True), contradicts("A mass.", "Mass", True)
    (True, False)
    >>> [contradicts(t, "2 nodules, left", True) for t in ("Left, two nodules", "3 nodules, left", "2 nodules, lung")]
    [False, True, True]
    """
    said, wanted = content_words(text), content_words(reference)
    turned = any(
        (word, not denied) in said and (word, denied) not in said and (word, not denied) not in wanted
        for word, denied in wanted
        if exact or word not in PLACES
    )
    return turned or (
        exact
        and (
            _sides(text) != _sides(reference) != set()
            or len(list_items(text)) != len(list_items(reference))
            or _other_numbers(text, reference)
        )
    )


def _sides(text: str) -> set[str]:
    return set().union(*(SIDES.get(word, ()) for word in _words(text)))


def _words(text: str) -> list[str]:
    """Words and decimal numbers; letters and digits apart ("5cm", "T2")."""
    return _WORD.findall(normalise(text))


def _other_numbers(text: str, reference: str) -> bool:
    """Whether the reference has numbers, in digits or words, and the text not the same ones."""
    said, wanted = ([w for w in _words(t) if kind_of(w) == "number"] for t in (text, reference))
    return bool(wanted) and not all(
        any(matches(number, [other], "number") for other in others)
        for numbers, others in ((said, wanted), (wanted, said))
        for number in numbers
    )


def embed(texts: Sequence[str], source: str) -> dict[str, object]:
    """Unit-length sentence embeddings (numpy, float32) of distinct texts.

    Token states are averaged over the text, as the encoder's own card does. Batches are made of
    texts of like length, in a fixed order and on one thread, so that equal input gives equal bits.
    """
    import torch

    tokenizer, model = _load(source)
    ids = {text: tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"] for text in texts}
    vectors = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for batch in batches(sorted(ids, key=lambda text: (len(ids[text]), text)), BATCH):
            longest = max(len(ids[text]) for text in batch)
            tokens = torch.full((len(batch), longest), tokenizer.pad_token_id)
            mask = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, text in enumerate(batch):
                tokens[row, : len(ids[text])] = torch.tensor(ids[text])
                mask[row, : len(ids[text])] = 1
            with torch.inference_mode():
                states = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            unit = torch.nn.functional.normalize(means, dim=-1).numpy()
            vectors |= dict(zip(batch, unit, strict=True))
    finally:
        torch.set_num_threads(threads)
    return vectors


@cache
def _load(source: str):
    """Tokenizer and model, on the CPU: these texts are few and short."""
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
