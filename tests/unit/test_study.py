"""What a study over experiments asks for, announces and writes; tests/pipeline/test_studies.py runs some."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_compare import repository, write  # noqa: F401
from test_diff import commit, measured  # noqa: F401

from rarl.cli.study import main
from rarl.errors import UserError
from rarl.experiments import announcements, running, sweeps
from rarl.experiments.designs import Design
from rarl.experiments.progress import Progress
from rarl.experiments.revisions import Experiment, experiments
from rarl.processes.cost import COSTS, EXPERIMENTS


def dry_run(*arguments: str):
    result = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert "Traceback" not in result.output and isinstance(result.exception, SystemExit | None)
    return result


@pytest.mark.parametrize(
    ("arguments", "found", "fix"),
    [
        (["seeds", "-S", "lora.rr=3"], "lora.rr: unknown key", "-S lora.r=... ?"),
        (["sweep", "-S", "rank=4,8"], "rank: unknown key", ""),
        (["sweep", "-S", "lora.r=4,0"], "lora.r = 0", "rarl/params.py"),
        (["seeds", "--seeds", "7,x"], "seed = 'x'", "rarl/params.py"),
        (["sweep", "-S", "lora.r"], "Error parsing override 'lora.r'", "key=value"),
        (["sweep", "-S", "+lora.q=1,2"], "a key that is added or deleted", "params.yaml"),
        (["sweep", "-S", "lora.r=4"], "one combination: lora.r=4", "-S lora.r=4,8,16"),
        (["grid", "-S", "lora.r=4,8"], "several values", "`rarl study sweep`"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_queued(repository, arguments, found, fix):  # noqa: F811
    result = dry_run(*arguments)
    assert result.exit_code == 1 and f"found:    {found}" in result.output
    assert fix in result.output.partition("to do:")[2]


def test_outside_of_git_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "not a git repository" in dry_run("seeds").output


def test_other_values_for_a_studys_own_parameters_replace_them(repository):  # noqa: F811
    design = Design("table2", ["train.samples=100,300", "lora.r=4"])
    assert len(design.combinations) == 4 and design.varied == ["train.trainable", "train.samples"]
    one = design.combinations[0]
    assert one.name == "table2-trainable_lora-samples_100-r_4" and one.params.lora.r == 4
    assert one.params.train.samples == 100 and one.params.models == ["base", "sft", "grpo"]
    assert len({one.name for one in design.combinations}) == 4
    assert [one.name for one in Design("seeds", ["seed=7,8,7"]).combinations] == ["seeds-seed_7", "seeds-seed_8"]


def test_the_announcement_names_runs_and_the_difference_that_they_can_show(repository):  # noqa: F811
    shown = dry_run("sweep", "-S", "lora.r=4,8", "-S", "rl.beta=0,0.1", "--jobs", "3").output
    assert "4 experiments, 4 to run" in shown and "lora.r=4, rl.beta=0.1: to run" in shown
    assert "3 at a time, time unknown" in shown and "one training is one draw" in shown
    # 100 effective questions at 60 %: two independent models differ by chance on about half of them
    points = announcements.smallest(Design("sweep", ["lora.r=4,8", "rl.beta=0,0.1"]))
    assert 15 < points["silvar_med"] < 35
    assert f"Own test (Silvar-Med) {points['silvar_med']:.1f}" in " ".join(shown.split())
    assert announcements.smallest(Design("seeds", ["seed=7,8"])) == {"silvar_med": None}, "no spread is known"


def test_uncommitted_changes_are_announced(repository):  # noqa: F811
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("r: 8", "r: 2"), encoding="utf-8")
    assert "as DVC does it: params.yaml" in dry_run("seeds").output


def test_the_last_cost_of_a_stage_is_the_newest(repository):  # noqa: F811
    command = "python -m stages.judge --model base"
    assert announcements.last_cost(command) == {}
    for folder, seconds in ((COSTS, 20), (EXPERIMENTS / "ab" / "r16", 30)):
        folder.mkdir(parents=True)
        (folder / "judge_base.json").write_text(json.dumps({"seconds": seconds}))
    assert announcements.last_cost(command) == {"seconds": 30}


def test_a_sweep_has_a_row_per_combination_and_model(repository):  # noqa: F811
    repository("a", {"lora.r": 4, "seed": 7}, {"base": 40.0, "rarl": 60.0})
    repository("b", {"lora.r": 4, "seed": 8}, {"base": 40.0, "rarl": 70.0})
    here, a, b = experiments()
    one = sweeps.sweep([({"lora.r": "8"}, [here]), ({"lora.r": "4"}, [a])]).set_index(["lora.r", "model"])
    cell = ["silvar_med", "silvar_med_low", "silvar_med_high"]
    form = ["silvar_med_untagged", "silvar_med_answer_words", "silvar_med_form_blind"]
    assert len(one) == 2 * len(here.params["models"]) and list(one.columns) == ["profile", *cell, *form]
    assert list(one.loc[("4", "rarl")].drop(form[0])) == ["embedded", 60, 52, 68, 1.5, 62]
    two = sweeps.sweep([({"lora.r": "4"}, [a, b])]).set_index("model").loc["rarl"]
    assert (two["seeds"], two["silvar_med"], two["silvar_med_sd"]) == (2, 65, 7.07)
    assert (two["silvar_med_low"], two["silvar_med_high"]) == (57, 73)
    shown = sweeps.write("sweep", sweeps.sweep([({"lora.r": "4"}, [a])]))
    assert "| embedded | 4 | rarl | 60.0 (52.0 to 68.0) |  | 1.5 | 62.0 |" in shown
    assert "(sweep.svg)" in Path("metrics/studies/sweep.md").read_text(encoding="utf-8")


def test_losses_are_compared_with_the_first_over_seeds(measured):  # noqa: F811
    finals = {"grpo": (30, 32), "gspo": (50, 48)}
    for loss, seed, right in (("grpo", 8, 32), ("gspo", 7, 50), ("gspo", 8, 48)):
        measured(right)
        write({"rl.loss": loss, "seed": seed}, {"base": 40.0, "rarl": 100 * right / 60})
        commit(f"{loss}-{seed}")
    found = {name: Experiment(name, name) for name in ("HEAD", "grpo-8", "gspo-7", "gspo-8")}
    first, second = [found["HEAD"], found["grpo-8"]], [found["gspo-7"], found["gspo-8"]]
    frame = sweeps.losses([({"rl.loss": "grpo"}, first), ({"rl.loss": "gspo"}, second)])
    assert list(zip(frame["loss"], frame["model"])) == [(loss, model) for loss in finals for model in ("grpo", "rarl")]
    line = frame.set_index(["loss", "model"]).loc[("gspo", "rarl")]
    assert (line["seeds"], line["final"], line["final_sd"]) == (2, 81.67, 2.36)
    assert line["difference"] == 30.0 and line["difference_low"] < 30 < line["difference_high"] and line["differs"]
    assert line["p"] == line["p_holm"] < 0.05, "one test"
    assert frame["difference"].count() == 1, "neither the first loss, nor a model without verdicts"
    shown = sweeps.write("losses", frame)
    assert "| gspo | rarl | reasoning | silvar_med | 2 | 81.7 (73.7 to 89.7, SD 2.4) |" in shown
    assert "| 30.0 (" in shown and "<svg" in Path("metrics/studies/losses.svg").read_text(encoding="utf-8")


def test_the_annotation_study_trains_nothing_twice(repository):  # noqa: F811
    def cells(*settings):
        found = Design("annotation", settings).combinations
        return [(one.params.train.annotated_share, one.params.rarl.rewards.reasoning) for one in found]

    assert cells("train.annotated_share=0,0.5,1") == [(0, 0), (0.5, 1), (1, 1)]
    assert cells("train.annotated_share=0,1", "train.start=sft") == [(0, 0), (1, 0), (1, 1)], "SFT has read them"
    shares = "train.annotated_share=0,1"
    assert cells(shares, "rarl.rewards.reasoning=0.5") == [(0, 0.5), (1, 0.5)], "none is what others are compared with"
    assert cells(shares, "rarl.rewards.reasoning=0") == [(0, 0), (1, 0)], "SFT reads them"
    assert "as --share" in dry_run("annotation", "-S", "train.annotated_share=0.5,1").output
    shown = dry_run("annotation", "--share", "1,0.25", "--seeds", "7,8").output
    assert "study annotation: 6 experiments" in shown and "train.annotated_share=0.25" in shown
    assert "numbers from 0 to 1" in dry_run("annotation", "--share", "all").output
    assert "nothing to compare" in dry_run("annotation", "--share", "0").output
    assert "train.annotated_share" in dry_run("annotation", "--share", "2").output


def test_the_annotation_study_compares_each_share_with_none(measured):  # noqa: F811
    for share, reward, seed, right in ((0, 0, 7, 30), (0, 0, 8, 32), (1, 1, 7, 50), (1, 1, 8, 48)):
        measured(right)
        changes = {"train.annotated_share": share, "rarl.rewards.reasoning": reward, "seed": seed}
        write(changes, {"base": 40.0, "rarl": round(100 * right / 60, 2)})
        Path("metrics/curate.json").write_text(json.dumps({"train": {"total": 716, "annotated": 358}}))
        commit(f"share{share}-{seed}")
    groups = [({}, [Experiment(name, name) for name in (f"share{s}-7", f"share{s}-8")]) for s in (0, 1)]
    frame = sweeps.annotation(groups)
    rarl = frame[(frame["model"] == "rarl") & (frame["score"] == "final")].set_index("share")
    assert list(rarl["reasoning_reward"]) == ["no", "yes"] and list(rarl["rows"]) == [0, 358]
    assert rarl.loc[1, "difference"] == 30.0 and rarl.loc[1, "differs"]
    assert frame["difference"].count() == 1, "no verdict of SFT, and none has a reasoning score"
    assert (frame["model"] == "sft").sum() == 6, "no second time for another reward of RARL"
    assert sweeps.annotation(groups[::-1])["difference"].max() == 30.0, "whatever comes first"
    alone = sweeps.annotation(groups[1:])
    assert not alone["difference"].count() and {*alone["test"]} == {"no training without annotations"}
    text = sweeps.write("annotation", frame)
    page = Path("metrics/studies/annotation.md").read_text(encoding="utf-8")
    assert "- 1 of 1 differences" in page and "RARL, 100 % annotated (358 rows), final score, lexical: +30.0" in page
    assert text in page and "<svg" in Path("metrics/studies/annotation.svg").read_text(encoding="utf-8")


def test_losses_that_cannot_differ_are_announced(repository):  # noqa: F811
    shown = dry_run("losses", "--losses", "gspo,grpo,dapo", "--seeds", "7,8").output
    assert "study losses: 6 experiments, 6 to run" in shown and "rl.loss=gspo, seed=8: to run" in shown
    assert "grpo, gspo: the same gradient with rl.num_iterations=1" in shown and "dapo:" not in shown
    assert "the same gradient" not in dry_run("losses", "--losses", "grpo,gspo", "-S", "rl.num_iterations=2").output
    refused = dry_run("losses", "--losses", "grpo,sapo", "-S", "rl.epsilon_high=0.28").output
    assert "null with loss sapo" in refused


def test_sizes_that_the_phantoms_do_not_have_are_left_out_and_named(repository):  # noqa: F811
    shown = dry_run("table2").output
    assert "study table2: 4 experiments" in shown and "(phantom.sat_rows): train.samples=5000" in shown
    assert len(Design("table2", ["train.samples=500,5000"]).combinations) == 4, "as asked for"
    assert len(Design("table2", ["data.root=data/raw"]).combinations) == 6, "SAT itself has 172,384"
    assert "-S train.samples=100,300" in dry_run("table2", "-S", "phantom.sat_rows=200").output


def test_a_chart_needs_no_page_and_is_the_same_bytes_each_time(repository):  # noqa: F811
    repository("a", {"seed": 8}, {"rarl": 60.0})
    frame = sweeps.seeds(experiments())
    files = []
    for _ in range(2):
        sweeps.write("seeds", frame)
        files.append(Path("metrics/studies/seeds.svg").read_text(encoding="utf-8"))
    assert files[0].startswith("<svg") and "var(" not in files[0] and files[0] == files[1]


def test_the_time_left_is_that_of_the_longest_and_of_all_together():
    progress = Progress(4, 2, 600)
    assert progress.left(3, [60]) == "about 14 min left", "9 + 10 + 10 minutes on two workers are 14.5"
    progress.end("one", 120)
    assert progress.left(1, [60]) == "about 60 s left"
    assert Progress(4, 2, None).left(3, []) == "time left unknown"


def test_without_a_terminal_each_event_is_a_line(capsys):
    Progress(2, 1, None).end("a: FAILED in stage sft\n    no memory", 70)
    assert capsys.readouterr().err == "a: FAILED in stage sft after 70 s (1 of 2)\n    no memory\n"


def test_a_task_that_a_worker_is_taking_is_not_taken_for_removed(repository):  # noqa: F811
    study = object.__new__(running.Running)
    task = running.Task(Design("seeds", ["seed=7,8"]).combinations[0], "seeds-seed_7", "a" * 40)
    study.tasks, study.failed, study.progress = [task], {}, Progress(1, 1, None)
    for status in [*[None] * running.LOST, "Queued", *[None] * running.LOST]:
        study._look_at(task, status, set(), {})
    assert not study.failed
    study._look_at(task, None, set(), {})
    assert "removed from DVC's queue" in study.failed["seeds-seed_7"] and not study.tasks


def test_a_study_needs_dvc(repository):  # noqa: F811
    with pytest.raises(UserError, match="a DVC repository"), running.only_study():
        pass
    assert not Path(".dvc").exists()


def test_what_a_killed_queueing_left_in_the_workspace_is_not_run(repository):  # noqa: F811
    """`dvc exp run --queue` detaches HEAD and changes params.yaml for a moment."""
    Path(".dvc").mkdir()
    with running.only_study():
        running.WORKSPACE.write_text(running.workspace(), encoding="utf-8")
    with running.only_study():
        assert not running.WORKSPACE.exists(), "the workspace is as it was"
    running.WORKSPACE.write_text(running.workspace(), encoding="utf-8")
    Path("params.yaml").write_text("seed: 8\n", encoding="utf-8")
    with pytest.raises(UserError, match="may have an experiment"), running.only_study():
        pass
