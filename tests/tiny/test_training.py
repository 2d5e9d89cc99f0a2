"""The real trainers on a random tiny model: what moves, what must not, and going on after a stop."""

import copy
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from rarl.models.features import FeatureStore
from rarl.models.loading import load
from rarl.params import Rewards
from rarl.records import Prediction, Sample, read_records, write_records
from rarl.training.data import prompt_of, schedule, target, with_share


def test_sft_writes_an_adapter_on_the_language_model_only(encoded, params):
    from rarl.training.sft import train_sft

    metrics = train_sft(params)
    weights = load_file("data/models/sft/adapter_model.safetensors")
    assert metrics["steps"] == 4
    assert metrics["trainable_parameters"] == sum(w.numel() for w in weights.values())
    assert all("visual" not in name for name in weights)
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert json.loads(Path("data/models/sft/base.json").read_text())["source"]
    assert max(float(w.abs().max()) for name, w in weights.items() if "lora_B" in name) > 0


@pytest.mark.parametrize("method", ["grpo", "rarl"])
def test_rl_runs_with_its_own_rewards(encoded, params, method):
    from rarl.training.rl import train_rl

    metrics = train_rl(method, params)
    expected = {"reward_format_last", "reward_length_last", "reward_accuracy_last"}
    assert expected <= metrics.keys()
    header, *rows = Path(f"metrics/train/{method}.csv").read_text().splitlines()
    assert ("reward_reasoning" in header) == (method == "rarl")
    logged = {"loss", "kl", "entropy", "grad_norm", "clip_ratio", "truncated_share", "zero_signal_share"}
    assert logged | {"completion_length", "dev_score"} <= set(header.split(",")) and len(rows) == 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("method, trainable", [("sft", "lora"), ("rarl", "lora"), ("grpo", "full")])
def test_training_in_bfloat16(request, params, monkeypatch, method, trainable, device):
    """As on a GPU: what is trained stays float32, and with an adapter no image goes through the tower again."""
    from rarl.models import features
    from rarl.training.rl import train_rl
    from rarl.training.sft import train_sft

    for block, key, value in (
        (params.model, "dtype", "bfloat16"), (params.model, "device", device),
        (params.train, "trainable", trainable), (params.train, "eval_steps", 2), (params.rl, "max_steps", 2),
        (params.rl, "max_completion_length", 20),
    ):  # fmt: skip
        monkeypatch.setattr(block, key, value)
    request.getfixturevalue("encoded")
    if trainable == "lora":
        monkeypatch.setattr(features, "_bring_back", lambda *args: pytest.fail("the tower ran"))
    train_sft(params) if method == "sft" else train_rl(method, params)
    trained = next(Path(f"data/models/{method}").rglob("*.safetensors"))
    language = [v for k, v in load_file(trained).items() if "visual" not in k]
    assert language and {value.dtype for value in language} == {torch.float32}


def test_rl_goes_on_from_the_sft_adapter(encoded, params, monkeypatch):
    """Its copy, which TRL makes for the reference policy, is no output."""
    from rarl.training.rl import train_rl
    from rarl.training.sft import train_sft

    train_sft(params)
    for block, key, value in (
        (params.train, "start", "sft"), (params.rl, "learning_rate", 1e-2), (params.grpo.rewards, "length", 50.0),
    ):  # fmt: skip
        monkeypatch.setattr(block, key, value)
    metrics = train_rl("grpo", params)
    before, after = (load_file(f"data/models/{name}/adapter_model.safetensors") for name in ("sft", "grpo"))
    assert before.keys() == after.keys()
    assert metrics["trainable_parameters"] == sum(value.numel() for value in before.values())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert not list(Path("data/models/grpo").rglob("ref"))


