"""Readers notice files that are empty, truncated or short; a full disk and a denied folder lose nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_judges import a_prediction, a_project, run
from test_stage_deps import ROOT, STAGES

from rarl.cache import finished, keep, kept
from rarl.errors import UserError
from rarl.records import Prediction, Verdict, atomic_file, read_records, remake, write_records
from stages.score import main as score

JUDGE = [sys.executable, "-m", "stages.judge", "--model", "base"]
#: The stage runs the code beside this test, wherever its folder is.
CODE = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_project(tmp_path, ("silvar_med", "slake"))
    return tmp_path


def files(folder="data/verdicts") -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def leftovers() -> list[Path]:
    return list(Path().rglob("*.partial"))


# Broken files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole.split(b"\n", 1)[1],
        lambda whole: b"\0" * len(whole),
        lambda whole: whole.replace(b'"prediction_score":1', b'"prediction_score":0', 1),
        lambda whole: whole + whole,
    ],
    ids=["empty", "cut", "short of a row", "zeros", "changed", "twice"],
)
def test_a_broken_file_in_the_cache_is_removed_and_made_again(project, damage):
    run()
    before = files()
    whole = files(".cache")
    broken = {path: damage(content) for path, content in whole.items()}
    for path, content in broken.items():
        Path(path).write_bytes(content)
    again = run()
    assert again.exit_code == 0, again.output
    count = sum(broken[path] != whole[path] for path in whole)
    assert count and again.output.count("deleted and made again") == count
    assert files() == before and files(".cache") == whole
    assert "deleted" not in run().output


@pytest.mark.parametrize("kind", ["predictions", "verdicts"])
@pytest.mark.parametrize("damage", ["", "short"])
def test_the_scores_stage_says_how_a_broken_file_is_made_again(project, kind, damage):
    run()
    path = Path(f"data/{kind}/base/{'lexical/' if kind == 'verdicts' else ''}reasoning/slake.jsonl")
    path.write_text("".join(path.read_text().splitlines(True)[1:]) if damage else "")
    result = CliRunner().invoke(score, ["--model", "base"])
    assert result.exit_code == 1 and str(path) in result.output
    assert f"one {kind[:-1].title()} record for each of the 3" in result.output
    stage = "infer@base" if kind == "predictions" else "judge@base"
    assert f"dvc repro -s -f {stage}" in result.output


def test_judges_do_not_judge_what_is_short_of_rows(project):
    path = Path("data/predictions/base/reasoning/slake.jsonl")
    path.write_text("")
    result = run()
    assert result.exit_code == 1 and "dvc repro -s -f infer@base" in result.output


@pytest.mark.parametrize("content", [b"\0\0\0\n", '{"id": "é'.encode()[:-1]], ids=["zeros", "half a letter"])
def test_a_line_that_is_no_record_names_the_stage_that_makes_it(project, content):
    path = Path("data/predictions/base/reasoning/slake.jsonl")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"line 1\n(.*\n)*.*dvc repro -s -f infer@base"):
        read_records(path, Prediction)


def test_the_advice_names_the_stage_whose_output_the_file_is():
    item = {"model": "sft", "judge": "truth", "set": "slake", "rival": "seed_11"}
    fill = lambda text: re.sub(r"\$\{item\.(\w+)\}", lambda m: item[m[1]], text)  # noqa: E731
    named = 0
    for name, stage in STAGES.items():
        keys = [item[key] for key in stage.get("matrix", {})]
        for out in stage.get("outs", []):
            out = fill(out) if isinstance(out, str) else next(iter(out))
            if match := re.search(r"-f (\S+)`", remake(out)):
                named += 1
                assert match[1] == "@".join([name, "-".join(keys)] if keys else [name])
    assert named >= 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [*lines[:2], lines[2][:-9]],
        lambda lines: [lines[0], "\0" * 50 + "\n", *lines[1:2]],
        lambda lines: [lines[0], lines[2][:20] + lines[1], "\n"],
        lambda lines: [""],
    ],
    ids=["cut", "zeros", "two writers", "empty"],
)
def test_unfinished_work_is_what_is_whole_in_it(tmp_path, damage):
    path = tmp_path / "scratch.jsonl"
    write_records(path, [a_prediction("Yes", id=str(i)) for i in range(3)])
    path.write_text("".join(damage(path.read_text().splitlines(True))))
    first = finished(path, Prediction)
    assert {record.id for record in first} <= {"0", "1"}
    with path.open("a") as file:  # a later run goes on
        file.write(a_prediction("No", id="9").model_dump_json() + "\n")
    assert [record.id for record in read_records(path, Prediction)] == [*(r.id for r in first), "9"]


def test_no_record_at_all_can_be_kept(tmp_path):
    keep(tmp_path / "none.jsonl", [])
    assert kept(tmp_path / "none.jsonl", Verdict) == []
    assert kept(tmp_path / "other.jsonl", Verdict) is None


# Writing --------------------------------------------------------------------------------------------


def test_two_processes_at_once_write_the_same_verdicts(project):
    run()
    before = files()
    for path in (*files(".cache"), *before):
        Path(path).unlink()
    started = [
        subprocess.Popen(JUDGE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | CODE)
        for _ in range(4)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    assert files() == before and leftovers() == []


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "scores.json"
    with atomic_file(path) as first:
        first.write("first")
        with atomic_file(path) as second:
            second.write("second, longer")
        assert path.read_text() == "second, longer"
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["scores.json"]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path):
    """What the kernel is asked for, and in which order."""
    script = "from rarl.records import write_json; write_json('deep/x.json', {})"
    strace = ["strace", "-f", "-e", "trace=fsync,rename,renameat,renameat2"]
    done = subprocess.run(
        [*strace, sys.executable, "-c", script],
        cwd=tmp_path, env=os.environ | CODE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(fsync|rename)\w*\(", done.stderr) == ["fsync", "rename", "fsync"]


def limited(command: list[str], size: int) -> subprocess.CompletedProcess:
    """Run a command that may write files of `size` bytes only: the kernel then refuses as it does on a full disk."""
    return subprocess.run(
        ["prlimit", f"--fsize={size}", *command], env=os.environ | CODE, capture_output=True, text=True
    )  # fmt: skip


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit")
def test_a_file_that_cannot_be_written_in_full_ends_in_one_message(project):
    run()
    before = files()
    predicted = Path("data/predictions/base/reasoning/slake.jsonl")
    write_records(predicted, [a_prediction("No " * 500, id=p.id) for p in read_records(predicted, Prediction)])
    for cached in files(".cache"):
        Path(cached).unlink()
    done = limited(JUDGE, 420)  # between the sizes of a file of verdicts and of the same with its seal
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said, said
    assert re.search(r"\.cache/verdicts/\w+\.jsonl\n  found:    file too large", said), said
    assert files() == before and leftovers() == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_in_one_message_and_the_next_run_goes_on(project, small_disk):
    run()
    before = files()
    for cached in files(".cache"):
        Path(cached).unlink()
    Path(".cache/verdicts").rmdir()
    Path(".cache/verdicts").symlink_to(small_disk)
    filling = small_disk / "filling"
    with pytest.raises(OSError, match="No space left"), filling.open("wb") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()
    result = run()
    assert result.exit_code == 1 and "no space left on device" in result.output, result.output
    assert "Traceback" not in result.output and result.output.count("to do:") == 1
    assert files() == before and os.listdir(small_disk) == ["filling"]
    filling.unlink()
    assert run().exit_code == 0 and files() == before


@pytest.mark.skipif(not (os.geteuid() or shutil.which("setpriv")), reason="root, and no setpriv to give rights away")
def test_a_folder_that_is_denied_ends_in_one_message(project):
    run()
    before = files()
    for cached in files(".cache"):
        Path(cached).unlink()
    os.chmod(".cache/verdicts", 0o555)
    # Root is denied nothing, unless it gives that right away.
    rights = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]
    done = subprocess.run([*rights, *JUDGE], env=os.environ | CODE, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said, said
    assert re.search(r"\.cache/verdicts/\S+\n  found:    permission denied", said), said
    os.chmod(".cache/verdicts", 0o755)
    assert files() == before and leftovers() == []


def test_a_read_only_disk_ends_in_one_message(project, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    Path("data/verdicts").symlink_to(small_disk)
    result = run()
    assert result.exit_code == 1 and "found:    read-only file system" in result.output
    assert "Traceback" not in result.output
