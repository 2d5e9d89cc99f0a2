"""`rarl diff`, on git repositories with made-up runs; those with verdicts are DVC repositories too."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_compare import git, repository, write  # noqa: F401 (a fixture)

from rarl.cli import diff as command
from rarl.experiments.diff import SHOWN
from rarl.reporting.stats import holm

FINALS = {"base": 40.0, "sft": 60.0, "grpo": 50.0, "rarl": 64.0}


def diff(*arguments: str, code: int = 0):
    """Run the command: its result, which shows no traceback."""
    result = CliRunner().invoke(command.main, list(arguments))
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit | None)
    return result


def as_json(*arguments: str) -> dict:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(diff(*arguments, "--json").stdout, parse_constant=refuse)


@pytest.fixture
def measured(repository):  # noqa: F811
    """A commit and an experiment `r16` with verdicts on 60 questions about 30 images; call it to write others."""
    from dvc.repo import Repo

    repo = Repo.init(".")

    def state(right: int, others: int = 0, **cells):
        """`right` answers of RARL; `others` questions have another image."""
        samples = [{"id": f"q{i}", "image_sha256": f"{'other' if i < others else ''}{i // 2}"} for i in range(60)]
        verdicts = [{"id": f"q{i}", "prediction_score": int(i < right)} for i in range(60)]
        files = {"data/curated/test.jsonl": samples, "data/verdicts/rarl/lexical/reasoning/silvar_med.jsonl": verdicts}
        for path, lines in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("\n".join(map(json.dumps, lines)) + "\n")
        repo.add(["data/curated/test.jsonl", "data/verdicts"])

    state(30)
    git("add", "-A", "-f", ".dvc", ".dvcignore", "data/verdicts.dvc", "data/curated/test.jsonl.dvc")
    git("commit", "-qm", "with verdicts")
    return state


def git_output(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def commit(name: str) -> None:
    """Commit the tracked files, name the commit, and go back."""
    git("commit", "-qam", name)
    git("tag", "-a", "-m", "a tag object", name)
    git("reset", "-q", "--hard", "HEAD~1")


@pytest.fixture
def seeds(measured):
    """Seeds 7, 8, 9 of the commit and of `r16`, whose RARL is better by 20 questions, or as the arguments say."""

    def make(before=(30, 31, 29), after=(50, 51, 49)):
        base = git_output("rev-parse", "HEAD")
        for knob, rights in (({}, before), ({"lora.r": 16}, after)):
            for seed, right in zip((7, 8, 9), rights):
                if (knob, seed) == ({}, 7):
                    continue
                measured(right)
                write(knob | {"seed": seed}, FINALS | {"rarl": round(100 * right / 60, 2)})
                git("commit", "-qam", "an experiment")
                git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/r{knob.get('lora.r', 8)}-{seed}", "HEAD")
                git("reset", "-q", "--hard", base)

    return make


def test_several_seeds_are_compared_by_their_means(seeds):
    seeds()
    found = as_json("HEAD", "r16-8")
    assert found["a"]["seeds"] == [7, 8, 9] and found["b"]["seeds"] == [8, 7, 9], "the named one first"
    [row] = [row for row in found["rows"] if row["difference"]]
    assert (row["a"], row["b"], row["difference"], row["seeds"]) == (50.0, 83.33, 33.33, [3, 3])
    assert row["verdict"] == "higher" and row["low"] > 10
    shown = diff("HEAD", "r16-8").stdout
    assert shown.startswith("HEAD -> r16-8 (3 seeds against 3), lexical judge: ")
    assert "Interval and p include the spread over seeds." in shown and found["parameters"].keys() == {"lora.r"}
    assert "another seed trains another model" not in shown
    assert "(3 seeds against 3)" in diff("HEAD", "r16-8", "--md").stdout


def test_the_spread_over_seeds_is_in_the_interval(seeds):
    seeds(after=(50, 60, 40))
    wide, alone = (as_json("HEAD", "r16-7", *only)["rows"][0] for only in ((), ("--one-seed",)))
    assert wide["difference"] == alone["difference"] and "seeds" not in alone
    assert wide["high"] - wide["low"] > 1.2 * (alone["high"] - alone["low"]) and wide["p"] > alone["p"]


def test_one_seed_is_compared_as_if_there_were_no_others(seeds):
    seeds()
    alone = as_json("HEAD", "r16-7", "--one-seed")
    for name in ("r8-8", "r8-9", "r16-8", "r16-9"):
        base = git_output("rev-parse", "HEAD")
        git("update-ref", "-d", f"refs/exps/{base[:2]}/{base[2:]}/{name}")
    assert as_json("HEAD", "r16-7") == alone and "seeds" not in alone["a"]


def test_runs_that_differ_only_in_the_seed_are_compared_alone(seeds):
    seeds()
    found = as_json("HEAD", "r8-8")
    assert found["parameters"] == {"seed": {"a": 7, "b": 8}} and "seeds" not in found["a"]
    assert diff().stdout == "" and "seeds" not in as_json()["a"], "the workspace is the commit's"


def test_one_side_may_have_one_seed(seeds):
    seeds()
    base = git_output("rev-parse", "HEAD")
    git("update-ref", "-d", f"refs/exps/{base[:2]}/{base[2:]}/r16-8")
    git("update-ref", "-d", f"refs/exps/{base[:2]}/{base[2:]}/r16-9")
    row = as_json("HEAD", "r16-7")["rows"][0]
    assert row["seeds"] == [3, 1] and row["verdict"] == "higher"
    assert "one seed is taken to spread like those of the other side" in " ".join(diff("HEAD", "r16-7").stdout.split())


def test_seeds_on_which_the_knob_changes_nothing_are_unchanged(seeds):
    seeds(after=(30, 31, 29))
    result = diff("HEAD", "r16-7", "--exit-code")
    assert result.stdout == "" and "(3 seeds against 3)" in result.stderr and "1 row unchanged" in result.stderr


def test_a_difference_beyond_noise_is_marked_with_its_paired_test(measured):
    measured(50)
    write({"lora.r": 16}, FINALS | {"rarl": 97.0, "sft": 61.0})
    commit("r16")
    found = as_json("HEAD", "r16")
    assert found["parameters"] == {"lora.r": {"a": 8, "b": 16}}
    first, second = [row for row in found["rows"] if row["difference"]]
    assert (first["model"], first["test"], first["verdict"]) == ("rarl", "tested", "higher")
    assert first["difference"] == 33.33 and first["low"] > 10 and first["p_holm"] < 0.01, "of questions, not metrics"
    assert (second["model"], second["verdict"], second["p"], second["difference"]) == ("sft", "unpaired", None, 1.0)
    shown = diff("HEAD", "r16").stdout
    assert shown.index("rarl   reasoning") < shown.index("sft    reasoning")
    assert "2 of 4 scores moved, 1 of them beyond noise (Holm over the 1 row tested" in shown
    assert "lora.r  8 -> 16" in shown
    assert "Missing: verdicts of HEAD, verdicts of r16." in shown and "`dvc pull`" in shown and "another seed" in shown


def test_only_questions_that_are_the_same_are_paired(measured):
    measured(50, others=20)
    write({}, FINALS | {"rarl": 97.0})
    commit("some")
    measured(50, others=60)
    write({}, FINALS | {"rarl": 97.0})
    commit("none")
    row = as_json("HEAD", "some")["rows"][0]
    assert (row["test"], row["difference"]) == ("tested", 50.0), "20 of 40"
    row = as_json("HEAD", "none")["rows"][0]
    assert (row["test"], row["verdict"], row["difference"]) == ("other questions", "unpaired", 33.0)


def test_the_workspace_has_the_outputs_of_its_lock_file_whatever_is_on_disk(measured):
    measured(50)
    commit("more")
    Path("data/verdicts/rarl/lexical/reasoning/silvar_med.jsonl").write_text("left over\n")
    row = as_json("more")["rows"][0]
    assert (row["model"], row["difference"], row["verdict"]) == ("rarl", -33.33, "lower")
    git("checkout", "-q", "more")
    assert diff("more", "--exit-code").stdout == ""


def test_without_verdicts_it_compares_the_scores_and_marks_them(repository):  # noqa: F811
    repository("r16", {"lora.r": 16}, FINALS | {"grpo": 90.0})
    shown = diff("HEAD", "r16", "--exit-code", code=1).stdout
    assert "1 of 4 scores moved, without a paired test" in shown and "+40.0" in shown and "unpaired" in shown
    table = diff("HEAD", "r16", "--md").stdout
    assert (
        "| grpo | reasoning | Own test (Silvar-Med) | 50.0 | 90.0 | +40.0 |" in table
        and "| `lora.r` | 8 | 16 |" in table
    )


def test_a_knob_that_changes_nothing_gives_an_empty_diff(repository):  # noqa: F811
    repository("r16", {"lora.r": 16}, FINALS)
    result = diff("HEAD", "r16", "--exit-code")
    assert result.stdout == "" and "none of 4 scores differs" in result.stderr and "lora.r  8 -> 16" in result.stderr
    assert diff("--exit-code").stdout == "" and as_json()["parameters"] == {}
    assert diff("--md").stdout.startswith("HEAD → workspace, lexical judge: none of 4 scores differs")


def test_what_is_not_committed_is_the_workspace(repository):  # noqa: F811
    write({"seed": 8}, FINALS | {"sft": 70.0})
    Path("sub").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("sub")
        shown = diff().stdout
    assert shown.startswith("HEAD -> workspace") and "seed  7 -> 8" in shown and "+10.0" in shown


def test_other_models_sets_and_judges_are_named(repository):  # noqa: F811
    repository("judge", {"report.main_judge": "truth", "models": ["base", "sft"]}, {"sft": 70.0})
    shown = diff("HEAD", "judge", "--exit-code", code=1).stdout
    assert "truth judge: no score can be compared" in shown and "2 rows in HEAD only (model grpo, rarl)" in shown
    repository("lexical", {"judges": ["lexical"]}, {"sft": 70.0})
    assert "HEAD -> lexical, lexical judge: 1 of 4 scores moved" in diff("HEAD", "lexical").stdout
    repository("truth", {"report.main_judge": "truth", "judges": ["truth"]}, {"sft": 70.0})
    shown = diff("lexical", "truth", "--exit-code", code=2).stdout
    assert "lexical -> truth judge: no score" in shown and "4 rows (base, sft, grpo, rarl) are not tested" in shown
    assert "different main judges" in shown


def test_test_sets_of_one_side_are_named(repository):  # noqa: F811
    path = Path("metrics/scores/sft.json")
    cells = json.loads(path.read_text())["reasoning"]["silvar_med"]
    path.write_text(json.dumps({"reasoning": {"slake": cells}}))
    git("commit", "-qam", "sets")
    shown = diff("HEAD~1", "HEAD", "--exit-code", code=1).stdout
    assert "none of 3 scores differs" in shown and "1 row in HEAD only (set slake)" in shown


def test_everything_fits_on_a_screen(repository):  # noqa: F811
    params = {f"phantom.{key}": 50 for key in ("benchmark_rows", "sat_rows")}
    sets = ("silvar_med", "slake", "vqa_rad", "vqa_med", "path_vqa", "cv_bench")

    def cells(add: float) -> dict:
        modes = enumerate(("reasoning", "direct", "blank"))
        cell = {"n": 100, "n_effective": 90.0}
        return {
            mode: {name: {"lexical": cell | {"final": 50 + add * (6 * i + j)}} for j, name in enumerate(sets)}
            for i, mode in modes
        }

    for add, name in ((1.0, "many"), (0.0, None)):
        write(params if name else {}, FINALS)
        for model in FINALS:
            Path(f"metrics/scores/{model}.json").write_text(json.dumps(cells(add)))
        if name:
            git("commit", "-qam", name)
            git("tag", name)
    lines = diff("many").stdout.splitlines()
    assert len(lines) <= 40 and "68 of 72 scores moved" in lines[0]
    assert sum("unpaired" in line for line in lines) == SHOWN + 1 and "−17.0" in lines[5]
    assert f"{68 - SHOWN} more rows moved by −13.0 to −1.0 points" in "\n".join(lines)
    assert sum("unpaired" in line for line in diff("many", "--all").stdout.splitlines()) == 69


@pytest.mark.parametrize(
    ("name", "told"), [("r61", "to do:    r16? "), ("mane", "main? "), ("no such", "to do:    `dvc exp list -A`")]
)
def test_an_unknown_name_is_answered_with_close_ones(repository, name, told):  # noqa: F811
    repository("r16", {"lora.r": 16}, FINALS)
    git("branch", "-M", "main")
    assert told in diff("HEAD", name, code=2).output


@pytest.mark.parametrize(
    ("status", "fix"),
    [("Queued", "`dvc queue start`"), ("Running", "`dvc queue status`"), ("Failed", "`dvc queue logs later`")],
)
def test_an_unfinished_experiment_is_named_with_its_next_step(repository, monkeypatch, status, fix):  # noqa: F811
    task = {"name": "later", "rev": "0" * 40, "status": status}
    monkeypatch.setattr("rarl.experiments.revisions.tasks", lambda: [task])
    shown = diff("later", code=2).output
    assert f"an experiment with the status {status.lower()}" in shown and fix in shown


def test_refs_of_a_running_experiment_are_no_experiments(repository):  # noqa: F811
    repository("r16", {"lora.r": 16}, FINALS | {"sft": 70.0})
    git("update-ref", "refs/exps/temp/head-abc", "HEAD")
    assert "1 of 4 scores moved" in diff("HEAD", "r16").stdout
    assert "no such name" in diff("HEAD", "head-abc", code=2).output


def test_what_cannot_be_compared_is_explained(repository, tmp_path, monkeypatch):  # noqa: F811
    Path("params.yaml").write_text("knob: 1\n")
    assert "params.yaml of workspace" in diff(code=2).output and diff("--json", code=2).stdout == ""
    git("checkout", "-q", "params.yaml")
    git("rm", "-rq", "metrics")
    git("commit", "-qm", "never run")
    assert "neither HEAD nor workspace has scores" in diff(code=2).output
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(outside)
    assert "a git repository" in diff(code=2).output


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    for values in ([0.01, 0.04, 0.03, 0.01], [0.3, 0.6], [1.0], [0.0, 0.02, 0.02, 0.026, 0.5]):
        reject, adjusted, *_ = multipletests(values, alpha=0.05, method="holm")
        assert holm(values) == (list(adjusted), list(reject))