def test_rewards_are_given_all_that_a_sample_has(encoded, params):
    from rarl.training.rl import prepare

    path = Path("data/curated/train.jsonl")
    rows = [
        json.loads(line) | {"answers": ["Yes", "Sure"], "choices": ["a", "b"]}
        for line in path.read_text().splitlines()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, trainer, _ = prepare("rarl", params)
    by_path = {row["image"]: row for row in rows}
    columns = ("answers", "kind", "choices", "reasoning")
    for given in trainer.train_dataset:
        assert all(given[name] == by_path[given["path"]][name] for name in columns)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_full_training_moves_the_language_model_and_not_the_tower(encoded, params, method):
    from rarl.training.rl import train_rl
    from rarl.training.sft import train_sft

    params = copy.deepcopy(params)
    params.train.trainable = "full"
    params.rl.max_steps = params.train.eval_steps = 2
    train_sft(params) if method == "sft" else train_rl(method, params)
    before = load("data/models/base", params.model).model.state_dict()
    after = load(f"data/models/{method}", params.model).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "visual" not in name}


def test_more_annotations_change_the_key_of_the_trainings_that_read_them(encoded, params):
    from rarl.training.run import CURATED, Run

    def keys():
        return [Run(name, params, getattr(params, name).model_dump()).folder for name in ("sft", "grpo", "rarl")]

    before, path = keys(), CURATED / "train.jsonl"
    rows = read_records(path, Sample)
    write_records(path, [row.model_copy(update={"reasoning": "A mass is seen."}) for row in rows])
    assert [old == new for old, new in zip(before, keys())] == [False, True, False]
    write_records(path, rows[1:])
    assert not {*before} & {*keys()}


def test_a_share_of_the_annotations_is_a_key_of_the_trainings_that_read_them(encoded, params):
    from rarl.training.run import CURATED, Run

    def keys(share):
        changed = params.model_copy(update={"train": params.train.model_copy(update={"annotated_share": share})})
        return [Run(name, changed, getattr(changed, name).model_dump()).folder for name in ("sft", "grpo", "rarl")]

    rows = [
        row.model_copy(update={"reasoning": "A mass is seen."})
        for row in read_records(CURATED / "train.jsonl", Sample)
    ]
    write_records(CURATED / "train.jsonl", rows)
    assert [old == new for old, new in zip(keys(1.0), keys(0.0))] == [False, True, False]
    used = [{row.id for row in with_share(rows, share, 7) if row.reasoning} for share in (0, 0.25, 0.5, 1)]
    assert [len(ids) for ids in used] == [round(share * len(rows)) for share in (0, 0.25, 0.5, 1)]
    assert used[0] < used[1] < used[2] < used[3] and used[2] != {
        row.id for row in with_share(rows, 0.5, 8) if row.reasoning
    }


def test_full_training_in_float32_takes_no_features_that_were_computed_in_bfloat16(project, params):
    from rarl.encoding import encode
    from rarl.training.run import FEATURES, Run

    params = copy.deepcopy(params)
    params.train.trainable, params.model.dtype = "full", "bfloat16"
    encode([Path("data/curated/dev.jsonl")], FEATURES, params)
    assert Run("sft", params, {}).load().model.dtype is torch.float32


def test_the_peak_is_kept_and_old_checkpoints_are_not(encoded, params, monkeypatch):
    """The earliest of equal peaks is the output; of four checkpoints the newest two are left."""
    from rarl.training.run import Log
    from rarl.training.sft import train_sft

    params = copy.deepcopy(params)
    params.train.eval_steps = 1
    scores, weights = iter([10.0, 50.0, 50.0, 20.0]), []

    def score(log):
        weights.append({k: v.clone() for k, v in log.network.named_parameters() if "lora_" in k})
        return next(scores)

    monkeypatch.setattr(Log, "dev_score", score)
    assert train_sft(params)["best_step"] == 2
    (run,) = Path(".cache/training").iterdir()
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    assert [path.name for path in run.glob("best*")] == ["best-2"]
    for name, value in load_file("data/models/sft/adapter_model.safetensors").items():
        assert torch.equal(value, weights[1][name.replace(".weight", ".default.weight")])
    assert "2,50.0" in Path("metrics/train/sft.csv").read_text()


