"""What re-runs when something changes, and what must not: DESIGN's table, by the real `dvc`.

`check` validates `params.yaml` as a whole, so every change of it re-runs `check`; its output is a
constant, so nothing follows from that.
"""

import json
import re
import resource
import shutil

import pytest
from ruamel.yaml import YAML

from rarl.experiments.revisions import experiments
from rarl.profiles import leaves

TRAINED = {"sft", "grpo", "rarl"}
MODELS = {"base", "rarl"}


def evaluation(*models: str) -> set[str]:
    """The stages that follow from new weights of some models."""
    return {
        "report",
        *(f"infer@{model}" for model in models),
        *(f"judge@{model}" for model in models),
        *(f"score@{model}" for model in models),
    }


def test_first_run_runs_every_stage_but_the_frozen_one(reproduced):
    sets = {"benchmark@slake", "benchmark@vqa_rad"}
    data = {"tidy", "check", "phantom", "base", "curate", "audit", "encode", "encode_benchmarks", "truth"}
    assert reproduced.first_run == data | sets | TRAINED | evaluation(*MODELS)


def test_nothing_changed_runs_nothing_and_says_so_fast(project):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert project.stages_run() == set()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, so that a busy machine does not fail the test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert project.git("status", "--porcelain") == ""


def test_lora_rank_retrains_and_leaves_data_and_base_alone(project):
    """As a researcher does it: `dvc exp run -S`, then `dvc metrics diff`."""
    run = project.stages_run("exp", "run", "-S", "lora.r=16")
    assert run == {"check"} | TRAINED | evaluation("rarl")

    changed = json.loads(project.dvc("metrics", "diff", "--json"))
    assert set(changed) == {"metrics/summary.json", *(f"metrics/train/{method}.json" for method in TRAINED)}
    table = project.dvc("metrics", "diff", "--md")
    assert "| Path" in table and "metrics/train/rarl.json" in table

    # `-S` rewrites params.yaml: one value differs and the comments stay.
    before = project.git("show", "HEAD:params.yaml")
    after = (project.folder / "params.yaml").read_text(encoding="utf-8")
    values = [dict(leaves(YAML(typ="safe").load(text))) for text in (before, after)]
    assert values[1] == values[0] | {"lora.r": 16}
    assert re.findall("#.*", after) == re.findall("#.*", before)


def test_weight_of_rarls_own_reward_retrains_rarl_only(project):
    project.change("rarl.rewards.reasoning", 0.5)
    assert project.stages_run() == {"check", "rarl"} | evaluation("rarl")


def test_a_judge_retrains_rarl_only_if_it_makes_its_reward(project):
    project.change("judge.gpt_4o_mini.base_url", "http://127.0.0.1:9/v1")
    project.change("judge.gpt_4o_mini.api_key_env", None)
    project.change("reward.judge", "gpt_4o_mini")
    project.change("reward.reasoning", "judge")
    assert project.stages_run() & TRAINED == {"grpo", "rarl"}, "both depend on the block `reward`"
    project.change("judge.gpt_4o_mini.max_cost_usd", 30.0)
    assert not project.stages_run() & TRAINED, "a larger budget"
    project.change("judge.gpt_4o_mini.model", "another")
    assert project.stages_run() & TRAINED == {"rarl"}


def test_settings_of_a_judge_run_judges_scores_and_the_report(project):
    project.change("judge.semantic.threshold", 0.35)
    assert project.stages_run() == {
        "check",
        "report",
        *(f"judge@{model}" for model in MODELS),
        *(f"score@{model}" for model in MODELS),
    }


def test_one_more_benchmark_trains_nothing(project):
    project.change("benchmarks", ["slake", "vqa_rad", "cv_bench"])
    run = project.stages_run()
    assert run == {"tidy", "check", "benchmark@cv_bench", "audit", "encode_benchmarks", "truth"} | evaluation(*MODELS)


def test_rivals_from_a_folder_and_an_endpoint_are_one_block_each(project):
    """Added to a finished run, only their own stages and the report run."""
    found = {
        "near": {"label": "Near", "source": "data/near"},
        "served": {"label": "Served", "base_url": "http://localhost:8000/v1", "model": "m", "max_calls": 5},
    }
    shutil.copytree(project.folder / "data/base", project.folder / "data/near")
    project.change("rival", found)
    project.change("models", ["base", "rarl", *found])
    pointers = {f"rival@{slug}" for slug in found}
    assert project.stages_run() == {"tidy", "check"} | pointers | evaluation(*found)
    # A larger budget asks nothing again, another model does.
    project.change("rival.served.max_calls", 10)
    assert project.stages_run() == {"check", "rival@served", "report"}
    project.change("rival.served.model", "n")
    assert project.stages_run() == {"check", "rival@served"} | evaluation("served")
    project.change("models", ["base", "rarl"])
    project.change("rival", {})
    assert project.stages_run() == {"tidy", "check", "report"}
    assert not (project.folder / "data/predictions/near").exists()


