"""What all tests share: no downloads, pinned kernels, and the folder of real releases where there is one."""

import gc
import os
import shutil
from pathlib import Path

import pytest

from rarl.params import load_params
from rarl.processes.pinning import pin

gc.disable()  # until everything is collected: imports make a million objects that stay
ROOT = Path(__file__).parent.parent

# Processes that tests start run the code beside them, wherever they work.
os.environ["PYTHONPATH"] = str(ROOT)

# Before anything imports NumPy or PyTorch. On a GPU nothing is pinned.
if not shutil.which("nvidia-smi"):
    pin(load_params(ROOT / "params.yaml"))

# Before anything imports a Hugging Face library: a test never downloads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items):
    """Mark tests by the folder that they lie in."""
    for item in items:
        tier = item.path.relative_to(ROOT).parts[1]
        if tier in ("tiny", "pipeline", "gpu"):
            item.add_marker(getattr(pytest.mark, tier))


def pytest_collection_finish():
    """What collection has imported stays, so no garbage collection looks through it again."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def fixed_threads(request):
    """Sums that are split over another number of threads round differently: one, as in `params.yaml`."""
    if request.node.get_closest_marker("tiny"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real releases, named by the environment variable RARL_DATA_ROOT."""
    folder = os.environ.get("RARL_DATA_ROOT")
    if not folder:
        pytest.skip("RARL_DATA_ROOT is not set")
    assert Path(folder).is_dir(), f"RARL_DATA_ROOT={folder} is no folder"
    return Path(folder)


@pytest.fixture(scope="module")  # its event loop would stop what calls asyncio.run in the same process
def chromium():
    """A browser without a window (Debian, Ubuntu: the package `chromium`)."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    if (binary := next(found, None)) is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT
