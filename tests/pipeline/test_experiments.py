"""`rarl compare runs` and `rarl diff` right after experiments of the real `dvc`, in every state that they can be in.

tests/unit/test_diff.py has the states without an experiment.
"""

import json
import shutil

import pandas as pd
import pytest
from project import Project, reproduce

from rarl.reporting.stats import holm

TRAINED = {"sft", "rarl"}
#: Rows of a model: two modes on three sets, two on the own test set alone.
ROWS = 8


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Project:
    """The stages that scores come from, without their dependencies on code; leave it as it is."""
    return reproduce(tmp_path_factory.mktemp("compared") / "project", "base", "sft", "rarl", whole=False)


@pytest.fixture
def project(first, tmp_path) -> Project:
    return first.copy(tmp_path / "project")


def compare(project, *arguments: str, code: int = 0) -> str:
    said = project.run("python", "-m", "rarl", "compare", "runs", *arguments, code=code)
    assert "Traceback" not in said
    return said


def table(project) -> pd.DataFrame:
    return pd.read_csv(project.folder / "data/studies/runs.csv")


def outcomes(project, experiment: str) -> dict[str, set[str]]:
    """model -> values of the column `test` of an experiment (never empty), without those of a part of SLAKE."""
    rows = table(project).query("experiment == @experiment")
    assert rows["test"].notna().all()
    rows = rows[rows["test"] != "part of slake"]
    return {model: set(part["test"]) for model, part in rows.groupby("model")}


def forget(project, *paths: str) -> None:
    """Delete outputs of the present commit out of DVC's cache, and what DVC remembers of them."""
    from ruamel.yaml import YAML

    lock = YAML(typ="safe").load(project.git("show", "HEAD:dvc.lock"))
    outs = [out for stage in lock["stages"].values() for out in stage.get("outs", [])]
    for out in outs:
        if out["path"] in paths:
            file = project.folder / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]
            file.unlink()
    for site in (project.home / "site", project.folder / ".dvc/site_cache_dir"):
        if site.is_dir():
            site.rename(site.with_name("gone"))


@pytest.fixture(scope="module")
def compared(first, tmp_path_factory) -> tuple[Project, str]:
    """Four experiments on one commit, and what their comparison logs."""
    project = first.copy(tmp_path_factory.mktemp("experiments") / "project")
    for name, change, *target in (
        ("judge", "judge.semantic.threshold=0.35"),
        ("reward", "rarl.rewards.reasoning=0.5"),
        ("half", "lora.r=16", "sft"),
    ):
        project.dvc("exp", "run", "--temp", "-n", name, "-S", change, *target)
    project.dvc("exp", "run", "-n", "r16", "-S", "lora.r=16")
    before = project.git("status", "--porcelain")
    said = compare(project)
    assert project.git("status", "--porcelain") == before, "a comparison leaves no trace in git"
    return project, said


def test_only_what_the_parameter_can_move_is_tested(compared):
    project, said = compared
    assert outcomes(project, "r16") == {"base": {"unchanged"}} | {model: {"tested"} for model in TRAINED}
    frame = table(project)
    tested = frame[frame["p"].notna()]
    assert tested["experiment"].value_counts().to_dict() == {"r16": ROWS * len(TRAINED), "reward": ROWS}
    expected, _ = holm(list(tested["p"]))
    assert list(tested["p_holm"]) == pytest.approx(expected, abs=1e-3)
    ranks = ["16" if name in ("half", "r16") else "8" for name in frame["experiment"].unique()]
    assert f"lora.r: {', '.join(ranks)}" in said and f"r16: {ROWS} rows are unchanged" in said
    assert f"of {ROWS * len(TRAINED)} rows differ" in said
    page = (project.folder / "data/studies/runs.html").read_text(encoding="utf-8")
    assert f"r16: {ROWS} rows are unchanged" in page


def test_a_judge_and_a_reward_move_what_follows_from_them(compared):
    project, _ = compared
    unchanged = {model: {"unchanged"} for model in ("base", "sft", "rarl")}
    assert outcomes(project, "judge") == unchanged, "the main judge is another one"
    assert outcomes(project, "reward") == unchanged | {"rarl": {"tested"}}


