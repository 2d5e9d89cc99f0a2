"""The same bits on this processor and an emulated one of another vendor; `make portable` emulates two, for longer."""

import json
import shutil
from pathlib import Path

import pytest

from rarl.measuring import portability
from rarl.measuring.price import table as price_table

pytestmark = pytest.mark.timeout(900)
EMULATED = shutil.which(portability.EMULATOR) is not None


def other_vendors() -> str:
    """An emulated processor of the vendor that did not make this one."""
    intel, amd = portability.PROCESSORS
    return amd if "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8") else intel


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, str]]:
    """Each part's digest on this processor and, if the emulator is installed, on the emulated one."""
    if EMULATED:
        return portability.compare(short=True, processors=(other_vendors(),))
    return {part: {"here": digest} for part, digest in portability.child(short=True).items()}


@pytest.mark.skipif(not EMULATED, reason="qemu-user is not installed")
def test_processors_of_two_vendors_compute_the_same_bits(found):
    assert {"sft training", "rarl training", "inference", "BERTScore"} <= found.keys()
    assert not portability.differing(found), portability.table(found)


def test_other_kernels_show_in_the_digests(found):
    """The comparison can fail: without the pinned kernels nearly every part has different bits."""
    free = portability.child(short=True, portable=False)
    different = {part for part in free if found[part]["here"] != free[part]}
    assert {"vision tower", "sft training", "rarl training", "semantic judge"} <= different
    assert "phantoms" not in different


def test_table_names_the_part_that_differs():
    text = portability.table({"a": {"here": "1", "there": "1"}, "b": {"here": "1", "there": "2"}})
    assert text.splitlines()[2:] == ["| a | 1 | 1 | yes |", "| b | 1 | 2 | NO |"]


def test_table_of_the_price_is_the_committed_one(repository):
    lines = json.loads((repository / "metrics/bench/price.json").read_text(encoding="utf-8"))
    assert price_table(lines) in (repository / "metrics/bench/price.md").read_text(encoding="utf-8")
