"""`score` and `report` end to end, as real commands' code on small, well-formed files."""

import copy
import csv
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

import stages.report
import stages.score
from rarl.params import load_params
from rarl.profiles import put
from rarl.records import Prediction, Sample, Verdict, predictions_file, read_records, write_json, write_records
from rarl.reporting import page, tables
from rarl.reporting.inputs import Run
from rarl.reporting.scoring import WITHOUT_OWN_TEST, outside_own_test, score_cell

OWN_TEST = "silvar_med"
SKILL = {"base": 0.35, "sft": 0.6, "grpo": 0.62, "rarl": 0.75}
#: What has no default, over the embedded profile: the tests do not hang on the repository's params.yaml.
PARAMS = {
    "grpo": {"prompts": ["reasoning"], "rewards": {}},
    "rarl": {"prompts": ["explanation", "short", "open"], "rewards": {"reasoning": 1.0}},
    "benchmarks": ["slake", "vqa_rad", "vqa_med", "path_vqa", "cv_bench"],
    "models": ["base", "sft", "grpo", "rarl"],
    "modes": ["reasoning", "direct", "blank"],
    "mode": {
        "reasoning": {"prompt": "reasoning"},
        "direct": {"prompt": "direct"},
        "blank": {"prompt": "reasoning", "image": "blank", "own_test_only": True},
    },
    "judges": ["lexical", "semantic", "truth"],
    "judge": {
        "lexical": {"kind": "lexical"},
        "semantic": {"kind": "semantic", "threshold": 0.8, "reasoning_threshold": 0.7},
        "truth": {"kind": "truth"},
    },
}


