"""The tables over experiments, on a git repository with made-up experiments in DVC's refs."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from rarl.cli import compare
from rarl.experiments import runs, sweeps
from rarl.experiments.revisions import experiments
from rarl.processes.cost import COSTS, EXPERIMENTS
from rarl.reporting.tables import paper

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, capture_output=True)


def write(changes, finals):
    """Parameters and results of one made-up run: `finals` is model -> percent."""
    params = YAML(typ="safe", pure=True).load(SHIPPED.read_text(encoding="utf-8"))
    for key, value in changes.items():
        block, _, name = key.rpartition(".")
        target = params
        for part in filter(None, block.split(".")):
            target = target[part]
        target[name] = value
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params, file)
    own = params["train"]["source"]
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/curate.json").write_text(json.dumps({"train": {"total": 716}}))
    for folder in ("scores", "breakdown"):
        Path("metrics", folder).mkdir(parents=True, exist_ok=True)
    for model, final in finals.items():
        cell = {"final": final, "final_low": final - 8, "final_high": final + 8, "reasoning": 20.0, "n": 150}
        cell |= {"n_effective": 100.0, "untagged": None, "answer_words": 1.5}
        judges = {"lexical": cell, "semantic": cell | {"final": final + 2}}
        sets = {own: judges} | ({"cv_bench": judges} if own == "sat" else {})
        Path(f"metrics/scores/{model}.json").write_text(json.dumps({"reasoning": sets}))
        rows = ["mode,set,judge,by,value,n,unscored,final,final_low,final_high"]
        for task, n in (("Count", 30), ("Relation", 10), ("Depth", 10), ("Distance", 10)):
            score = final if task == "Count" else 0.0
            rows.append(f"reasoning,cv_bench,lexical,category,{task},{n},0,{score},0,100")
        for origin, score in (("ADE20K", final), ("COCO", 0.0), ("Omni3D", final)):
            rows.append(f"reasoning,cv_bench,lexical,origin,{origin},20,0,{score},0,100")
        Path(f"metrics/breakdown/{model}.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose commit is the default run; call it to add an experiment."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    Path(".gitignore").write_text(".cache\nmetrics/cost\n")
    write({}, {"base": 40.0, "sft": 60.0, "grpo": 50.0, "rarl": 64.0})
    git("add", "-A")
    git("commit", "-qm", "run")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    head = head.strip()

    def add(name, changes, finals, minutes=None):
        write(changes, finals)
        for model in finals if minutes else ():
            folder = EXPERIMENTS / head / name
            folder.mkdir(parents=True, exist_ok=True)
            cost = {"seconds": 90 * minutes, "processor_seconds": 60 * minutes, "peak_memory_mb": 900}
            (folder / f"{model}.json").write_text(json.dumps(cost))
        git("add", "-A")
        git("commit", "-qm", name)
        git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", "HEAD")
        git("reset", "-q", "--hard", head)

    return add


def test_a_breakdowns_values_are_read_as_they_were_before_they_were_made_safe(repository):
    with open("metrics/breakdown/base.csv", "a") as file:
        file.write("reasoning,cv_bench,lexical,category,'=Gears,20,0,10.0,0,100\n")
    git("commit", "-qam", "a category that a spreadsheet would run")
    (here,) = experiments()
    rows = here.breakdown("base", "reasoning", "cv_bench", "category")
    assert [row["value"] for row in rows] == [*sweeps.TASKS, "=Gears"]


def test_table2_has_the_papers_rows_and_ours(repository):
    for samples in (500, 5000):
        repository(f"lora-{samples}", {"train.source": "sat", "train.samples": samples},
                   {"sft": 20.0, "grpo": samples / 100}, minutes=2)  # fmt: skip
    repository("full", {"train.source": "sat", "train.samples": 500, "train.trainable": "full"},
               {"sft": 10.0, "grpo": 30.0})  # fmt: skip
    result = CliRunner().invoke(compare.main, ["table2"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    frame = sweeps.table2(experiments())
    assert (frame["source"] == "paper").sum() == 8
    ours = frame[frame["source"] == "ours (embedded)"].set_index(["method", "samples"])
    assert len(ours) == 7, "six trainings, and the untuned base once"
    base = frame[frame["method"] == "Base, untuned"].iloc[0]
    assert base["Count"] == 40 and pd.isna(base["samples"]) and base["n"] == 60
    one = ours.loc[("RL w/ LoRA", 716)]  # of 5,000 wanted, all there are
    assert one["Total_low"] < one["Total"] < one["Total_high"]
    assert (one["answer_words"], one["form_blind"]) == (1.5, 52.0) and pd.isna(one["untagged"])
    assert ours.loc[("RL w/ LoRA", 716), "Count"] == 50
    assert ours.loc[("RL w/ LoRA", 716), "Total"] == 25, "over rows: half of them count"
    assert ours.loc[("RL w/ LoRA", 716), "Official"] == 37.5, "2D (50 + 0) / 2, 3D 50"
    assert ours.loc[("RL only (w/o LoRA)", 500), "Total"] == 15
    assert ours.loc[("SFT", 500), "minutes"] == 2 and ours.loc[("SFT", 500), "memory_mb"] == 900
    unknown = ours.loc[("SFT (w/o LoRA)", 500)]  # run elsewhere, or taken from DVC's run cache
    assert pd.isna(unknown["minutes"]) and pd.isna(unknown["memory_mb"])
    assert "RL w/ LoRA | 716" in Path("metrics/studies/table2.md").read_text()


def test_minutes_are_those_of_the_processor_unless_a_gpu_computed():
    cost = {"seconds": 90, "processor_seconds": 60}
    assert [sweeps.computing(one) for one in (cost, cost | {"card": "a card"}, {"seconds": 90})] == [60, 90, 90]


def test_costs_of_this_commit_are_those_on_disk_and_other_commits_have_their_own(repository):
    repository("same_name", {}, {"sft": 20.0}, minutes=3)
    COSTS.mkdir(parents=True)
    (COSTS / "sft.json").write_text('{"seconds": 60, "peak_memory_mb": 900}')
    here, one = experiments()
    assert here.cost("sft")["seconds"] == 60 and here.cost("grpo") == {}
    assert one.cost("sft")["seconds"] == 270 and one.cost("grpo") == {}
    (COSTS / "rarl.json").write_text('{"seconds": 60, "experiment": "same_name"}')
    assert here.cost("rarl") == {}, "an experiment ran in this folder after the commit's run"
    git("commit", "-qm", "next", "--allow-empty")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:].strip()}/same_name", "HEAD")
    costs = [run.cost("sft").get("seconds") for run in experiments(everywhere=True)]
    assert sorted(costs, key=str) == [270, 60, None], "the same name on another commit"


def test_the_papers_totals_are_counted_in_two_ways():
    """788 Count, 650 Relation, 600 Depth, 600 Distance: over all rows for SFT, a plain mean for RL with LoRA."""
    weights = dict(zip(sweeps.TASKS, (788, 650, 600, 600)))
    for row in paper()["table2"]["rows"]:
        over_rows = sum(row[task] * n for task, n in weights.items()) / 2638
        mean = sum(row[task] for task in sweeps.TASKS) / 4
        if row["method"] == "SFT":
            assert abs(over_rows - row["Total"]) < 0.01
        if row["method"] == "RL w/ LoRA":
            assert abs(mean - row["Total"]) < 0.01 and over_rows - row["Total"] > 0.5


def test_grid_takes_the_two_changes_apart(repository):
    one = ["reasoning"]
    repository("a", {"rarl.rewards.reasoning": 0.0, "rarl.prompts": one}, {"rarl": 50.0})
    repository("b", {"rarl.rewards.reasoning": 1.0, "rarl.prompts": one}, {"rarl": 55.0})
    repository("c", {"rarl.rewards.reasoning": 0.0}, {"rarl": 58.0})
    repository("other", {"seed": 8}, {"rarl": 1.0})
    frame = sweeps.grid(experiments()).set_index(["reasoning_reward", "prompts"])
    assert frame["final"].to_dict() == {
        ("no", "diverse"): 58.0, ("no", "one"): 50.0, ("yes", "diverse"): 64.0, ("yes", "one"): 55.0,
    }  # fmt: skip
    assert (frame["form_blind"] - frame["final"]).eq(2).all()


def test_seeds_give_mean_and_spread(repository):
    repository("s8", {"seed": 8}, {"rarl": 60.0})
    repository("s9", {"seed": 9}, {"rarl": 68.0})
    repository("again", {"seed": 9}, {"rarl": 68.0})
    repository("other", {"rarl.rewards.reasoning": 0.0}, {"rarl": 1.0})
    frame = sweeps.seeds(experiments()).set_index("model")
    rarl = frame.loc["rarl"]
    assert (rarl["seeds"], rarl["mean"], rarl["sd"]) == (3, 64.0, 4.0)
    assert (rarl["low"], rarl["high"]) == (60.0, 68.0)
    assert rarl["answer_words"] == 1.5 and rarl["form_blind"] == 66.0 and pd.isna(rarl["untagged"])


def test_without_experiments_the_command_is_named(repository):
    result = CliRunner().invoke(compare.main, ["grid"])
    assert result.exit_code == 1 and "`rarl study grid`" in result.output
    assert "Traceback" not in result.output


def test_runs_stand_side_by_side_with_intervals(repository):
    repository("r16", {"lora.r": 16}, {"base": 40.0, "sft": 60.0, "grpo": 58.0, "rarl": 64.0})
    result = CliRunner().invoke(compare.main, ["runs"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = experiments()
    assert runs.differing(found) == [("lora.r", [8, 16])]
    frame = pd.read_csv("data/studies/runs.csv").set_index(["experiment", "model"])
    assert frame.loc[("r16", "grpo"), "final"] == 58 and frame.loc[("r16", "grpo"), "n"] == 150
    assert frame["p"].isna().all(), "no DVC here, so no verdicts"
    page = Path("data/studies/runs.html").read_text(encoding="utf-8")
    assert "50.0 to 66.0" in page and "not at hand" in page and "not for clinical use" in page
    assert "4 rows (base, sft, grpo, rarl) are not tested" in result.output
    assert "`dvc pull`" in result.output


def test_runs_are_paired_by_the_ids_of_the_questions():
    first = {f"q{i}": int(i < 10) for i in range(40)}
    second = {f"q{i}": int(i < 25) for i in reversed(range(39))} | {"other": 1}
    test = runs.paired_by_id([first], [second], {}, 0.95)
    assert test["difference"] == pytest.approx(100 * 15 / 39) and test["p"] < 0.001
    assert runs.paired_by_id([first], [{}], {}, 0.95) == {}
    clustered = runs.paired_by_id([first], [second], {f"q{i}": f"image {i // 13}" for i in range(40)}, 0.95)
    assert clustered["p"] > 0.1 and clustered["low"] < test["low"], "three images"


def test_verdicts_of_an_experiment_come_from_dvcs_cache(repository):
    from dvc.repo import Repo

    repo = Repo.init(".")
    own = "data/verdicts/rarl/lexical/reasoning"
    Path(own).mkdir(parents=True)

    def verdicts(right):
        lines = [json.dumps({"id": f"q{i}", "prediction_score": int(i < right)}) for i in range(60)]
        Path(f"{own}/silvar_med.jsonl").write_text(
            "\n".join([*lines, '{"id": "lost", "prediction_score": null}']) + "\n"
        )
        repo.add("data/verdicts")

    Path("data/curated").mkdir()
    samples = [json.dumps({"id": f"q{i}", "image_sha256": f"{i // 2}"}) for i in range(60)]
    Path("data/curated/test.jsonl").write_text("\n".join(samples) + "\n")
    repo.add("data/curated/test.jsonl")
    verdicts(30)
    git("add", "-A", "-f", "data/verdicts.dvc", "data/curated/test.jsonl.dvc", ".dvc", ".dvcignore")
    git("commit", "-qm", "with verdicts")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    head = head.strip()
    verdicts(45)
    write({"lora.r": 16}, {"base": 40.0, "sft": 60.0, "grpo": 50.0, "rarl": 75.0})
    git("add", "data/verdicts.dvc", "params.yaml", "metrics")
    git("commit", "-qm", "r16")
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/r16", "HEAD")
    git("reset", "-q", "--hard", head)
    frame = runs.scores(experiments()).set_index(["experiment", "model"])
    line = frame.loc[("r16", "rarl")]
    assert [line[key] for key in ("low", "high")] == [round(line[key], 2) for key in ("low", "high")]
    assert line["difference"] == 25 and line["differs"]
    assert line["p_holm"] == pytest.approx(2**-8, abs=1e-5), "15 questions about 8 images"
    assert pd.isna(frame.loc[("r16", "sft"), "p"]), "no verdicts of that model"
