"""`rarl diff` right after an experiment of the real `dvc`; tests/unit/test_diff.py has the states without one."""

import json
import shutil

import pytest
from project import Project, reproduce
from test_compare_runs import ROWS, TRAINED, forget

from rarl.reporting.stats import holm


def diff(project, *arguments: str, code: int = 0) -> str:
    told = project.run("python", "-m", "rarl", "diff", *arguments, code=code)
    assert "Traceback" not in told
    return told


def test_an_experiment_is_compared_in_every_state_of_the_cache(project):
    project.dvc("exp", "run", "-n", "r16", "-S", "lora.r=16")
    before = project.git("status", "--porcelain")
    found = json.loads(diff(project, "--json"))
    assert found["parameters"] == {"lora.r": {"a": 8, "b": 16}} and found["unchanged"] == ROWS
    tested = [row for row in found["rows"] if row["test"] == "tested"]
    assert len(tested) == ROWS * len(TRAINED) == len(found["rows"]) and {row["model"] for row in tested} == TRAINED
    # Of rounded p-values, of which the smallest is multiplied by their number.
    assert [row["p_holm"] for row in tested] == pytest.approx(holm([row["p"] for row in tested])[0], abs=2e-4)
    assert project.git("status", "--porcelain") == before

    project.git("stash")  # The files on disk that git does not track are still the experiment's
    forget(project, "data/verdicts/sft")
    shown = diff(project, "HEAD", "r16", "--exit-code", code=1)
    assert f"{ROWS} rows (sft) are not tested" in shown and "Missing: verdicts of HEAD" in shown
    assert len(shown.splitlines()) <= 40 and f"{ROWS} rows unchanged" in shown

    project.change("rl.beta", 0.1)
    shown = diff(project, "--exit-code", code=2)
    assert f"{ROWS} rows (rarl) are not tested, because the scores there are older" in shown and "`dvc repro`" in shown


@pytest.fixture(scope="module")
def queued(tmp_path_factory):
    """Seed 8 of the default, `lora.r=16`, a failed and a waiting experiment."""
    project = reproduce(tmp_path_factory.mktemp("queued") / "project", code=False)
    project.dvc("exp", "run", "--temp", "-n", "eight", "-S", "seed=8")
    project.dvc("exp", "run", "--temp", "-n", "r16", "-S", "lora.r=16")
    project.dvc("exp", "run", "--queue", "-n", "wrong", "-S", "lora.r=0")
    project.dvc("exp", "run", "--run-all")  # `check` refuses the rank
    project.dvc("exp", "run", "--queue", "-n", "later", "-S", "lora.r=4")
    return project


def test_experiments_of_other_seeds_are_found(queued):
    found = json.loads(diff(queued, "HEAD", "r16", "--json"))
    assert (found["a"]["seeds"], found["b"]["seeds"]) == ([7, 8], [7]) and found["unchanged"] == ROWS
    tested = [row for row in found["rows"] if row["test"] == "tested"]
    assert len(tested) == ROWS * len(TRAINED)
    several = [row for row in tested if row["set"] != "silvar_med"]
    assert all(row["seeds"] == [2, 1] for row in several)
    assert not any("seeds" in row for row in tested if row not in several), "the split and its questions have a seed"
    assert "Missing: verdicts on the same questions of eight" in found["notes"]
    assert "(1 seed against 2)" in diff(queued, "r16", "HEAD")
    assert "seeds" not in json.loads(diff(queued, "HEAD", "r16", "--one-seed", "--json"))["a"]
    assert " against " not in diff(queued, "HEAD", "eight"), "these are the seeds themselves"


def test_failed_and_waiting_experiments_are_named(queued):
    assert "an experiment with the status failed" in diff(queued, "HEAD", "wrong", code=2)
    shown = diff(queued, "later", code=2)
    assert "an experiment with the status queued" in shown and "`dvc queue start`" in shown


def test_a_clone_compares_scores_and_reads_verdicts_from_the_remote(queued, tmp_path):
    queued.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.git("fetch", "--quiet", "origin", "refs/exps/*:refs/exps/*")
    shown = diff(clone, "HEAD", "r16", "--exit-code", code=1)
    assert "without a paired test" in shown and "`dvc pull`" in shown
    shutil.copytree(queued.folder / ".dvc/cache", tmp_path / "remote")
    clone.dvc("remote", "add", "--local", "--default", "there", str(tmp_path / "remote"))
    shown = diff(clone, "HEAD", "r16")
    assert "(2 seeds against 1)" in shown and f"Holm over the {ROWS * len(TRAINED)} rows tested" in shown
