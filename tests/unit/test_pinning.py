"""The pinned kernels compute what PyTorch's own do, and each stage is pinned before it loads a numeric library."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rarl.params import load_params
from rarl.processes import pinning
from rarl.running import preflight

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def run(program: str) -> str:
    """Run a program in a new process, without the environment that this one was pinned with."""
    clean = {name: v for name, v in os.environ.items() if name not in pinning.ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=clean, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_no_stage_loads_a_numeric_library_before_it_is_pinned():
    names = {stage["cmd"].split()[2] for stage in STAGES.values()}
    assert len(names) > 10
    program = f"import importlib, sys\nfor name in {sorted(names)}: importlib.import_module(name)\n"
    program += "print([name for name in ('numpy', 'torch', 'scipy', 'pandas') if name in sys.modules])"
    assert run(program).strip() == "[]"


PROGRAM = """
from rarl.params import load_params
from rarl.processes import pinning
from rarl.processes.pinning import pin
{before}
params = load_params()
{change}
pin(params)
import os, numpy, torch
print(os.environ.get("OPENBLAS_CORETYPE"), torch.backends.cuda.flash_sdp_enabled())
print(torch.backends.cpu.get_cpu_capability(), pinning._library is not None)
"""


def test_pinning_counts_only_before_the_libraries_are_loaded():
    assert run(PROGRAM.format(before="", change="")).split() == ["Haswell", "False", "AVX2", "True"]
    late = run(PROGRAM.format(before="import numpy", change=""))
    assert "RuntimeError: numpy must be imported after" in late


@pytest.mark.parametrize(
    "first",
    ["from transformers import AutoTokenizer", "import rarl.training.sft", "import bert_score"],
)
def test_kernels_are_replaced_whoever_imports_torch(first):
    """Libraries ask for torch's spec before they import it; `PROGRAM` above imports it directly."""
    program = "from rarl import params; from rarl.processes import pinning; pinning.pin(params.load_params())\n"
    program += f"{first}\nimport torch, sys; print('replaced:', pinning._library is not None)"
    assert "replaced: True" in run(program)  # among what libraries print


@pytest.mark.parametrize("change", ["portable = False", "device = 'auto'"])
def test_nothing_is_pinned_on_a_gpu_or_where_it_is_not_asked_for(change):
    blas, fused, _, replaced = run(PROGRAM.format(before="", change=f"params.model.{change}")).split()
    assert (blas, fused, replaced) == ("None", "True", "False")


def test_profiles_say_where_it_is_asked_for():
    values = {
        name: YAML(typ="safe").load((ROOT / f"rarl/profiles/{name}.yaml").read_text())["model"]
        for name in ("embedded", "paper")
    }
    assert values["embedded"]["portable"] and values["embedded"]["device"] == "cpu"
    assert not values["paper"]["portable"]


def test_check_says_once_where_numbers_differ_and_what_to_do(monkeypatch, capsys):
    params = load_params(ROOT / "params.yaml")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    preflight.check_portable(params)
    said = "".join(capsys.readouterr())
    assert "aarch64" in said and "git commit" in said
    params.model.portable = False
    preflight.check_portable(params)
    assert "".join(capsys.readouterr()) == ""


def test_check_is_silent_on_this_processor(capsys):
    if platform.machine() != "x86_64":
        pytest.skip("another processor")
    preflight.check_portable(load_params(ROOT / "params.yaml"))
    assert "".join(capsys.readouterr()) == ""


# The kernels, in float32, against the library's own in float64.