def test_own_test_set_alone(without_benchmarks):
    """No stage fills the folders of benchmarks, on which others depend."""
    assert {"audit", "report"} <= without_benchmarks.stages_run()


INFER = {f"infer@{model}" for model in MODELS}
#: A file, and the stages whose output a change of it can change. No two files of one row are in one dependency.
REACH = [
    {
        # What people type and read, and how a stage is started
        "rarl/sharing/model_card.py": set(),
        "rarl/planning/memory.py": set(),
        "rarl/rehearsal/bases.py": set(),
        "rarl/cli/ask.py": set(),
        "rarl/params.py": set(),
        "rarl/cache.py": set(),
        "rarl/processes/cost.py": set(),
        "rarl/running/entry.py": set(),
        "rarl/data/download/sources.py": set(),
        "rarl/data/data_card.html": {"audit"},
        "rarl/reporting/page.py": {"report"},
        "rarl/registry.py": {"audit", "report", *(f"score@{model}" for model in MODELS)},
        # What runs on CUDA devices only
        "rarl/models/shared_prefix/cuda_graph.py": set(),
        "rarl/encoding.py": {"encode", "encode_benchmarks"},
        "rarl/training/sft.py": {"sft"},
        "rarl/training/rl.py": {"grpo", "rarl"},
        # Its code is in a file that `check` writes for trainings whose reward is a judge's.
        "rarl/training/judged.py": {"check"},
        "rarl/training/run.py": TRAINED,
        "rarl/rewards/format.py": {"grpo", "rarl"},
        "rarl/prompts/short.txt": {"grpo", "rarl"} | INFER,
        "rarl/inference/local.py": INFER,
        # The start-up check looks at the judges too; its output stays what it was.
        "rarl/judges/lexical.py": {"check"} | {f"judge@{model}" for model in MODELS},
        "stages/truth.py": {"truth"},
    },
    {
        "rarl/models/shared_prefix/decode.py": TRAINED | INFER,
        "rarl/prompts/reasoning.txt": TRAINED | INFER,
        "rarl/rewards/terms.py": {"grpo", "rarl"},
    },
    {"rarl/models/features.py": TRAINED | INFER | {"encode", "encode_benchmarks"}},
]


@pytest.mark.parametrize("files", REACH, ids=["each part", "decoding", "features"])
def test_a_change_of_code_runs_again_what_it_can_change(reproduced, files):
    before = {file: (reproduced.folder / file).read_bytes() for file in files}
    try:
        for file, content in before.items():
            (reproduced.folder / file).write_bytes(content + b"\n")
        status = json.loads(reproduced.dvc("status", "--json").splitlines()[0])
    finally:
        for file, content in before.items():
            (reproduced.folder / file).write_bytes(content)
    parts = [(stage, part) for stage, found in status.items() for part in found]
    changed = {(stage, dep) for stage, part in parts for dep in part.get("changed deps", ())}
    for file, stages in files.items():
        assert {stage for stage, dep in changed if f"{file}/".startswith(f"{dep}/")} == stages, file


def test_second_clone_that_pulls_has_nothing_to_run(project, tmp_path):
    clone = pushed_and_cloned(project, tmp_path)
    assert clone.stages_run() == set()
    assert (clone.folder / "data/models/rarl/content.json").is_file()


def test_shorter_list_leaves_nothing_that_a_second_clone_would_lack(project, tmp_path):
    """Stages depend on the folder data/benchmarks: a file left over there would be a difference."""
    project.change("benchmarks", ["slake"])
    assert project.stages_run("repro", "encode_benchmarks") == {"tidy", "check", "encode_benchmarks"}
    clone = pushed_and_cloned(project, tmp_path)
    assert clone.stages_run("repro", "--dry", "encode_benchmarks") == set()


def test_a_model_off_the_list_and_back_is_not_asked_again(project, tmp_path):
    """`tidy` removes its predictions, so that the report's folders are those of a clone; DVC's cache keeps them."""
    listed = ["base", "rarl"]
    project.change("models", listed[:-1])
    assert project.stages_run() == {"tidy", "check", "report"}
    assert not (project.folder / "data/predictions/rarl").exists()
    assert pushed_and_cloned(project, tmp_path).stages_run("repro", "--dry") == set()
    project.change("models", listed)
    assert "infer@rarl" not in project.stages_run()
    assert (project.folder / "data/predictions/rarl").is_dir()
    assert project.stages_run() == set()


