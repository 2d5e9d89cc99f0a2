"""BERTScore F1 [29 in the paper] for the accuracy and reasoning rewards, on short texts and often.

The `bert-score` package loads the encoder and its tokenizer, and the score is its raw F1 without IDF weights and
without rescaling; `tests/tiny/test_bertscore.py` compares the two. Differences from `bert_score.BERTScorer.score`:

* A score depends on its two texts alone. The package pads a text to the longest one in its batch, and another length
  rounds differently: a cache, another order or a resumed run would change the last digits of a reward. Here texts are
  grouped by length in steps of `STEP` tokens, on one thread, and the result is rounded to 6 decimals.
* An empty text scores 0; the package raises an error under transformers 5.
* Scores are cached per pair and embeddings per reference: a group of completions shares one reference, and the same
  short answers are sampled many times.
"""

from collections.abc import Sequence

from rarl.errors import UserError
from rarl.text_encoder import encoder_path, one_thread

#: Token lengths are padded to a multiple of this: OpenBLAS computes 12 rows of a product at a time, each of which
#: rounds differently, so every text has to start at the same one.
STEP = 12
#: Largest batch of the encoder, in texts.
ROWS = 64
#: A matrix product of fewer rows uses another kernel, which rounds differently.
MIN_TOKENS = 36


class BertScorer:
    """Raw BERTScore F1 with one encoder.

    Args:
        source: `embedded`, a local folder, or a model type that the bert-score package knows.
        num_layers: the layer whose output is compared; None for the package's default for this type.
        device: where the encoder runs; None for CUDA where there is one.

    Raises:
        UserError: the encoder is not installed or not found, or its layer is unknown.
    """

    def __init__(self, source: str, num_layers: int | None, device: str | None = None):
        import torch
        from bert_score.utils import get_model, get_tokenizer, model2layers
        from transformers.utils import logging

        path = encoder_path(source)
        layers = num_layers or model2layers.get(path)
        if layers is None:
            raise UserError(
                "encoder.num_layers",
                "none",
                f"a layer number, since bert-score has no choice of its own for {source}",
                "set encoder.num_layers (6 for all-MiniLM-L6-v2)",
            )
        bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self.tokenizer = get_tokenizer(path)
            self.model = get_model(path, layers)
        except (OSError, AssertionError) as error:
            raise UserError(
                f"encoder.source: {source}",
                " ".join(str(error).split())[:200],
                f"an encoder with at least {layers} layers",
                "name a folder in the hub's layout, or `embedded`",
            ) from None
        finally:
            if bar:
                logging.enable_progress_bar()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device).eval().requires_grad_(False)
        self._scores: dict[tuple[str, str], float] = {}
        self._references: dict[str, object] = {}

    def f1(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the F1 of each (candidate, reference) pair, rounded to 6 decimals; 0 if either text is empty.

        The score of a pair depends neither on the other pairs nor on earlier calls.
        """
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        if new:
            with one_thread():
                self._references |= self._embed({reference for _, reference in new} - self._references.keys())
                embedded = self._embed({text for text, _ in new} - self._references.keys())
                embedded |= self._references
                for candidate, reference in new:
                    self._scores[candidate, reference] = _greedy_f1(embedded[candidate], embedded[reference])
        return [self._scores[pair] for pair in pairs]

    def _embed(self, texts: set[str]) -> dict[str, object]:
        """Return the normalized token embeddings [tokens, width] of each text; None for an empty one."""
        import torch
        from bert_score.utils import sent_encode

        special = self.tokenizer.num_special_tokens_to_add()
        embedded: dict[str, object] = {}
        by_length: dict[int, list[tuple[str, list[int]]]] = {}
        for text in sorted(texts):
            ids = sent_encode(self.tokenizer, text) if text.strip() else []
            if len(ids) <= special:
                embedded[text] = None
            else:
                length = min(-(-len(ids) // STEP) * STEP, self.tokenizer.model_max_length)
                by_length.setdefault(length, []).append((text, ids))
        for length, group in sorted(by_length.items()):
            for start in range(0, len(group), ROWS):
                part = group[start : start + ROWS]
                rows = max(len(part), -(-MIN_TOKENS // length))
                ids = torch.full((rows, length), self.tokenizer.pad_token_id)
                mask = torch.zeros((rows, length), dtype=torch.long)
                mask[:, 0] = 1  # a row of padding must attend to something
                for row, (_, tokens) in enumerate(part):
                    ids[row, : len(tokens)] = torch.tensor(tokens)
                    mask[row, : len(tokens)] = 1
                with torch.inference_mode():
                    states = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))[0]
                states = torch.nn.functional.normalize(states.float().cpu(), dim=-1).numpy()
                for row, (text, tokens) in enumerate(part):
                    embedded[text] = states[row, : len(tokens)]
        return embedded


def _greedy_f1(candidate, reference) -> float:
    """Return the F1 of equations (3) to (5) of the BERTScore paper: greedy matching of tokens.

    As in the package, the first and last token (CLS, SEP) can be matched but carry no weight.
    """
    if candidate is None or reference is None:
        return 0.0
    similarity = candidate @ reference.T
    precision = float(similarity.max(axis=1)[1:-1].mean(dtype="float64"))
    recall = float(similarity.max(axis=0)[1:-1].mean(dtype="float64"))
    if precision + recall <= 0:
        return 0.0
    return round(2 * precision * recall / (precision + recall), 6)
