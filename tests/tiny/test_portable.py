"""The same bits on emulated processors of two vendors; `make portable` does the same with more steps."""

import shutil

import pytest

from rarl.cli import portable


@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which(portable.EMULATOR) is None, reason="qemu-user is not installed")
def test_two_emulated_vendors_compute_the_same_bits():
    found = portable.compare(short=True)
    assert {"sft training", "rarl training", "inference", "BERTScore"} <= found.keys()
    different = [part for part, row in found.items() if len(set(row.values())) > 1]
    assert not different, portable.table(found)


def test_other_kernels_show_in_the_digests():
    """The comparison can fail: without the pinned kernels nearly every part has other bits."""
    pinned, free = (portable.child("--work", "--short", *more) for more in ((), ("--free",)))
    assert pinned == portable.child("--work", "--short"), "equal runs are equal"
    different = {part for part in pinned if pinned[part] != free[part]}
    assert {"vision tower", "sft training", "grpo training", "semantic judge"} <= different
    assert "phantoms" not in different


def test_table_names_the_part_that_differs():
    text = portable.table({"a": {"here": "1", "there": "1"}, "b": {"here": "1", "there": "2"}})
    assert text.splitlines()[2:] == ["| a | 1 | 1 | yes |", "| b | 1 | 2 | NO |"]