def products(torch, dtype):
    g = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    a, b, c = random(5, 7), random(7, 9), random(5, 9)
    many, more, sums = random(3, 5, 7), random(3, 7, 9), random(3, 5, 9)
    one = random(7, 1, 7)
    yield "mm", a @ b
    yield "mm transposed", b.t() @ a.t()
    yield "mm sliced", random(8, 16)[::2, 3:10] @ b
    yield "mm expanded", a[:1].expand(5, 7) @ b
    yield "mm empty", a[:0] @ b
    yield "mm no inner", a[:, :0] @ b[:0]
    yield "mm out", torch.mm(a, b, out=torch.empty(5, 20, dtype=dtype)[:, 4:13])
    yield "mm out resized", torch.mm(a, b, out=torch.empty(0, dtype=dtype))
    yield "vector", a @ b[:, 0]
    yield "bmm", many @ more
    yield "bmm expanded", many[:1].expand(3, 5, 7) @ more
    yield "bmm permuted", many.transpose(0, 1) @ one[:5].transpose(1, 2).expand(5, 7, 4)
    yield "bmm out", torch.bmm(many, more, out=torch.empty(3, 5, 9, dtype=dtype))
    for alpha, beta in ((1, 1), (0.5, 1), (2, 0), (-1.5, 0.25)):
        scale = {"alpha": alpha, "beta": beta}
        yield f"addmm {scale}", torch.addmm(c, a, b, **scale)
        yield f"addmm bias {scale}", torch.addmm(c[0], a, b, **scale)
        yield f"addmm_ {scale}", c.clone().addmm_(a, b, **scale)
        yield f"addmm out {scale}", torch.addmm(c, a, b, **scale, out=torch.empty_like(c))
        yield f"baddbmm {scale}", torch.baddbmm(sums, many, more, **scale)
        yield f"baddbmm_ {scale}", sums.clone().baddbmm_(many, more, **scale)
        yield (f"baddbmm out {scale}", torch.baddbmm(sums, many, more, **scale, out=torch.empty_like(sums)))
    yield "beta 0 ignores what is there", torch.full_like(c, torch.nan).addmm_(a, b, beta=0)
    yield "linear", torch.nn.functional.linear(many, b.t(), c[0])
    yield "einsum", torch.einsum("bij,bjk->ik", many, more)
    yield "attention", torch.nn.functional.scaled_dot_product_attention(*[many[None]] * 3)
    yield "sqrt", random(50).abs().sqrt()
    yield "sqrt_", random(5, 10).abs().t().sqrt_()


def test_products_and_roots_are_the_librarys():
    import torch

    wide = dict(products(torch, torch.float64))
    found = dict(products(torch, torch.float32))
    assert len(found) > 40
    for name, value in found.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value.double(), wide[name], atol=1e-5, rtol=1e-5, msg=name)


def test_gradients_are_the_librarys():
    import torch

    found = []
    for dtype in (torch.float32, torch.float64):
        g = torch.Generator().manual_seed(1)
        x, w, b = (torch.randn(*shape, generator=g).to(dtype).requires_grad_() for shape in ((4, 6, 8), (5, 8), (5,)))
        out = torch.nn.functional.linear(x, w, b)
        scores = torch.bmm(out, out.transpose(1, 2)).softmax(-1).square().sum(-1).sqrt()
        found.append([one.double() for one in torch.autograd.grad(scores.sum(), (x, w, b))])
    for ours, library in zip(*found):
        torch.testing.assert_close(ours, library, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int64"])
def test_other_types_keep_the_librarys_kernels(dtype):
    import torch

    a = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    assert torch.equal((a @ a.t()).double(), a.double() @ a.double().t())


def test_exponential_noise():
    """Mean and median, never 0, in place, and by the given generator alone."""
    import torch

    state = torch.get_rng_state()
    draw = torch.empty(200_000)
    assert draw.exponential_(generator=torch.Generator().manual_seed(0)) is draw
    again = torch.empty(200_000).exponential_(2.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(again, draw / 2)
    assert float(draw.mean()) == pytest.approx(1, abs=0.01)
    assert float(draw.median()) == pytest.approx(0.6931, abs=0.01)
    assert float(draw.min()) > 0 and draw.isfinite().all()