def test_scores_of_before_are_not_shown_as_the_experiments(compared):
    """`dvc exp run sft` trains with the new rank; the scores in its commit are still those of the old one."""
    project, said = compared
    assert outcomes(project, "half") == {"base": {"unchanged"}} | {model: {"not run"} for model in TRAINED}
    rows = table(project).query("experiment == 'half' and model != 'base'")
    assert rows["final"].isna().all() and "only some stages were run" in said


def test_what_is_not_at_hand_is_not_tested(compared, tmp_path):
    project = compared[0].copy(tmp_path / "project")
    forget(project, "data/verdicts/sft", "data/verdicts/base")
    said = compare(project)
    assert outcomes(project, "r16") == {
        "base": {"unchanged"},
        "sft": {"not at hand"},
        "rarl": {"tested"},
    }
    assert "`dvc pull`" in said and f"{ROWS} rows (sft) are not tested" in said


def test_baseline_of_another_machine_is_not_compared_with(project, monkeypatch):
    """A clone with the committed results of one machine, `make repro` and an experiment on another one."""
    monkeypatch.setenv("MACHINE", "other")
    project.dvc("repro", "--force", "--quiet")
    project.dvc("exp", "run", "-n", "r16", "-S", "lora.r=16")
    said = compare(project)
    assert set().union(*outcomes(project, "r16").values()) == {"other numbers"}
    assert table(project)["p"].isna().all() and "another machine's" in said

    # What the message says to do.
    project.git("stash")
    project.dvc("repro")
    project.git("add", "dvc.lock", "metrics")
    project.git("commit", "--quiet", "--message", "baseline of this machine")
    project.dvc("exp", "run", "-n", "r16again", "-S", "lora.r=16")
    compare(project)
    assert outcomes(project, "r16again") == {"base": {"unchanged"}} | {model: {"tested"} for model in TRAINED}


def test_baseline_that_was_not_run_is_not_compared_with(project):
    project.change("lora.r", 4)
    project.commit()
    project.dvc("exp", "run", "-n", "r16", "-S", "lora.r=16")
    said = compare(project)
    assert outcomes(project, "r16") == {"base": {"unchanged"}} | {model: {"baseline not run"} for model in TRAINED}
    assert "the first run's scores are older than its parameters or code" in said


def test_experiments_that_are_waiting_or_have_failed_are_counted(project):
    project.dvc("exp", "run", "--queue", "-S", "lora.r=0")
    said = compare(project, code=1)
    assert "0 finished experiments on this commit, 1 queued" in said and "dvc queue start" in said
    project.dvc("exp", "run", "--run-all")  # `check` refuses the rank
    assert "0 finished experiments on this commit, 1 failed" in compare(project, code=1)


def test_experiments_of_another_commit_are_named(project):
    project.dvc("exp", "run", "--temp", "-n", "one", "-S", "lora.r=16", "sft")
    project.git("commit", "--quiet", "--allow-empty", "--message", "next")
    said = compare(project, code=1)
    assert "1 on other commits" in said and "--all" in said
    project.dvc("exp", "run", "--temp", "-n", "one", "-S", "lora.r=4", "sft")
    assert "lora.r: 8, 16, 4" in compare(project, "--all")
    assert table(project)["experiment"].nunique() == 3, "the same name on two commits"


def diff(project, *arguments: str, code: int = 0) -> str:
    told = project.run("python", "-m", "rarl", "diff", *arguments, code=code)
    assert "Traceback" not in told
    return told


def test_an_experiment_is_compared_in_every_state_of_the_cache(compared, tmp_path):
    project = compared[0].copy(tmp_path / "project")
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
def queued(compared, tmp_path_factory):
    """The same with seed 8 of the default, a failed and a waiting experiment."""
    project = compared[0].copy(tmp_path_factory.mktemp("queued") / "project")
    project.git("checkout", ".")
    project.dvc("exp", "run", "--temp", "-n", "eight", "-S", "seed=8")
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
