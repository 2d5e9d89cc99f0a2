"""`rarl plan`: its arithmetic against known figures, what grows with what, and the comparison with a measured run."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from rarl.cli.plan import main
from rarl.errors import UserError
from rarl.params import Params, Reward, load_params
from rarl.planning import run as run_plan
from rarl.planning.run import Clock, Counts, Machine
from rarl.processes import cost
from rarl.profiles import apply
from rarl.records import write_json
from rarl.rehearsal.bases import config_json, parse

COUNTS = Counts(train=716, dev=132, test={"silvar_med": 150, "slake": 1061}, images=365, test_images=400)
#: Reaches 1 TFLOPS of products; decoding is never bound by memory.
CARD = Machine("test", "", "cuda", 1e12 / run_plan.EFFICIENCY, 1e18, 80)


@pytest.fixture
def paper(tmp_path, repository, monkeypatch) -> Params:
    """The paper profile with one benchmark, in a folder of its own; operations start in no time."""
    path = tmp_path / "params.yaml"
    path.write_bytes((repository / "params.yaml").read_bytes())
    apply(path, "paper")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_plan, "LAUNCH", {"cuda": 0, "cpu": 0})
    params = load_params(path)
    return params.model_copy(update={"benchmarks": ["slake"], "models": ["base", "sft", "rarl"]})


@pytest.fixture(scope="module")
def config():
    return parse(config_json("qwen2_vl_2b"))


def planned(config, params, counts=COUNTS, machine=CARD) -> dict[str, float]:
    return {stage.name: stage.seconds for stage in run_plan.plan(config, params, counts, machine)}


def test_a_pass_of_the_2b_model_costs_what_it_costs_by_hand(config, paper, monkeypatch):
    """Layers 1.31e9 weights, 2048 patches: 3.3 TFLOP for the tower, 2 FLOPs a weight and token for the rest."""
    clock = Clock(config, paper, "rarl", CARD)
    assert clock.sizes.patches == 2048 and clock.sizes.image_tokens == 512
    assert clock.encode(1) == pytest.approx(3.3, rel=0.05)
    by_hand = 2 * 1.31e9 * clock.prompt / 1e12
    assert clock.forward(1) == pytest.approx(by_hand, rel=0.05)
    assert clock.forward(2) == pytest.approx(2 * clock.forward(1))
    rows = clock.forward(1, 8, 200) - clock.forward(1)
    assert rows == pytest.approx(2 * (1.31e9 + 0.233e9) * 8 * run_plan.SHARE * 200 / 1e12, rel=0.1)


def test_decoding_reads_the_weights_unless_its_products_take_longer(config, paper):
    few, slow = Clock(config, paper, "rarl", CARD), replace(CARD, bandwidth=1e12 / run_plan.EFFICIENCY)
    reading = (1.31e9 + 0.233e9) * 2 / 1e12
    assert Clock(config, paper, "rarl", slow).decode(1, 10) == pytest.approx(10 * reading, rel=0.01)
    assert few.decode(64, 10) == pytest.approx(10 * 2 * 1.543e9 * 64 * run_plan.SHARE / 1e12, rel=0.01)


def test_time_grows_with_rows_group_and_lengths_and_shrinks_with_gpus(config, paper):
    before = planned(config, paper)
    assert list(before) == [
        "encode_training",
        "encode_benchmarks",
        "sft",
        "rarl",
        "infer_base",
        "infer_sft",
        "infer_rarl",
    ]
    more = planned(config, paper, replace(COUNTS, train=7160, images=3650))
    assert more["sft"] > 8 * before["sft"] and more["encode_training"] > 8 * before["encode_training"]
    assert more["infer_base"] == before["infer_base"]
    two = paper.model_copy(deep=True)
    two.accelerate.processes = 2
    assert planned(config, two)["infer_base"] < 0.6 * before["infer_base"]
    paper.rl.group_size *= 2
    larger = planned(config, paper)
    assert larger["rarl"] > 1.3 * before["rarl"] and larger["sft"] == before["sft"]
    paper.decoding.max_new_tokens *= 2
    assert planned(config, paper)["infer_base"] > larger["infer_base"]


def test_checkpointing_is_planned_where_the_card_needs_it(config, paper):
    paper.train.gradient_checkpointing = "auto"
    [large, small] = [
        next(one for one in run_plan.plan(config, paper, COUNTS, replace(CARD, memory=gb)) if one.name == "rarl")
        for gb in (80, 12)
    ]
    assert small.memory < 12 < large.memory and small.seconds > large.seconds


def test_steps_are_those_of_the_trainers(paper):
    paper.sft.epochs, paper.sft.batch_size = 2, 16
    assert run_plan.steps(paper, "sft", 100) == 13
    paper.rl.max_steps, paper.rl.epochs, paper.rl.prompts_per_step, paper.rl.num_iterations = -1, 1, 3, 2
    assert run_plan.steps(paper, "rarl", 100) == 68
    paper.rl.max_steps = 7
    assert run_plan.steps(paper, "rarl", 100) == 7


def test_the_disk_and_the_judges_bill(config, paper):
    disk = run_plan.disk(config, paper, COUNTS)
    assert disk["base"] == pytest.approx(4.42, abs=0.05)
    assert disk["features"] == pytest.approx(765 * 1.57e-3, rel=0.01), "1.6 MB an image"
    calls = sum(run_plan.answered(paper, COUNTS).values())
    asked = paper.model_copy(update={"judges": ["lexical", "gpt_4o_mini"]})
    free, priced = run_plan.judges(asked, COUNTS)
    assert free == f"lexical: {calls:,} verdicts on this machine, free"
    assert f"at most {calls:,} calls" in priced and "(max_cost_usd: 20)" in priced
    price = float(priced.split(" USD")[0].rsplit(" ", 1)[1])
    assert 0.15 * 200 * calls / 1e6 < price < 0.15 * 5000 * calls / 1e6 + 0.6 * 80 * calls / 1e6
    judged = {"reasoning": "judge", "judge": "gpt_4o_mini"}
    asked = paper.model_copy(update={"judges": ["lexical"], "reward": Reward(**judged)})
    calls = COUNTS.train * paper.rl.epochs * paper.rl.group_size
    assert f"gpt_4o_mini, reasoning reward of rarl: at most {calls:,.0f} calls" in run_plan.judges(asked, COUNTS)[1]


def test_stages_without_a_model_take_what_was_measured_per_row(paper):
    assert run_plan.without_model(paper, COUNTS) == []
    took = {"curate": 4, "audit": 2, "benchmark_own": 1, "score_base": 3, "score_rarl": 3, "report": 10}
    stages = [{"stage": name, "processor_seconds": seconds} for name, seconds in took.items()]
    write_json(run_plan.SCALE, {"results": [{"rows": 1000, "stages": stages}]})
    reading, answers = run_plan.without_model(paper, COUNTS)
    assert reading == ("curate, benchmark, audit", "2059 rows", pytest.approx((998 * 6 + 1061 * 3) / 1000))
    calls = sum(run_plan.answered(paper, COUNTS).values())
    assert answers[2] == pytest.approx(calls * (3 + 5) / 1000)


def test_published_rows_where_no_run_has_read_any(paper):
    counts = run_plan.count_rows(paper)
    assert (counts.train, counts.dev, counts.test["silvar_med"], counts.images) == (716, 132, 150, 365)
    own = paper.model_copy(deep=True)
    own.train.source = "own"
    with pytest.raises(UserError, match="dvc repro curate"):
        run_plan.count_rows(own)


def test_rows_of_the_last_run_of_these_releases(repository, monkeypatch):
    monkeypatch.chdir(repository)
    counts = run_plan.count_rows(load_params())
    assert counts.test["path_vqa"] == 100 and counts.train == 716


def test_cards_are_named_with_their_source():
    for name, card in run_plan.cards().items():
        assert card.flops > 5e13 and card.bandwidth > 1e11 and 16 <= card.memory <= 200 and "NVIDIA" in card.source, (
            name
        )
    listed = CliRunner().invoke(main, ["--card", "list"]).output
    assert "h100_sxm: 989 TFLOPS, 3350 GB/s, 80 GB" in listed


def test_the_command_plans_a_base_on_cards(repository, monkeypatch):
    monkeypatch.chdir(repository)
    options = ["--base", "qwen2_vl_2b", "--card", "l4", "--gpus", "2", "--rows", "5000", "-S", "rl.group_size=16"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert "qwen2_vl_2b on 2 x l4: 121 TFLOPS" in result.output and "Training rows 5,000" in result.output
    assert "| total |" in result.output and "lexical: " in result.output
    assert "no card" in CliRunner().invoke(main, ["--card", "gtx"]).output
    assert "KEY=VALUE" in CliRunner().invoke(main, ["-S", "rl.group_size"]).output
    wrong = CliRunner().invoke(main, ["-S", "rl.group_size=1"])
    assert wrong.exit_code == 1 and "group_size" in wrong.output


def test_a_card_that_is_too_small_is_named(repository, monkeypatch):
    monkeypatch.chdir(repository)
    output = (
        CliRunner().invoke(main, ["--base", "qwen2_5_vl_7b", "--card", "a10", "-S", "train.trainable=full"]).output
    )
    assert "does not fit into 24 GB: `rarl memory`" in output


def test_the_plan_is_compared_with_a_run_and_scaled_by_it(repository, monkeypatch, tmp_path):
    for name in ("params.yaml", "dvc.lock", "metrics", "data/base"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(repository / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "COSTS", tmp_path / "cost")
    monkeypatch.setattr(run_plan, "this_machine", lambda params: replace(CARD, device="cpu"))
    assert "no times of the stages" in CliRunner().invoke(main, ["--measured"]).output
    _, _, stages = run_plan.planned(load_params())
    write_json("cost/sft.json", {"seconds": 2 * next(one.seconds for one in stages if one.name == "sft")})
    compared = CliRunner().invoke(main, ["--measured"]).output
    assert "| 0.50 |" in compared and "| sft |" in compared and "| grpo |" not in compared
    assert "All times are scaled by 2.00" in CliRunner().invoke(main, []).output
    write_json("cost/infer_sft.json", {"seconds": 0.2})
    assert "ran ahead" in CliRunner().invoke(main, ["--measured"]).output
