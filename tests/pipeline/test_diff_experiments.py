"""`rarl diff` right after an experiment of the real `dvc`; tests/unit/test_diff.py has the states without one."""

import json

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
    assert [row["p_holm"] for row in tested] == [round(p, 5) for p in holm([row["p"] for row in tested])[0]]
    assert project.git("status", "--porcelain") == before

    project.git("stash")  # The files on disk that git does not track are still the experiment's
    forget(project, "data/verdicts/sft/lexical")
    shown = diff(project, "HEAD", "r16", "--exit-code", code=1)
    assert f"{ROWS} rows (sft) are not tested" in shown and "Missing: verdicts of HEAD" in shown
    assert len(shown.splitlines()) <= 40 and f"{ROWS} rows unchanged" in shown

    project.change("rl.beta", 0.1)
    shown = diff(project, "--exit-code", code=2)
    assert f"{ROWS} rows (rarl) are not tested, because the scores there are older" in shown and "`dvc repro`" in shown