def test_a_checkpoint_that_training_has_not_touched_is_never_the_peak(encoded, params, monkeypatch):
    """The warm-up's first step has a learning rate of 0, and here the best score."""
    from rarl.training.run import Log
    from rarl.training.sft import train_sft

    params = copy.deepcopy(params)
    params.train.eval_steps = 1
    scores = iter([50.0, 10.0, 20.0, 20.0])
    monkeypatch.setattr(Log, "dev_score", lambda log: next(scores))
    assert train_sft(params)["best_step"] == 3
    weights = load_file("data/models/sft/adapter_model.safetensors")
    assert all(w.any() for name, w in weights.items() if "lora_B" in name)


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("learning_rate, reason", [(1e-60, "as before training"), (1e39, "not finite")])
def test_weights_that_are_no_result_are_never_written_as_one(encoded, params, trainable, learning_rate, reason):
    from rarl.errors import UserError
    from rarl.training.sft import train_sft

    params = copy.deepcopy(params)
    params.train.trainable = trainable
    params.sft.learning_rate = params.sft.learning_rate_full = learning_rate
    with pytest.raises(UserError, match=reason):
        train_sft(params)
    assert not Path("data/models/sft").exists() and not Path("metrics/train/sft.json").exists()


@pytest.mark.parametrize("start, beta", [("base", 0.0), ("base", 0.04), ("sft", 0.0)])
def test_rl_without_a_difference_in_reward_ends_with_an_error(encoded, params, start, beta):
    from rarl.errors import UserError
    from rarl.training.rl import train_rl
    from rarl.training.sft import train_sft

    params = copy.deepcopy(params)
    if start == "sft":
        train_sft(params)
    params.train.start = start
    params.rl.beta, params.reward.length_cap = beta, 0.0
    params.grpo.rewards = Rewards(format=0.0, length=1.0, accuracy=0.0, reasoning=0.0)
    with pytest.raises(UserError, match="no difference in reward"):
        train_rl("grpo", params)
    assert not Path("data/models/grpo").exists()


def test_rl_with_nothing_but_masked_completions_ends_with_an_error(encoded, params):
    from rarl.errors import UserError
    from rarl.training.rl import train_rl

    params = copy.deepcopy(params)
    params.rl.mask_truncated, params.rl.max_completion_length, params.rl.max_steps = True, 2, 2
    with pytest.raises(UserError, match="no completion that ends within"):
        train_rl("grpo", params)


