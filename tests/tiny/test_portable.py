"""The same bits on emulated processors of two vendors; `make portable` does the same with more steps."""

import json
import shutil

import pytest

from rarl.measuring import portability
from rarl.measuring.price import table as price_table


@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which(portability.EMULATOR) is None, reason="qemu-user is not installed")
def test_two_emulated_vendors_compute_the_same_bits():
    found = portability.compare(short=True)
    assert {"sft training", "rarl training", "inference", "BERTScore"} <= found.keys()
    assert not portability.differing(found), portability.table(found)


def test_other_kernels_show_in_the_digests():
    """The comparison can fail: without the pinned kernels nearly every part has other bits."""
    pinned, free = (portability.child(short=True, portable=pins) for pins in (True, False))
    assert pinned == portability.child(short=True), "equal runs are equal"
    different = {part for part in pinned if pinned[part] != free[part]}
    assert {"vision tower", "sft training", "grpo training", "semantic judge"} <= different
    assert "phantoms" not in different


def test_table_names_the_part_that_differs():
    text = portability.table({"a": {"here": "1", "there": "1"}, "b": {"here": "1", "there": "2"}})
    assert text.splitlines()[2:] == ["| a | 1 | 1 | yes |", "| b | 1 | 2 | NO |"]


def test_table_of_the_price_is_the_committed_one(repository):
    lines = json.loads((repository / "metrics/bench/price.json").read_text(encoding="utf-8"))
    assert price_table(lines) in (repository / "metrics/bench/price.md").read_text(encoding="utf-8")