def test_times_and_memory_leave_the_tree_clean(project):
    """`reproduced` committed what the first run left; a second run of the same gives other times and the same tree."""
    costs = project.folder / "metrics/cost"
    first = {file.name: file.read_text(encoding="utf-8") for file in costs.iterdir()}
    assert {f"{method}.json" for method in TRAINED} | {"cost.js"} <= first.keys()
    assert "metrics/cost" not in project.git("ls-files") + project.git("show", "HEAD:dvc.lock")
    run = project.stages_run("repro", "--force", "--single-item", *sorted(TRAINED), "score@rarl")
    assert run == TRAINED | {"score@rarl"}
    for name in (*(f"{stage}.json" for stage in TRAINED), "score_rarl.json", "cost.js"):
        assert (costs / name).read_text(encoding="utf-8") != first[name]
    assert project.git("status", "--porcelain") == ""


def test_experiment_in_a_temporary_folder_leaves_its_cost(project, monkeypatch):
    """DVC deletes the folder; `rarl compare` still finds the time and memory of what ran in it."""
    here = (project.folder / "metrics/cost/cost.js").read_text(encoding="utf-8")
    run = project.stages_run("exp", "run", "--temp", "-n", "longer", "-S", "sft.epochs=13", "sft")
    assert run == {"check", "sft"}
    monkeypatch.chdir(project.folder)
    _, experiment = experiments()
    assert experiment.name == "longer" and experiment.params["sft"]["epochs"] == 13
    assert experiment.cost("sft")["seconds"] > 0 and experiment.cost("grpo") == {}
    assert (project.folder / "metrics/cost/cost.js").read_text(encoding="utf-8") == here
    assert project.git("status", "--porcelain") == ""


def test_names_of_data_files_stay_inside_the_project(project):
    """DVC's own default is a folder that everybody on the machine can read."""
    project.run("make", "--silent", "site-cache")
    bare = ("env", "-u", "DVC_SITE_CACHE_DIR", "dvc")
    project.run(*bare, "status")
    noted = project.folder / ".dvc/tmp/site/repo"
    (workspace,) = noted.iterdir()
    databases = b"".join(path.read_bytes() for path in workspace.rglob("*.db*"))
    assert b"data/phantom" in databases, "the names are here"
    project.run(*bare, "exp", "run", "--temp", "-S", "report.confidence=0.9", "check")
    assert len(list(noted.iterdir())) == 2, "those of the copy too"
    project.run("sh", "-c", "cd stages && exec env -u DVC_SITE_CACHE_DIR dvc status")
    assert not (project.folder / "stages/.dvc").exists() and len(list(noted.iterdir())) == 2
    assert project.git("status", "--porcelain") == ""
    assert str(project.folder) not in (project.folder / ".dvc/config").read_text(encoding="utf-8")


def test_real_data_below_a_link(project, tmp_path):
    """Its path is in nothing that git keeps, and the phantoms' parameters ask no judge again."""
    releases = tmp_path / "patients"
    (releases / "slake").mkdir(parents=True)
    (releases / "slake/train.json").write_text("[1]", encoding="utf-8")
    (project.folder / "data/raw").symlink_to(releases)
    project.change("data.root", "data/raw")
    assert {"curate", "audit", "sft", "truth", "judge@base"} <= project.stages_run()
    assert (project.folder / "data/truth.jsonl").read_text(encoding="utf-8") == ""
    project.commit()
    assert project.stages_run() == set()
    kept = project.git("show", "HEAD:dvc.lock", "HEAD:params.yaml") + project.git("ls-files")
    assert "patients" not in kept and "path: data/raw" in kept
    project.change("phantom.seed", 12)
    assert project.stages_run() == {"check", "phantom", "truth", "report"}
    (releases / "slake/train.json").write_text("[1, 2]", encoding="utf-8")
    assert "curate" in project.stages_run("repro", "--dry")


def pushed_and_cloned(project, tmp_path):
    """The project as another machine gets it: git clone, dvc pull, and none of the first one's caches."""
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    project.commit()
    project.dvc("push", "--quiet")
    project.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = type(project)(tmp_path / "clone", home=tmp_path / "other_home")
    clone.dvc("pull", "--quiet")
    return clone


@pytest.mark.parametrize("given", [{}, {"name": "Ada", "email": "ada@example.org"}])
def test_identity_is_set_for_the_clone_only_where_there_is_none(project, given):
    for key in ("name", "email"):
        project.git("config", "--unset", f"user.{key}")
        if given:
            project.git("config", "--global", f"user.{key}", given[key])
    said = project.run("make", "--silent", "identity")
    assert project.git("config", "user.name").strip() == given.get("name", "RARL user")
    assert project.git("config", "user.email").strip() == given.get("email", "rarl@localhost")
    assert ("is used in this clone" in said) is not bool(given)