def test_an_empty_weight_is_no_result(tmp_path):
    from rarl.errors import UserError
    from rarl.training.checkpoints import check_weights, digests

    before, after = {"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}
    for weights, reason in (
        (None, "no weight"), ({}, "no weight"), (before | {"b": torch.empty(0)}, "b is empty"),
        (before | {"b": torch.tensor([1.0, torch.inf])}, "b is not finite"),
    ):  # fmt: skip
        if weights is not None:
            save_file(weights, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UserError, match=reason):
            check_weights(tmp_path, set())
    for weights in (before, after):
        save_file(weights, tmp_path / "adapter_model.safetensors")
        assert check_weights(tmp_path, digests(before.values())) == (weights is after)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_stopped_run_goes_on_to_the_same_weights(encoded, params, method):
    """Killed after two of four steps, a run ends where an undisturbed one does; RL with two steps on a batch too."""
    from rarl.training.rl import train_rl
    from rarl.training.sft import train_sft

    params = copy.deepcopy(params)
    params.rl.num_iterations, params.rl.learning_rate, params.grpo.rewards.length = 2, 1e-2, 50.0
    train = train_sft if method == "sft" else partial(train_rl, method)
    train(params)
    whole = load_file(f"data/models/{method}/adapter_model.safetensors")
    (run,) = Path(".cache/training").iterdir()
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    shutil.rmtree(run / "checkpoint-4")
    shutil.rmtree(f"data/models/{method}")
    train(params)
    for name, value in load_file(f"data/models/{method}/adapter_model.safetensors").items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


@pytest.mark.parametrize("max_steps", [4, 3])
@pytest.mark.parametrize("method", ["sft", "grpo", "rarl"])
def test_a_finished_run_is_not_trained_further(encoded, params, method, max_steps, capsys):
    """A second run (`dvc repro -f`, a lost dvc.lock) writes the same bytes; 3 steps do not end at a checkpoint."""
    from rarl.training.rl import train_rl
    from rarl.training.sft import train_sft

    params = copy.deepcopy(params)
    params.rl.max_steps, params.sft.epochs = max_steps, max_steps / 4
    params.rl.learning_rate = 1e-2

    def outputs():
        train_sft(params) if method == "sft" else train_rl(method, params)
        folders = Path("data/models") / method, Path("metrics/train")
        return {p: p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}

    first = outputs()
    assert json.loads(first[Path(f"metrics/train/{method}.json")])["steps"] == max_steps
    capsys.readouterr()
    assert outputs() == first
    assert "nothing is left to train" in capsys.readouterr().out


def test_another_parameter_is_another_run(encoded, params):
    from rarl.training.sft import train_sft

    train_sft(params)
    other = copy.deepcopy(params)
    other.lora.r = 4
    train_sft(other)
    assert len(list(Path(".cache/training").iterdir())) == 2
    assert load_file("data/models/sft/adapter_model.safetensors").popitem()[1].numel() > 0


def test_other_data_code_or_packages_are_another_run(encoded, params, monkeypatch):
    from rarl.training import run

    folders = [run.Run("sft", params, {}).folder]
    assert run.Run("sft", params, {}).folder == folders[0]
    changed = ["data/curated/train.jsonl", "data/curated/dev.jsonl", "data/features/training/features.safetensors"]
    for path in map(Path, [*changed, "data/models/base/base.json"]):
        old = path.read_bytes()
        path.write_bytes(old + (old.splitlines(True)[0] if path.suffix == ".jsonl" else b"\n"))
        folders.append(run.Run("sft", params, {}).folder)
    monkeypatch.setattr(run, "packages", lambda params: {"torch": "0"})
    folders.append(run.Run("sft", params, {}).folder)
    monkeypatch.setattr(run, "template", lambda name: "Is it?")
    folders.append(run.Run("sft", params, {}).folder)
    monkeypatch.setattr(run, "code_key", lambda stage, device: {"rarl/models/loading.py": stage})
    folders += [run.Run("sft", params, {}).folder, run.Run("sft", params, {"beta": 1}).folder]
    other = params.model_copy(update={"seed": 8})
    folders += [run.Run("sft", other, {}).folder, run.Run("grpo", other, {}).folder]
    assert len(set(folders)) == len(folders)


def test_a_resumed_run_counts_the_time_of_its_earlier_legs(encoded, params, monkeypatch):
    from rarl.training import run, sft

    noted = []
    monkeypatch.setattr(run, "note", lambda **facts: noted.append(facts))
    sft.train_sft(params)
    (folder,) = Path(".cache/training").iterdir()
    whole = {path: path.read_bytes() for path in Path("metrics/train").iterdir()}
    scores = json.loads((folder / "dev_scores.json").read_text())
    assert 0 < scores[0]["seconds"] <= scores[1]["seconds"]
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "dev_scores.json").write_text(json.dumps([scores[0] | {"seconds": 1000, "processor_seconds": 2000}]))
    sft.train_sft(params)
    assert json.loads((folder / "dev_scores.json").read_text())[1]["seconds"] > 1000
    sft.train_sft(params)
    assert [one["earlier_seconds"] for one in noted[:2]] == [0, 1000] and 1000 < noted[2]["earlier_seconds"] < 1100
    assert [one["earlier_processor_seconds"] for one in noted[:2]] == [0, 2000]
    assert noted[2]["earlier_processor_seconds"] > 2000
    assert whole == {path: path.read_bytes() for path in Path("metrics/train").iterdir()}, "no time in what git keeps"


def test_inference_keeps_what_it_has_and_reads_a_cut_line(encoded, params, monkeypatch):
    from ruamel.yaml import YAML

    from stages import infer

    FeatureStore().save("data/features/benchmarks")
    params = copy.deepcopy(params)
    params.models, params.modes = ["base"], ["direct", "blank"]
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    for name in ("rarl", "stages"):
        Path(name).symlink_to(Path(__file__).parents[2] / name)
    result = CliRunner().invoke(infer.main, ["--model", "base"], catch_exceptions=False)
    assert result.exit_code == 0
    kept = Path("data/predictions/base/direct/silvar_med.jsonl").read_bytes()
    scratch = sorted(Path(".cache/predictions").iterdir())
    for path in scratch:  # as a kill in the middle of a line leaves it
        path.write_bytes(path.read_bytes()[:-40])
    shutil.rmtree("data/predictions")
    CliRunner().invoke(infer.main, ["--model", "base"], catch_exceptions=False)
    assert Path("data/predictions/base/direct/silvar_med.jsonl").read_bytes() == kept
    assert Path("data/predictions/base/blank/silvar_med.jsonl").is_file()


