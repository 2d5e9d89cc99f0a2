"""The same bits on every x86-64 processor with AVX2 (Linux), for any vendor, number of cores and load.

PyTorch, MKL, oneDNN, OpenBLAS and NumPy choose kernels by the processor, and kernels round differently: the first
gradient differs in its fifth digit, and after some hundred steps the models differ. `pin` fixes the choice:

- Environment variables (`ENVIRONMENT`), which have to be set before the libraries are loaded.
- MKL's AVX2 kernels differ between vendors, and its portable ones (`MKL_CBWR=COMPATIBLE`) take 2 to 3 times as long.
  PyTorch's float32 products on the CPU therefore run on the OpenBLAS of NumPy's wheel, whose Haswell kernels and block
  sizes are the same on every processor. A training step takes 3 to 5 percent longer than with MKL's.
- PyTorch's fused attention calls MKL directly. It is disabled, and attention is composed of products.
- MKL's `sqrt` uses the processor's approximation of the reciprocal root; NumPy's is exact. MKL's exponential random
  numbers are portable but slow, so they are computed from uniform ones. Other calls of MKL stay, portable and slow.

Sums that are split over another number of threads round differently, so OpenBLAS has one thread and PyTorch has
`model.threads`. Nothing is pinned on a GPU, or with `model.portable: false` as in the `paper` profile.
`make portable` compares this processor with emulated ones; `metrics/bench/price.md` has the cost of pinning.
"""

import importlib.util
import os
import platform
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

from rarl.params import Params

ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # NumPy's names from 2.4 on
}

_pinned = False
"""Of this process: a child inherits the environment, but not the replaced kernels."""
_library = None
"""Keeps the replaced kernels alive."""


def pin(params: Params) -> None:
    """Fix the kernels of this process if required; a RuntimeError if NumPy or PyTorch is loaded already."""
    global _pinned
    if _pinned or not applies(params):
        return
    if loaded := [name for name in ("numpy", "torch") if name in sys.modules]:
        raise RuntimeError(f"{' and '.join(loaded)} must be imported after rarl.processes.pinning.pin()")
    os.environ |= {**ENVIRONMENT, "OMP_NUM_THREADS": str(params.model.threads)}
    sys.meta_path.insert(0, _TorchFinder())
    _pinned = True


def applies(params: Params) -> bool:
    """Whether the parameters require pinned kernels."""
    return params.model.portable and params.model.device == "cpu"


def unportable() -> str | None:
    """Why this machine's numbers differ from other machines' in spite of pinning, or None."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"this machine is {sys.platform} on {platform.machine()}, not Linux on x86-64"
    if "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8").split():
        return "this processor has no AVX2"
    import numpy as np

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    return None if "openblas" in blas else f"this NumPy is built with {blas}, not with OpenBLAS"


class _TorchFinder(MetaPathFinder):
    """Replaces PyTorch's kernels when PyTorch is imported: stages that do not need it do not wait for it."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)  # libraries look for the spec to see whether torch is installed
        execute = spec.loader.exec_module

        def exec_module(module):
            sys.meta_path.remove(self)
            execute(module)
            replace_kernels()

        spec.loader.exec_module = exec_module
        return spec


def replace_kernels() -> None:
    """Let NumPy compute PyTorch's float32 products and roots on the CPU, for the rest of the process."""
    import warnings

    import torch

    torch.backends.cuda.enable_flash_sdp(False)  # the CPU's fused kernel, too, in spite of the name
    torch.backends.mkldnn.set_flags(False)
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def for_float32(name, new):
        old = torch.library.get_kernel(f"aten::{name}", "CPU")

        def run(first, *args, **kwargs):
            if first.dtype is torch.float32:
                return new(first, *args, **kwargs)
            return old.call_boxed(cpu, first, *args, **kwargs)

        return run

    global _library
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, new in {**_products(), **_elementwise()}.items():
            _library.impl(name, for_float32(name, new), "CPU")


def _products() -> dict:
    """Kernels of matrix products, by the names of PyTorch's operators."""
    import numpy as np

    def product(a, b, out=None):
        shape = (*a.shape[:-1], b.shape[-1])
        if out is None:
            out = a.new_empty(shape)
        elif out.shape != shape:
            out.resize_(shape)
        np.matmul(a.detach().numpy(), b.detach().numpy(), out=out.detach().numpy())
        return out

    def added(c, a, b, *, beta=1, alpha=1, out=None):
        total = product(a, b)
        if alpha != 1:
            total.mul_(alpha)
        if beta != 0:
            total.add_(c, alpha=beta)
        return total if out is None else out.copy_(total)

    def added_(c, a, b, *, beta=1, alpha=1):
        if beta == 0:
            return c.copy_(product(a, b).mul_(alpha))
        return (c if beta == 1 else c.mul_(beta)).add_(product(a, b), alpha=alpha)

    kernels = {"mm": product, "bmm": product, "addmm": added, "baddbmm": added}
    out_variants = {f"{name}.out": kernel for name, kernel in kernels.items()}
    return {**kernels, **out_variants, "addmm_": added_, "baddbmm_": added_}


def _elementwise() -> dict:
    """Kernels of roots and of exponential random numbers, by the names of PyTorch's operators."""
    import numpy as np
    import torch

    def sqrt(x):
        return torch.from_numpy(np.sqrt(x.detach().numpy()))

    def exponential_(x, lambd=1.0, *, generator=None):
        # -log(1 - u) with u in [0, 1). A caller may divide by it: 0 becomes half of the smallest other value.
        x.uniform_(generator=generator).neg_().log1p_().neg_().clamp_min_(2**-25)
        return x.div_(lambd)

    return {"sqrt": sqrt, "sqrt_": lambda x: x.copy_(sqrt(x)), "exponential_": exponential_}