def make_run(
    root: Path, rows: int = 60, annotated: bool = True, truth: bool = True, logs: bool = True, seed: int = 3, **changes
) -> None:
    """Write every input of `score` and `report` under `root`: params, samples, images, predictions,
    verdicts, logs and counts.

    Args:
        annotated: half of the own-test and training rows carry a reasoning text.
        truth: the truth judge scores; otherwise every verdict of it is unscored, as on real data.
        changes: keys of params.yaml to replace; `data__root` stands for `data.root`.
    """
    profile = Path(page.__file__).parents[1] / "profiles" / "embedded.yaml"
    raw = YAML(typ="safe", pure=True).load(profile.read_text(encoding="utf-8")) | copy.deepcopy(PARAMS)
    for key, value in changes.items():
        put(raw, key.replace("__", "."), value)
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(raw, file)
    params = load_params(root / "params.yaml")
    rng = random.Random(seed)
    images = root / params.data.root
    own = _samples(rng, images, OWN_TEST, "test", rows, annotated)
    write_records(root / "data/curated/test.jsonl", own)
    for split in ("train", "dev"):
        write_records(root / f"data/curated/{split}.jsonl", _samples(rng, images, OWN_TEST, split, rows, annotated))
    sets = {OWN_TEST: own}
    for name in params.benchmarks:
        # A missing release leaves an empty file.
        sets[name] = _samples(rng, images, name, "test", rows if name != "cv_bench" else 0, False)
        if name == "slake":  # the own test lies inside SLAKE
            sets[name] += [s.model_copy(update={"id": f"slake/{s.id}", "reasoning": None}) for s in own[:20]]
        write_records(root / f"data/benchmarks/{name}.jsonl", sets[name])
        write_json(root / f"metrics/benchmark/{name}.json", {"total": len(sets[name]), "kinds": {"open": 4}})
    for model in params.models:
        for mode in params.modes_of(model):
            for name in params.sets_of(mode):
                _answers(rng, root, params, model, mode, name, sets[name], truth)
    write_json(
        root / "metrics/curate.json",
        {
            split: {"total": rows, "mri": 10, "ct": 8, "xray": rows - 18, "yes_no": 31, "annotated": rows // 2}
            for split in ("train", "dev", "test")
        }
        | {"explanations": {"read": 40, "matched_rows": 30, "without_a_row": 10}},
    )
    counts = {"rows": 1061, "read": rows, "refused": 3, "missing_rows": 0, "conflicting_groups": 7}
    write_json(
        root / "metrics/audit.json",
        {
            "sets": {
                OWN_TEST: {"train": counts, "test": {**counts, "near_duplicates_of_own_train": 5}},
                "slake": {"train": counts, "test": {**counts, "rows_with_own_train_image": 12}},
            },
            "deviations": [],
        },
    )
    for method in ("sft", "grpo", "rarl") if logs else ():
        if method in params.models:
            _log(rng, root, method)


def _samples(rng: random.Random, folder: Path, dataset: str, split: str, rows: int, annotated: bool) -> list[Sample]:
    samples = []
    for i in range(rows):
        name = f"{dataset}/{split}{i // 2}.png"
        if i % 2 == 0:
            picture = Image.new("L", (112, 112), 18)
            draw = ImageDraw.Draw(picture)
            draw.ellipse((14, 10, 98, 104), fill=70 + rng.randrange(50))
            x, y, r = rng.randrange(30, 70), rng.randrange(30, 70), rng.randrange(4, 14)
            draw.ellipse((x, y, x + r, y + r), fill=210)
            (folder / dataset).mkdir(parents=True, exist_ok=True)
            picture.save(folder / name)
        kind, question, answers = rng.choice(
            [
                ("yes_no", f"Does shape {i} look bright?", ["Yes"]),
                ("yes_no", f"Is shape {i} small?", ["No"]),
                ("open", "What is shown on the left?", ["disc, ring"]),
                ("choice", "Disc or ring?", ["Ring"]),
            ]
        )
        samples.append(
            Sample(
                id=f"{dataset}/{split}/{i}",
                dataset=dataset,
                split=split,
                image=name,
                image_sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                question=question,
                answers=answers,
                reasoning="A bright disc lies left of the middle, so there is a finding."
                if annotated and i % 2
                else None,
                kind=kind,
                choices=["disc", "ring"] if kind == "choice" else [],
                modality=rng.choice(["mri", "ct", "xray"]),
            )
        )
    return samples


def _answers(rng, root, params, model, mode, name, samples, truth) -> None:
    skill = 0.3 if params.mode[mode].image == "blank" else SKILL.get(model, 0.5) - 0.05 * (mode == "direct")
    predictions, right = [], []
    for s in samples:
        good = rng.random() < skill
        error = "image unreadable" if rng.random() < 0.01 else None
        answer = s.answers[0] if good else rng.choice(["", "maybe <b>ring</b>", "nothing"])
        think = "The disc on the left is <i>bright</i>, its edge is sharp. " * rng.choice([1, 4])
        predictions.append(
            Prediction(
                id=s.id,
                completion=f"<answer>{answer}</answer>",
                think=think if mode == "reasoning" else None,
                answer="" if error else answer,
                tokens=30,
                truncated=not good and rng.random() < 0.2,
                error=error,
            )
        )
        right.append(good)
    write_records(root / f"data/predictions/{model}/{mode}/{name}.jsonl", predictions)
    for judge in params.judges:
        verdicts = []
        for s, p, good in zip(samples, predictions, right):
            score = int(good) if judge == params.judges[0] or rng.random() < 0.9 else int(not good)
            reasoning = int(rng.random() < skill) if s.reasoning else None
            if p.error or (params.judge[judge].kind == "truth" and not truth):
                verdicts.append(Verdict(id=s.id, unscored=p.error or "no truth is known of this image"))
            else:
                verdicts.append(Verdict(id=s.id, prediction_score=score, reasoning_score=reasoning))
        write_records(root / f"data/verdicts/{model}/{judge}/{mode}/{name}.jsonl", verdicts)


def _log(rng, root, method) -> None:
    rl = method != "sft"
    names = ["reward_format", "reward_length", "reward_accuracy", *(["reward_reasoning"] if method == "rarl" else [])]
    columns = [
        "step",
        "loss",
        "dev_score",
        *(["reward", *names, "kl", "completion_length", "zero_signal_share"] if rl else []),
    ]
    path = root / f"metrics/train/{method}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for step in range(1, 121):
            rise = 1 - 2.7 ** (-step / 40)
            row = {"step": step, "loss": 2 * (1 - rise) + rng.random() / 5}
            if step % 20 == 0:
                row["dev_score"] = round(30 + 40 * rise + rng.random() * 4, 2)
            if rl:
                parts = {n: min(1.0, rise * 0.8 + rng.random() / 4) for n in names}
                row |= {
                    **parts,
                    "reward": sum(parts.values()),
                    "kl": rise / 9,
                    "completion_length": 20 + 20 * rise,
                    "zero_signal_share": rng.random() / 3,
                }
            writer.writerow(row)
    metrics = {"steps": 120, "trainable_parameters": 61440, "best_step": 100, "dev_score": 66.67}
    if rl:
        for name in ["reward", *names]:
            metrics |= {f"{name}_first": 0.31, f"{name}_last": 1.87}
    write_json(root / f"metrics/train/{method}.json", metrics)


def score_and_report(root: Path, monkeypatch) -> tuple[str, str]:
    """Run both stages in `root`; the page and what the report printed."""
    monkeypatch.chdir(root)
    runner = CliRunner()
    for model in load_params().models:
        result = runner.invoke(stages.score.main, ["--model", model], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    result = runner.invoke(stages.report.main, [], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Path("data/report/report.html").read_text(encoding="utf-8"), result.output


def load(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_scores_count_what_was_judged(full):
    root, _, _ = full
    scores = load(root / "metrics/scores/sft.json")
    cell = scores["reasoning"][OWN_TEST]["lexical"]
    lines = [
        json.loads(x) for x in (root / f"data/verdicts/sft/lexical/reasoning/{OWN_TEST}.jsonl").open(encoding="utf-8")
    ]
    finals = [x["prediction_score"] for x in lines if x["prediction_score"] is not None]
    reasonings = [x["reasoning_score"] for x in lines if x["reasoning_score"] is not None]
    assert cell["n"] == len(finals) and cell["unscored"] == len(lines) - len(finals)
    assert cell["final"] == round(100 * sum(finals) / len(finals), 2)
    assert cell["reasoning"] == round(100 * sum(reasonings) / len(reasonings), 2)
    assert cell["reasoning_n"] == len(reasonings) < cell["n"]
    assert cell["final_low"] < cell["final"] < cell["final_high"]
    assert list(scores) == ["reasoning", "direct", "blank"]
    assert list(scores["blank"]) == [OWN_TEST]
    assert scores["reasoning"]["vqa_rad"]["lexical"]["reasoning"] is None
    empty = scores["reasoning"]["cv_bench"]["lexical"]
    assert empty["n"] == 0 and empty["final"] is None and empty["final_low"] is None
    assert scores["reasoning"]["slake"]["lexical"]["n"] - scores["reasoning"][WITHOUT_OWN_TEST]["lexical"][
        "n"
    ] in range(15, 21)


def test_score_cell_blames_the_right_one():
    predictions = [
        Prediction(id="a", completion="", answer=""),
        Prediction(id="b", completion="x", answer="x", truncated=True),
        Prediction(id="c", completion="", answer="", error="image unreadable"),
    ]
    verdicts = [
        Verdict(id="a", prediction_score=0),
        Verdict(id="b", prediction_score=1, reasoning_score=0),
        Verdict(id="c", unscored="image unreadable"),
    ]
    cell = score_cell(predictions, verdicts, "abc", 0.95)
    assert (cell["final"], cell["n"], cell["unscored"], cell["empty"], cell["truncated"]) == (50.0, 2, 1, 1, 1)
    assert (cell["reasoning"], cell["reasoning_n"]) == (0.0, 1)
    assert (cell["n_effective"], cell["reasoning_n_effective"]) == (2.0, 1.0)


def test_form_is_counted_apart_from_what_answers_say():
    completions = {
        "<think>A mass.</think> <answer>Yes</answer>": "Yes",
        "<think>A mass.</think> <ANSWER>\nYes it is\n</ANSWER>": "Yes it is",
        "<answer>Yes": "<answer>Yes",
        "The lung shows a mass.": "The lung shows a mass.",
    }
    predictions = [Prediction(id=c, completion=c, answer=a) for c, a in completions.items()]
    predictions.append(Prediction(id="lost", completion="", answer="", error="image unreadable"))
    verdicts = [Verdict(id=p.id, prediction_score=None if p.error else 1) for p in predictions]
    cell = score_cell(predictions, verdicts, "aabbc", 0.95)
    assert (cell["untagged"], cell["answer_words"]) == (50.0, 2.5)
    assert cell["n"] == 4 and cell["n_effective"] < 2, "two images, all right"
    assert score_cell(predictions, verdicts, "aabbc", 0.95, marks=None)["untagged"] is None
    nothing = score_cell([], [], [], 0.95)
    assert nothing["untagged"] is nothing["answer_words"] is nothing["n_effective"] is None


def test_form_and_effective_n_stand_beside_the_scores(full):
    root, html, output = full
    scores = load(root / "metrics/scores/sft.json")
    for mode, asked in (("reasoning", True), ("direct", False)):
        cell = scores[mode][OWN_TEST]["lexical"]
        assert (cell["untagged"] == 0.0) is asked and cell["answer_words"] > 0
        assert 0 < cell["n_effective"] <= cell["n"]
    with open(root / "metrics/tables/own_test.csv", encoding="utf-8", newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert float(rows["sft"]["form_blind"]) == scores["reasoning"][OWN_TEST]["semantic"]["final"]
    assert rows["sft, direct"]["untagged"] == "" and rows["most_frequent_by_kind"]["form_blind"] == ""
    section = html[html.index('id="own-test"') : html.index('id="tests"')]
    assert "By semantic" in section and "tags not asked for" in section
    assert f"effective {cell['n_effective']:.1f}" in section
    assert "not asked for" in output and "effective" in output
    with open(root / "metrics/tables/breakdown.csv", encoding="utf-8", newline="") as file:
        assert all(row["form_blind"] and row["n_effective"] for row in csv.DictReader(file) if row["final"])


@pytest.mark.parametrize("judges", [["lexical"], ["semantic", "lexical"]])
def test_no_form_blind_judge_beside_the_main_one(tmp_path, monkeypatch, judges):
    make_run(
        tmp_path, rows=10, models=["base"], judges=judges, benchmarks=[], logs=False, report__main_judge=judges[0]
    )
    html, _ = score_and_report(tmp_path, monkeypatch)
    assert Run(load_params()).form_blind_judge is None and '<th scope="col">By ' not in html


def test_a_verdict_that_depends_on_the_judge_is_a_warning(tmp_path, monkeypatch):
    """The base answers in sentences, which only one judge accepts."""
    make_run(tmp_path, models=["base", "sft"], judges=["lexical", "semantic"], benchmarks=[], modes=["reasoning"])
    right = {("base", "lexical"): 20, ("base", "semantic"): 50, ("sft", "lexical"): 50, ("sft", "semantic"): 50}
    for (model, judge), count in right.items():
        path = tmp_path / f"data/verdicts/{model}/{judge}/reasoning/{OWN_TEST}.jsonl"
        ids = [verdict.id for verdict in read_records(path, Verdict)]
        write_records(path, [Verdict(id=id, prediction_score=int(i < count)) for i, id in enumerate(ids)])
    path = tmp_path / predictions_file("base", "reasoning", OWN_TEST)
    replies = read_records(path, Prediction)
    write_records(path, [r.model_copy(update={"completion": "The answer is yes."}) for r in replies])
    html, output = score_and_report(tmp_path, monkeypatch)
    for text in (html, " ".join(output.split()), Path("data/report/report.md").read_text(encoding="utf-8")):
        assert "WARNING: 1 of 1 comparisons between models depends on the judge: SFT against Base is better by" in text
        assert "better by lexical, not told apart by semantic" in text
        assert "Base 100.0 %" in text, "all completions lack tags"
    same = tmp_path / f"data/verdicts/base/semantic/reasoning/{OWN_TEST}.jsonl"
    same.write_bytes((tmp_path / f"data/verdicts/base/lexical/reasoning/{OWN_TEST}.jsonl").read_bytes())
    html, _ = score_and_report(tmp_path, monkeypatch)
    assert "WARNING" not in html


def test_own_test_rows_are_recognised_by_image_and_question(full):
    root, _, _ = full
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run = Run(load_params())
        kept = outside_own_test(run.samples["slake"], run.samples[OWN_TEST])
    assert kept.count(False) == 20 and not any(kept[-20:])


@pytest.mark.parametrize("change", ["missing row", "foreign row", "twice", "missing file"])
def test_a_file_that_does_not_fit_is_refused(tmp_path, monkeypatch, change):
    make_run(tmp_path, rows=20, models=["base"], judges=["lexical"], benchmarks=[], modes=["reasoning"], logs=False)
    path = tmp_path / f"data/verdicts/base/lexical/reasoning/{OWN_TEST}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if change == "missing row":
        path.write_text("".join(lines[1:]), encoding="utf-8")
    elif change == "foreign row":
        path.write_text("".join([lines[0].replace("test/0", "test/999"), *lines[1:]]), encoding="utf-8")
    elif change == "twice":
        path.write_text("".join([*lines, lines[0]]), encoding="utf-8")
    else:
        path.unlink()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(stages.score.main, ["--model", "base"])
    assert result.exit_code == 1
    assert path.name in result.output and "expected" in result.output and "Traceback" not in result.output
    assert not (tmp_path / "metrics/scores/base.json").exists()


def test_paper_figures_are_those_of_the_paper():
    cells = [
        cell
        for name in ("table3", "table6")
        for row in tables.paper()[name]["rows"]
        for figures in row["sets"].values()
        for cell in figures.values()
    ]
    finals = [c["final"] for c in cells]
    own = [row["sets"][OWN_TEST] for name in ("table3", "table6") for row in tables.paper()[name]["rows"]]
    values = [v for figures in own for cell in figures.values() for v in cell.values()]
    assert len(cells) == 44 and len(values) == 24
    # Checksums of the printed columns: a figure copied wrongly changes them.
    assert round(sum(finals), 2) == 1946.4
    assert round(sum(c["reasoning"] for c in cells if c["reasoning"] is not None), 2) == 806.16
    fits = [v for v in values if min(abs(v - 100 * k / 148) for k in range(149)) < 0.011]
    assert len(fits) == 22  # the paper's own-test figures are of 148 questions
    assert not [v for v in values if min(abs(v - 100 * k / 150) for k in range(151)) < 0.0051]


def test_summary_is_short_and_numeric(full):
    root, _, _ = full
    summary = load(root / "metrics/summary.json")
    leaves = page.flatten(summary)
    assert all(isinstance(v, float) for v in leaves.values()) and len(leaves) <= 44
    assert set(summary) == {"base", "sft", "grpo", "rarl"}
    assert set(summary["rarl"]["reasoning"][OWN_TEST]) == {"final", "reasoning"}
    assert set(summary["rarl"]["reasoning"]["slake"]) == {"final"}
    assert set(summary["rarl"]["direct"]) == {OWN_TEST}
    assert "cv_bench" not in summary["rarl"]["reasoning"]
    scores = load(root / "metrics/scores/rarl.json")
    assert summary["rarl"]["reasoning"]["vqa_rad"]["final"] == scores["reasoning"]["vqa_rad"]["lexical"]["final"]


def test_tables_are_written_for_dvc(full):
    root, _, _ = full
    rows = {p.stem: list(csv.DictReader(p.open(encoding="utf-8"))) for p in (root / "metrics/tables").iterdir()}
    assert set(rows) == {
        "table3", "table6", "claims", "own_test", "paired_tests", "detectable", "grounding",
        "breakdown", "yes_no", "agreement", "reward_gap",
    }  # fmt: skip
    own = rows["own_test"]
    labels = [r["label"] for r in own]
    assert len(set(labels)) == len(labels) == 4 * 3 + 2
    assert {"most_frequent_by_kind", "most_frequent_by_question"} < set(labels)
    ours = [r for r in rows["table3"] if r["source"] == "ours" and r["set"] == OWN_TEST and r["judge"] == "lexical"]
    scores = load(root / "metrics/scores/grpo.json")
    assert float(ours[1]["final"]) == scores["reasoning"][OWN_TEST]["lexical"]["final"]
    direct = [r for r in rows["table6"] if r["source"] == "ours" and r["prompt"] == "direct" and r["set"] == "slake"]
    assert float(direct[0]["final"]) == load(root / "metrics/scores/rarl.json")["direct"]["slake"]["lexical"]["final"]
    assert len([r for r in rows["table3"] if r["source"] == "paper"]) == 22
    between = [r for r in rows["paired_tests"] if r["family"] == "between models"]
    assert len(between) == 6 and all(float(r["p_holm"]) >= float(r["p"]) for r in between)
    assert {(r["first"], r["second"]) for r in rows["agreement"]} == {
        ("lexical", "semantic"),
        ("lexical", "truth"),
        ("semantic", "truth"),
    }
    gap = next(r for r in rows["reward_gap"] if (r["model"], r["judge"], r["score"]) == ("sft", "lexical", "final"))
    cells = load(root / "metrics/scores/sft.json")["reasoning"][OWN_TEST]
    assert float(gap["gap"]) == pytest.approx(cells["lexical"]["final"] - cells["truth"]["final"], abs=0.006)


def test_page_is_self_contained_and_escapes_what_models_say(full):
    _, html, output = full
    beside = r"cases\.html|report\.md|disagreements\.csv|\.\./\.\./metrics/cost/cost\.js"
    assert not re.search(rf"""(src|href)=["'](?!data:|#|{beside})""", html)
    links = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html).replace("http://localhost:8000", "")  # a parameter
    assert "@import" not in html and html.count("<script") == 2 and "://" not in links
    shown = html.count('<article class="sample')
    assert html.count("data:image/jpeg;base64,") == shown > page.GALLERY
    assert "maybe &lt;b&gt;ring" in html and "<b>ring" not in html and "<i>bright" not in html
    assert "PHANTOM RESULTS" in html and "PHANTOM RESULTS" in output
    assert html.count("<svg") == 7
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert anchor in ids
    assert str(Path.home()) not in html and "nan" not in re.findall(r">\s*nan\b", html)


def test_page_shows_the_audit_of_what_is_trained_on_and_evaluated(full):
    _, html, _ = full
    section = html[html.index("<h3>Audit</h3>") : html.index('id="gallery"')]
    lines = [re.findall(r"<(?:td|th scope=.row.)[^>]*>(.*?)</t[dh]>", row) for row in section.split("<tr>")[2:5]]
    assert [line[:2] for line in lines] == [["Own rows", "train"], ["Own rows", "test"], ["SLAKE", "test"]]
    assert lines[2][2:] == ["1,061", "60", "3", "0", "12", "–", "7"]
    assert "40 read, 30 matched rows" in html and "data_card.html" in html


def test_same_input_same_bytes(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, models=["base", "grpo"], judges=["lexical"], benchmarks=["slake"])
    first, _ = score_and_report(tmp_path, monkeypatch)
    second, _ = score_and_report(tmp_path, monkeypatch)
    assert first == second


def test_shortened_lists(tmp_path, monkeypatch):
    make_run(
        tmp_path,
        models=["base", "sft"],
        judges=["lexical"],
        benchmarks=[],
        modes=["direct"],
        annotated=False,
        logs=False,
    )
    html, output = score_and_report(tmp_path, monkeypatch)
    assert load(tmp_path / "metrics/summary.json").keys() == {"base", "sft"}
    assert "not in this run" in html and "no agreement to measure" in html
    assert "reasoning reward was idle" in html
    assert "not annotated" in output


def test_real_data_without_truth_or_annotation(tmp_path, monkeypatch):
    make_run(tmp_path, rows=30, annotated=False, truth=False, data__root="data/raw", benchmarks=["slake", "cv_bench"])
    html, output = score_and_report(tmp_path, monkeypatch)
    assert "PHANTOM" not in html + output
    assert "scored nothing on these data" in html and "not annotated" in html
    table3 = (tmp_path / "metrics/tables/table3.csv").read_text(encoding="utf-8")
    assert ",truth," not in table3
    assert "reasoning" not in load(tmp_path / "metrics/summary.json")["rarl"]["reasoning"][OWN_TEST]
    assert (tmp_path / "metrics/tables/reward_gap.csv").read_text(encoding="utf-8").count("\n") == 1


def test_a_main_judge_that_scored_nothing(tmp_path, monkeypatch):
    make_run(
        tmp_path,
        rows=20,
        truth=False,
        benchmarks=[],
        models=["base"],
        modes=["reasoning", "blank"],
        judges=["lexical", "truth"],
        report__main_judge="truth",
    )
    html, _ = score_and_report(tmp_path, monkeypatch)
    assert load(tmp_path / "metrics/summary.json") == {}
    assert "there are no findings" in html


def test_replies_that_were_cut_off_are_said(tmp_path, monkeypatch):
    make_run(tmp_path, rows=10, models=["base"], judges=["lexical"], benchmarks=[], logs=False)
    path = tmp_path / predictions_file("base", "reasoning", OWN_TEST)
    replies = read_records(path, Prediction)
    for cut, said in ((0, False), (3, True)):
        write_records(path, [r.model_copy(update={"truncated": i < cut}) for i, r in enumerate(replies)])
        html, _ = score_and_report(tmp_path, monkeypatch)
        assert ("truncated at 96 tokens" in html and f"Base {cut} of 10" in html) is said


def test_scores_that_are_missing_are_named(tmp_path, monkeypatch):
    make_run(tmp_path, rows=10, models=["base"], judges=["lexical"], benchmarks=[], logs=False)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(stages.report.main, [])
    assert result.exit_code == 1 and "metrics/scores/base.json" in result.output
    assert "Traceback" not in result.output


def test_models_left_from_an_earlier_run_are_not_read(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, models=["base"], judges=["lexical"], benchmarks=[])
    (tmp_path / "metrics/scores").mkdir(parents=True)
    (tmp_path / "metrics/scores/rarl.json").write_text("left over", encoding="utf-8")
    html, _ = score_and_report(tmp_path, monkeypatch)
    assert list(load(tmp_path / "metrics/summary.json")) == ["base"]
    assert "left over" not in html


def test_an_image_that_is_gone_does_not_stop_the_page(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, models=["base"], judges=["lexical"], benchmarks=[], modes=["reasoning"])
    for path in (tmp_path / "data/phantom" / OWN_TEST).iterdir():
        path.unlink()
    html, _ = score_and_report(tmp_path, monkeypatch)
    assert "image not readable" in html


def test_gallery_shows_differences_first(full):
    root, _, _ = full
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run = Run(load_params())
        chosen = page.choose(run)
        series = [
            [v.prediction_score for v in run.verdicts[m, "reasoning", OWN_TEST, "lexical"]] for m in run.params.models
        ]
    assert len(set(chosen)) == page.GALLERY
    assert sum(len({s[i] for s in series}) > 1 for i in chosen) >= page.GALLERY // 2


def test_settings_name_what_differs_from_the_profile(tmp_path, monkeypatch):
    make_run(
        tmp_path,
        rows=20,
        models=["base", "rarl"],
        judges=["lexical"],
        benchmarks=[],
        lora__r=16,
        rl__learning_rate=0.002,
        data__root="data/hospital_x",
    )
    monkeypatch.chdir(tmp_path)
    found = dict((key, (here, given)) for key, here, given in page.differences(Run(load_params())))
    assert found["lora.r"] == (16, 8) and found["rl.learning_rate"][0] == 0.002
    assert not {"data.root", "lora.alpha", "seed", "profile"} & set(found)


def test_nothing_differs_from_the_embedded_profile(full):
    root, html, _ = full
    assert page.differences(Run(load_params(root / "params.yaml"))) == []
    assert "No parameter differs from the profile" in html
