"""Random parameter files: each is valid, or refused with a message that names the key. Never a traceback."""

import datetime
import random
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from rarl.errors import UserError
from rarl.params import load_params
from rarl.profiles import apply, leaves, put
from rarl.rewards import reward_functions
from rarl.running import preflight
from stages.check import main as check_stage

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")
#: The same examples in every run.
REPEATABLE = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def plain(text: str) -> dict:
    return YAML(typ="safe", pure=True).load(text)


def blocks(params: dict, prefix: str = "") -> list[str]:
    """Dotted keys of everything that holds keys."""
    inner = [(f"{prefix}{key}", value) for key, value in params.items() if isinstance(value, dict)]
    return [name for key, value in inner for name in (key, *blocks(value, f"{key}."))]


KEYS = [*(key for key, _ in leaves(plain(SHIPPED))), *blocks(plain(SHIPPED))]
EXTREMES = [
    None, True, False, "", " ", "8", "null", "lora", "a\0b", "é漢字🫁", "x" * 300, "../..", "/", "~/slake",
    "data/base", "own", "paper", "full", "stop", "llm", "local", "truth", "Qwen/Qwen2-VL-2B-Instruct",
    "http://[::1", b"\xff",
    0, -1, 1, 2, 3, 7, 64, 562, 563, 784, 10**6, 2**31 - 1, 2**31, 2**32, 2**64, 10**30, -(10**30),
    0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 1e300, 0.1 + 0.2, float("inf"), float("-inf"), float("nan"),
    [], [[]], [None], ["reasoning"], ["q_proj"], ["q_proj", "q_proj"], ["proj"], ["base"], ["slake", "own"], {},
    {"a": 1}, {1: 2}, datetime.date(2024, 2, 29),
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(EXTREMES),
    st.integers(),
    st.integers(0, 200),
    st.floats(),
    st.floats(0, 2),
    st.text(max_size=20),
    st.lists(st.one_of(st.sampled_from(KEYS), st.text(max_size=5), st.integers()), max_size=3),
)


@cache
def profile_text(name: str) -> str:
    """The shipped parameters, or those of the paper's profile where neither a hub nor a GPU has to be looked for."""
    if name == "embedded":
        return SHIPPED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_text(SHIPPED, encoding="utf-8")
        apply(path, name, root="data/phantom")
        text = path.read_text(encoding="utf-8").replace("device: cuda", "device: cpu")
        return re.sub("source: Qwen.*\n  revision: .*", "source: embedded\n  revision: null", text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(preflight.RESOURCES, "ignore")
    Path("data").mkdir()
    for name in ("base", "rivals"):
        Path("data", name).symlink_to(ROOT / "data" / name)
    return tmp_path


def checked() -> str | None:
    """What the stage `check` says against the file `params.yaml`; None where it passes."""
    result = CliRunner().invoke(check_stage)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output if result.exit_code else None


@given(
    profile=st.sampled_from(["embedded", "paper"]),
    key=st.sampled_from(KEYS),
    value=VALUES,
    how=st.sampled_from(["set", "set", "set", "delete", "more"]),
)
@example(profile="embedded", key="judge.semantic.threshold", value=0.4, how="set")
@settings(REPEATABLE, max_examples=60)
def test_one_change_passes_or_is_named(project, profile, key, value, how):
    params = plain(profile_text(profile))
    *above, name = key.split(".")
    block = params
    for part in above:
        block = block[part]
    if how == "set":
        put(params, key, value)
    elif how == "delete":
        del block[name]
    else:
        block[f"{name}_"] = value
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(params, file)
    said = checked()
    if said is None:
        usable()
    else:
        assert said.startswith(("Error: ", "check: ")) and "to do:" in said
        assert (above or [name])[0] in said, "the message names the key"
        assert len(said) < 5000


def usable() -> None:
    """What the stages make of parameters first, and without a model."""
    params = load_params()
    assert plain(Path("params.yaml").read_text(encoding="utf-8")) is not None
    for seed in (params.seed, params.own.seed, params.phantom.seed, params.phantom.test_seed):
        np.random.RandomState(seed + params.accelerate.processes - 1)
        random.Random(seed)
    for method in (params.grpo, params.rarl):
        functions, weights = reward_functions(method.rewards, lambda: None, params.reward)
        assert functions and len(functions) == len(weights) and np.isfinite(weights).all()
    for mode in params.modes:
        for name in params.sets_of(mode):
            assert params.samples_file(name).suffix == ".jsonl"


@given(
    start=st.integers(0, len(SHIPPED)),
    length=st.integers(0, 40),
    put_in=st.one_of(
        st.sampled_from([b"\t", b"\n", b":", b"- ", b"[", b"{", b"&a ", b"*a", b"<<: ", b"!!str ",
                         b"!!float x", b"!!binary =", b"\xff", b"\x00", b"'", b'"', b"|", b">", b"%", b"@",
                         b"---", b"2024-13-45", b"? ", b"#",
                         b"\xef\xbb\xbf"]),
        st.binary(max_size=8),
        st.text(max_size=8).map(lambda text: text.encode("utf-8")),
    ),
)  # fmt: skip
@settings(REPEATABLE, max_examples=60)
def test_damaged_file_is_read_or_refused(project, start, length, put_in):
    content = SHIPPED.encode("utf-8")
    Path("params.yaml").write_bytes(content[:start] + put_in + content[start + length :])
    try:
        load_params()
    except UserError as error:
        said = error.format_message()
        assert "params.yaml" in said and "to do:" in said and len(said) < 5000
