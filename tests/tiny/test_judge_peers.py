"""The peers that need the text encoder (`rarl study judges`)."""

from rarl.params import Encoder
from rarl.studies.peers import peer_scores

ENCODER = Encoder(source="embedded", num_layers=6)
TEXTS = ["A copper gizzard.", "An old antenna", "gizzard of copper " * 170, ""]


def test_what_is_alike_scores_higher_and_no_text_is_too_long():
    for name in ("bertscore", "cosine"):
        near, far, long, empty = peer_scores(name, TEXTS, [["copper gizzard"]] * len(TEXTS), ENCODER)
        assert far < near <= 1 and far < long < 1 and empty == -1
