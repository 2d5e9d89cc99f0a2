"""`rarl compare runs` right after experiments of the real `dvc`, in every state that they can be in."""

import pandas as pd
import pytest
from project import Project, reproduce

from rarl.reporting.stats import holm

TRAINED = {"sft", "rarl"}
#: Rows of a model: two modes on three sets, two on the own test set alone.
ROWS = 8


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Project:
    """Stages that do not depend on code, which no test here changes; leave it as it is."""
    return reproduce(tmp_path_factory.mktemp("compared") / "project", code=False)


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