def test_an_image_that_could_not_be_opened_is_asked_about_again(encoded, params):
    from ruamel.yaml import YAML

    from stages import infer

    FeatureStore().save("data/features/benchmarks")
    params = copy.deepcopy(params)
    params.models, params.modes = ["base"], ["direct"]
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    image = Path(params.data.root) / read_records("data/curated/test.jsonl", Sample)[0].image
    content = image.read_bytes()
    file = Path("data/predictions/base/direct/silvar_med.jsonl")

    def predictions():
        CliRunner().invoke(infer.main, ["--model", "base"], catch_exceptions=False)
        return read_records(file, Prediction)

    image.write_bytes(content[:20])
    broken = predictions()
    assert [bool(one.error) for one in broken] == [True] + [False] * 5
    image.write_bytes(content)
    mended = predictions()
    assert mended[0].error is None and mended[0].tokens and mended[1:] == broken[1:]
    kept = file.read_bytes()
    image.write_bytes(content[:20])
    assert predictions() == mended and file.read_bytes() == kept


def test_inference_says_how_many_questions_could_not_be_asked(encoded, params):
    from ruamel.yaml import YAML

    from stages import infer

    FeatureStore().save("data/features/benchmarks")
    params = copy.deepcopy(params)
    params.models, params.modes, params.benchmarks = ["base"], ["direct"], []
    params.decoding.max_new_tokens = 2040  # of 2,048 that the model takes
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    Path("stages").symlink_to(Path(__file__).parents[2] / "stages")
    result = CliRunner().invoke(infer.main, ["--model", "base"], catch_exceptions=False)
    count = len(read_records("data/curated/test.jsonl", Sample))
    assert f"WARNING: {count} of {count} questions could not be asked" in result.output
    assert "the model takes 8 besides an answer of 2,040" in result.output


def test_every_sample_meets_every_prompt_once_in_as_many_epochs(project):
    samples = read_records("data/curated/train.jsonl", Sample)
    prompts = ["explanation", "short", "open"]
    rows = schedule(samples, prompts, 3, seed=1)
    assert rows == schedule(samples, prompts, 3, seed=1)
    seen = {}
    for sample, prompt in rows:
        seen.setdefault(sample.id, []).append(prompt)
    assert all(sorted(met) == sorted(prompts) for met in seen.values())
    assert {prompt_of(prompts, i, 0) for i in range(3)} == set(prompts)


def test_a_prompt_that_stands_twice_is_met_twice_as_often(project):
    samples = read_records("data/curated/train.jsonl", Sample)
    prompts = ["explanation", "explanation", "short"]
    rows = schedule(samples, prompts, 3, seed=1)
    for sample in samples:
        assert sorted(prompt for one, prompt in rows if one == sample) == prompts
    share = [prompt for _, prompt in rows[: len(samples)]].count("explanation") / len(samples)
    assert abs(share - 2 / 3) < 1 / len(samples)
    first = {sample.id: prompt for sample, prompt in rows[: len(samples)]}
    again = schedule(samples, prompts, 1, seed=2)
    assert {sample.id: prompt for sample, prompt in again} == first, "the order has no say in it"


def test_target_has_the_think_part_only_where_somebody_wrote_one(project):
    samples = read_records("data/curated/train.jsonl", Sample)
    annotated = next(s for s in samples if s.reasoning)
    bare = next(s for s in samples if not s.reasoning)
    assert target(annotated) == f"<think> {annotated.reasoning} </think> <answer> {annotated.answers[0]} </answer>"
    assert target(bare) == f"<answer> {bare.answers[0]} </answer>"


def test_stage_modules_start_without_torch():
    """`python -m stages.<stage> --help` must be quick: no stage imports torch before it needs it."""
    stages = [
        "base",
        "encode",
        "sft",
        "grpo",
        "rarl",
        "infer",
        "judge",
        "score",
        "report",
        "curate",
        "benchmark",
        "phantom",
        "check",
    ]
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module('stages.' + name)\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *stages], check=True)
