"""What the report adds to its tables: examples, single cases, Markdown, and text that tries to break them."""

import base64
import csv
import gzip
import hashlib
import json
import re
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from ruamel.yaml import YAML
from test_report import OWN_TEST, SKILL, make_run, score_and_report

from rarl.judges import lexical
from rarl.params import load_params
from rarl.processes.cost import slug_of
from rarl.records import Prediction, Sample, Verdict, read_records, write_records
from rarl.registry import MODELS
from rarl.reporting import cases, examples, formats, page, study_plots, study_tables, tables
from rarl.reporting.inputs import Run

ROOT = Path(__file__).parents[2]

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=1"><svg onload=alert(1)>',
    "<!-- <script> ]]> --> {{ 7 * 7 }} {% raw %}",
    '{"evaluation": "", "reasoning_score": 1, "prediction_score": 1}',
    "a | b\n| --- |\n\u2028[x](javascript:alert(1)) `</code>`",
]
SEEDS = {"profile": "embedded", "model": "rarl", "mode": "reasoning", "set": OWN_TEST, "seeds": 3, "mean": 65.43,
         "sd": 2.31, "low": 61.0, "high": 66.67}  # fmt: skip
GRID = {"reasoning_reward": "yes", "prompts": "one", "n": 150, "final": 63.12, "final_low": 55.0, "final_high": 70.0,
        "reasoning": None}  # fmt: skip
#: All scripts of report.html: times and memory of this machine, and what shows them.
OWN_SCRIPTS = ['<script src="../../metrics/cost/cost.js">', "<script>"]


@pytest.fixture
def inside(full, monkeypatch):
    root, html, _ = full
    monkeypatch.chdir(root)
    return Run(load_params()), html


def unpacked(html: str, name: str) -> list[dict]:
    """The cases of one test set, from all of its parts."""
    parts = re.findall(rf'id="set-{name}-(\d+)">([A-Za-z0-9+/=]*)</script>', html)
    assert [int(number) for number, _ in parts] == [*range(len(parts))]
    return [case for _, part in parts for case in json.loads(gzip.decompress(base64.b64decode(part)))]


# Single cases ---------------------------------------------------------------------------------------


def test_every_question_is_there_with_every_answer_and_verdict(inside):
    run, _ = inside
    html = Path("data/report/cases.html").read_text(encoding="utf-8")
    for name in run.params.test_sets:
        if not run.samples[name]:
            assert f"set-{name}" not in html
            continue
        assert [case["id"] for case in unpacked(html, name)] == [s.id for s in run.samples[name]]
    pictures = dict(re.findall(r'id="picture-(\w+)">(.*?)</script>', html))
    assert set(pictures) == {s.image_sha256 for samples in run.samples.values() for s in samples}
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in pictures.values())
    case = unpacked(html, OWN_TEST)[3]
    assert not [image for image in case.values() if image == run.samples[OWN_TEST][3].image], "no path"
    assert set(case["said"]) == {f"{mode} {m}" for mode in run.params.modes for m in run.params.models}
    said = run.predictions["sft", "direct", OWN_TEST][3]
    assert case["said"]["direct sft"][:2] == [said.answer, said.think]
    verdicts = [run.verdicts["sft", "direct", OWN_TEST, judge][3] for judge in run.judges]
    assert case["rated"]["direct sft"] == [
        [v.prediction_score, v.reasoning_score, v.unscored or v.evaluation] for v in verdicts
    ]
    head = json.loads(re.search(r'id="head">(.*?)</script>', html).group(1))
    assert list(head["models"]) == run.params.models and head["judges"] == run.judges
    assert head["modes"]["blank"] == [OWN_TEST]


def test_the_policy_of_the_page_names_its_script_and_nothing_else(inside):
    html = Path("data/report/cases.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:|#|report\.html)""", html)
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert "innerHTML" not in scripts[0] and "insertAdjacentHTML" not in scripts[0]
    assert "not for clinical use" in html


def test_the_reports_policy_allows_its_script_and_files_beside_it_only(inside):
    _, html = inside
    [script] = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'self' file: 'sha256-{digest}'\">" in html
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script


def test_times_and_memory_are_of_the_stages_that_the_parameters_name(inside):
    """The names of the cost files are those that `rarl.errors.stage_main` makes of the commands in dvc.yaml."""
    run, html = inside
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    rivals = [model for model in run.params.models if model in run.params.rival]
    lists = {"set": run.params.benchmarks, "model": run.params.models, "rival": rivals}
    expected = set()
    for stage in stages.values():
        if not stage.get("frozen"):
            name, *options = stage["cmd"].removeprefix("python -m stages.").split()
            values = [
                lists[value[7:-1]] if value.startswith("${item.") else [Path(value).name] for value in options[1::2]
            ]
            expected |= {slug_of([name, *items]) for items in product(*values)}
    named = [name for names in re.findall(r'data-cost="([^"]+)"', html) for name in names.split()]
    assert len(named) == len(set(named)) and set(named) == expected


def test_packed_cases_name_no_operating_system_and_no_time():
    header = base64.b64decode(cases.packed({"a": 1}))[:10]
    assert header[4:8] == bytes(4) and header[9] == 255


def test_the_page_does_not_depend_on_times_nor_on_the_machine(inside):
    _, html = inside
    assert json.loads(Path("metrics/cost/report.json").read_text())["seconds"] >= 0
    assert "stay on the machine that ran the pipeline" in html
    assert re.search(r'<div id="cost-known" hidden>', html), "shown by the script only"
    cells = re.findall(r"<tr data-cost=.*?</th>(.*?)</tr>", html)
    assert len(cells) > 10 and set(cells) == {"<td>–</td>" * 4}
    known = json.loads(Path("metrics/cost/report.json").read_text())
    assert known["page"] == page.digest(html)
    for fact in ("commit", "finished", "processor"):
        assert str(known.get(fact, "not in git")) not in html
    assert f"Seed {load_params().seed}, profile" in html and page.versions()["torch"] in html
    assert "python" not in page.versions() and not any("+" in v for v in page.versions().values())


def test_pictures_that_do_not_fit_are_left_out_and_said(inside, monkeypatch):
    run, _ = inside
    everything = cases.thumbnails(run)
    first = next(iter(everything.values()))
    some = cases.thumbnails(run, most=len(first) + 10)
    assert list(some) == list(everything) and list(some.values()).count(None) == len(some) - 1
    monkeypatch.setattr(cases, "MOST_PICTURES", 0)
    monkeypatch.setattr(cases.thumbnails, "__defaults__", (0,))
    assert f"{len(some)} of {len(some)} images are left out" in page.render_cases(run)


def test_images_that_cannot_fit_are_not_opened(inside, monkeypatch):
    run, _ = inside
    opened, small = [], cases._small
    monkeypatch.setattr(cases, "OPENED_TOGETHER", 1)
    monkeypatch.setattr(cases, "_small", lambda side, *image: opened.append(side) or small(side, *image))
    assert list(cases.thumbnails(run, most=10).values()).count(None) > 10
    assert opened == list(cases.SIDES), "the first image of each size exceeds the limit"


def test_records_of_a_run_share_the_set_of_their_fields(inside):
    run, _ = inside
    first, second = run.verdicts["rarl", "reasoning", OWN_TEST, "lexical"][:2]
    assert first.__pydantic_fields_set__ is second.__pydantic_fields_set__
    path = f"data/verdicts/rarl/lexical/reasoning/{OWN_TEST}.jsonl"
    assert read_records(path, Verdict)[:2] == [first, second]


def test_links_from_the_report_open_a_case_that_is_there(inside):
    run, html = inside
    ids = {(name, s.id) for name in run.params.test_sets for s in run.samples[name]}
    links = re.findall(r'href="cases\.html#set=([^"&]+)&amp;id=([^"&]+)', html)
    assert len(links) > page.GALLERY
    assert {(name, id.replace("%2F", "/")) for name, id in links} <= ids


# Hostile text ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run in which questions, references, answers, reasoning and a judge's words all try to break out."""
    root = tmp_path_factory.mktemp("hostile")
    make_run(root, rows=20, models=["base", "rarl"], judges=["lexical", "semantic"], benchmarks=["slake"],
             modes=["reasoning"], logs=False)  # fmt: skip

    def rewrite(path, kind, *fields):
        rows = read_records(root / path, kind)
        for i, text in enumerate(HOSTILE * 4):
            change = {field: [text] if field == "answers" else text for field in fields}
            rows[i] = rows[i].model_copy(update=change)
        write_records(root / path, rows)

    for path in ("data/curated/test.jsonl", "data/benchmarks/slake.jsonl"):
        rewrite(path, Sample, "question", "reasoning", "category")
    for model in ("base", "rarl"):
        for name in (OWN_TEST, "slake"):
            rewrite(f"data/predictions/{model}/reasoning/{name}.jsonl", Prediction, "answer", "think", "completion")
            rewrite(f"data/verdicts/{model}/semantic/reasoning/{name}.jsonl", Verdict, "evaluation")
    with pytest.MonkeyPatch.context() as patch:
        html, _ = score_and_report(root, patch)
    return root, html


@pytest.fixture
def hostile(hostile_run, monkeypatch):
    """The page; the test works in the run's folder."""
    monkeypatch.chdir(hostile_run[0])
    return hostile_run[1]


def test_hostile_text_breaks_no_page(hostile):
    assert re.findall(r"<script[^>]*>", hostile) == OWN_SCRIPTS
    assert "<img src=x" not in hostile and "<svg onload" not in hostile
    assert "&lt;/script&gt;&lt;script&gt;document.title" in hostile and "{{ 7 * 7 }}" in hostile
    html = Path("data/report/cases.html").read_text(encoding="utf-8")
    kinds = Counter(re.sub("picture-[0-9a-f]{64}", "picture", kind) for kind in re.findall(r"<script([^>]*)>", html))
    assert set(kinds) == {
        "", ' type="application/json" id="head"', ' type="text/plain" id="set-silvar_med-0"',
        ' type="text/plain" id="set-slake-0"', ' type="text/plain" id="picture"',
    }  # fmt: skip
    assert "owned" not in html and "onerror" not in html
    case = unpacked(html, OWN_TEST)[0]
    assert case["question"] == case["said"]["reasoning base"][0] == HOSTILE[0]


def test_hostile_text_changes_no_score(hostile):
    scores = json.loads(Path("metrics/scores/base.json").read_text(encoding="utf-8"))
    verdicts = read_records(f"data/verdicts/base/lexical/reasoning/{OWN_TEST}.jsonl", Verdict)
    given = [v.prediction_score for v in verdicts if v.prediction_score is not None]
    assert scores["reasoning"][OWN_TEST]["lexical"]["final"] == round(100 * sum(given) / len(given), 2)


def test_hostile_text_breaks_no_markdown_table(hostile):
    text = Path("data/report/report.md").read_text(encoding="utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block[:200]
    assert "<script" not in text.replace("\\<", "")
    assert formats.plain(HOSTILE[4]).count("\n") == 0


def test_disagreements_keep_hostile_text_in_its_cells(hostile):
    with open("data/report/disagreements.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(None not in row and set(row["lexical"]) <= set("01") for row in rows)


# Examples -------------------------------------------------------------------------------------------


def test_examples_are_drawn_by_the_ids_hash(inside):
    run, html = inside
    found = examples.examples(run)
    assert [entry["label"] for entry in found["own"]] == list(examples.OWN)
    judged = run.verdicts["rarl", "reasoning", OWN_TEST, "lexical"]
    for entry in found["own"]:
        pair = examples.OWN[entry["label"]]
        ids = [v.id for v in judged if (v.prediction_score, v.reasoning_score) == pair]
        assert entry["count"] == len(ids)
        smallest = min(hashlib.sha256(id.encode()).hexdigest() for id in ids)
        assert hashlib.sha256(entry["sample"].id.encode()).hexdigest() == smallest
        assert entry["said"].id == entry["verdict"].id == entry["sample"].id
    sets = Counter(entry["set"] for entry in found["unseen"])
    assert sets == {"slake": 2, "vqa_rad": 2, "vqa_med": 2, "path_vqa": 2}
    assert html.count('<article class="sample m-rarl">') == 12


def test_without_annotations_the_examples_go_by_the_answer(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, annotated=False, models=["base"], judges=["lexical"], benchmarks=[], logs=False)
    monkeypatch.chdir(tmp_path)
    run = Run(load_params())
    assert examples.shown_model(run) == "base"
    assert [entry["label"] for entry in examples.examples(run)["own"]] == list(examples.UNSEEN)


# The paper's tables ---------------------------------------------------------------------------------


def test_differences_to_the_paper_are_marked_where_they_exceed_the_interval(inside):
    run, html = inside
    frame = tables.paper_table(run, "table3")
    ours = frame[(frame["source"] == "ours") & (frame["set"] == "vqa_med") & (frame["row"] == "SFT")]
    for row in ours.itertuples():
        assert row.difference == pytest.approx(row.final - 13.8, abs=0.006), "by GPT-4o mini"
        assert row.beyond == (not row.final_low <= 13.8 <= row.final_high)
    assert "▲" in html and "to paper" in html
    untuned = frame[frame["row"].str.startswith("Base") & (frame["set"] == OWN_TEST)]
    assert set(untuned["prompt"]) == {"reasoning", "direct"} and untuned["difference"].isna().all()


def test_the_same_judge_is_compared_where_the_paper_has_it():
    cell = {"final": 60.0, "final_low": 50.0, "final_high": 70.0, "reasoning": None}
    assert tables.beside(cell, {"final": 49.9}, "final") == {"difference": 10.1, "beyond": True}
    assert tables.beside(cell, {"final": 50.0}, "final") == {"difference": 10.0, "beyond": False}
    assert tables.beside(cell, {"final": 1, "reasoning": 2}, "reasoning") == {}
    assert tables.beside(cell, {}, "final") == {}


def write_studies(studies: dict[str, list[dict]]) -> None:
    Path("metrics/studies").mkdir(exist_ok=True)
    for name, rows in studies.items():
        pd.DataFrame(rows).to_csv(f"metrics/studies/{name}.csv", index=False)


def test_studies_show_form_apart_from_content(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, models=["rarl"], judges=["lexical", "semantic"], benchmarks=[], logs=False)
    monkeypatch.chdir(tmp_path)
    form = {"untagged": 7.31, "answer_words": 4.56, "form_blind": 71.87}
    tasks = dict.fromkeys(("Count", "Relation", "Depth", "Distance", "Total"), 49.0)
    write_studies(
        {
            "table2": [{"source": "ours (embedded)", "method": "SFT", "samples": 500, "n": 100, **tasks, **form}],
            "seeds": [SEEDS | form],
            "grid": [GRID | form],
        }
    )
    html, _ = score_and_report(tmp_path, monkeypatch)
    heads = '<th scope="col">By semantic</th><th scope="col">Form</th>'
    cells = '71.9</td><td><span class="range">4.6 words</span><span class="range">7.3 % untagged</span></td>'
    for title in ("Table 2:", "two changes separately"):
        table = html[html.index(f"{title}") :].partition("</table>")[0]
        assert heads in table and cells in table, title
    table = html[html.index("<h3>Over seeds") :].partition("</table>")[0]
    assert "by semantic 71.9" in table and "4.6 words · 7.3 % untagged" in table
    text = Path("data/report/report.md").read_text(encoding="utf-8")
    assert "| 49.0 | 71.9 | 4.6 | 7.3 % | 100 |" in text


def test_studies_that_were_run_stand_beside_the_papers_table_2(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, models=["base", "rarl"], judges=["lexical"], benchmarks=[], logs=False)
    html, _ = score_and_report(tmp_path, monkeypatch)
    assert "Ours: not run" in html and "Over seeds" not in html and "two changes separately" not in html

    ours = {"source": "ours (embedded)", "n": 2638, "Total_low": 47.1, "Total_high": 50.9}
    tasks = dict.fromkeys(("Count", "Relation", "Depth", "Distance", "Total"), 49.0)
    table2 = [
        {"method": "RL w/ LoRA", "samples": 500, **tasks},
        {"method": "SFT", "samples": 5000, **tasks},
        {"method": "Base, untuned", "samples": None, **tasks},
        {"method": "SFT", "samples": 500, "source": "ours (paper)", "Count": 99.94},
    ]
    studies = {
        "table2": [{"source": "paper", "method": "SFT", "samples": 500}, *(ours | row for row in table2)],
        "seeds": [SEEDS, SEEDS | {"mean": 99.99, "profile": "paper"}],
        "grid": [GRID],
    }  # fmt: skip
    write_studies(studies)
    html, _ = score_and_report(tmp_path, monkeypatch)
    assert html.count('<th scope="col">Form</th>') == 1, "the own test's: these tables lack the columns"
    text = Path("data/report/report.md").read_text(encoding="utf-8")
    marks = {row["method"]: (row["difference"].get("Total"), row["beyond"]) for row in page.table2("embedded")
             if row["source"] != "paper"}  # fmt: skip
    # 48.04 is printed, the mean of the four tasks; over all rows it is 48.92.
    assert marks["RL w/ LoRA"] == (pytest.approx(0.08, abs=0.005), {"Total": False})
    assert marks["SFT"] == (pytest.approx(-5.28, abs=0.005), {"Total": True})
    assert marks["Base, untuned"] == (None, {})
    assert "−5.3 to paper ▼" in html and "+0.1 to paper<" in html and "Ours: not run" not in html
    assert "−5.3 (beyond the interval)" in text
    for found in (html, text):
        assert "63.1" in found and "65.4" in found and "99.9" not in found, "another profile's"


def test_studies_have_a_figure_beside_each_table(tmp_path, monkeypatch):
    make_run(tmp_path, rows=20, models=["base", "rarl"], judges=["lexical"], benchmarks=["slake"], logs=False)
    html, _ = score_and_report(tmp_path, monkeypatch)
    assert 'id="studies"' not in html and 'href="#studies"' not in html and "CV-Bench, total" not in html
    ours = {"source": "ours (embedded)", "n": 100, "Total_low": 47.1, "Total_high": 50.9}
    ours |= dict.fromkeys(("Count", "Relation", "Depth", "Distance", "Total"), 49.0)
    own = {"silvar_med": 61.24, "silvar_med_low": 52.03, "silvar_med_high": 69.51, "silvar_med_sd": 3.28}
    own |= {"silvar_med_untagged": None, "silvar_med_answer_words": 1.5, "silvar_med_form_blind": None}
    slake = {"slake": 40.0, "slake_low": 33.0, "slake_high": 47.0, "slake_sd": 1.0}
    sweep = [
        {"lora.r": r, "base.source": text, "model": model, "seeds": 3, **own, **(slake if r == 4 else {})}
        for r, text in ((4, HOSTILE[1]), (16, "$x_{1$"))
        for model in ("base", "rarl")
    ]
    write_studies(
        {
            "table2": [ours | {"method": "Base, untuned", "samples": None},
                       *(ours | {"method": "SFT (w/o LoRA)", "samples": n} for n in (100, 1000))],
            "seeds": [SEEDS],
            "grid": [GRID, GRID | {"reasoning_reward": "no"}],
            "sweep": sweep,
        }
    )  # fmt: skip
    html, _ = score_and_report(tmp_path, monkeypatch)
    for label in ("CV-Bench, total over the number", "RARL on the own test set", "Mean and range over seeds",
                  "Own test (Silvar-Med)"):  # fmt: skip
        svg = html[html.index(f'<svg role="img" aria-label="{label}') :].partition("</svg>")[0]
        assert len(svg) < 40_000 and "</figure>" not in svg, label
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "1,000" in html and "no reasoning reward, prompts: one" in html
    table = html[html.index("Final scores of the sweep") :].partition("</table>")[0]
    assert '<th scope="col">lora.r</th><th scope="col" class="left">base.source</th>' in table
    assert table.count("61.2<span") == 4 and table.count("40.0<span") == 2 and table.count("not scored") == 2
    assert "52.0 to 69.5" in table and "SD 3.3 over 3 seeds" in table and "1.5 words" in table
    assert "<img src=x" not in html and "r 16, source $x_{1$" in html
    text = Path("data/report/report.md").read_text(encoding="utf-8")
    assert "## Sweep" in text and "| 69.51 |" in text


def test_a_sweep_over_seeds_alone_has_one_line_per_test_set():
    rows = [{"model": model, "seeds": 2, "slake": 50.0, "slake_low": 40.0, "slake_high": 60.0} for model in SKILL]
    [block] = study_tables.sweep_blocks(rows)
    assert block["set"] == "slake" and [line["values"] for line in block["lines"]] == [{}]
    assert list(block["lines"][0]["models"]) == list(SKILL)
    assert block["lines"][0]["models"]["rarl"] == {"final": 50, "final_low": 40, "final_high": 60, "seeds": 2}
    assert "all seeds" in study_plots.sweep(rows)
    assert study_tables.sweep_blocks([]) == [] and not any(plot([]) for plot in study_plots.FIGURES.values())


# Training noise -------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run of the base, SFT and RARL, and a function that reports it beside a table over seeds."""
    make_run(tmp_path, models=["base", "sft", "rarl"], judges=["lexical"], benchmarks=[], modes=["reasoning"])
    scores = {"base": 20, "sft": 30, "rarl": 50}
    for model, right in scores.items():
        path = tmp_path / f"data/verdicts/{model}/lexical/reasoning/{OWN_TEST}.jsonl"
        ids = [verdict.id for verdict in read_records(path, Verdict)]
        write_records(path, [Verdict(id=id, prediction_score=int(i < right)) for i, id in enumerate(ids)])
    monkeypatch.chdir(tmp_path)

    def report(rows: dict[str, tuple[float, float, float]], **changes) -> tuple[str, str]:
        lines = [
            SEEDS | {"model": model, "sd": sd, "low": low, "high": high, "mean": (low + high) / 2} | changes
            for model, (sd, low, high) in rows.items()
        ]
        write_studies({"seeds": lines} if lines else {})
        html, output = score_and_report(tmp_path, monkeypatch)
        return html, " ".join(output.split())

    return report


def test_one_training_is_one_draw(trained):
    for html, output in (trained({}), trained({"sft": (1, 49, 51)}, profile="paper")):
        assert "Trained with one seed: SFT, RARL. One training is one draw" in output
        assert "rarl study seeds --seeds 7,8,9" in html and "seeds.csv is of other" not in output
        assert html.count('<span class="range">one seed: one draw</span>') == 2, "the base is not trained"
        assert "One training each, without other seeds" in html and "Standard deviation of the scores" not in html


def test_training_noise_is_beside_the_interval_and_the_larger_one_is_named(trained):
    html, output = trained({"base": (0, 33.33, 33.33), "sft": (12, 38, 62), "rarl": (1.5, 82, 85)})
    own = pd.read_csv("metrics/tables/own_test.csv").set_index("model")
    error = {m: (own.final_high[m] - own.final_low[m]) / 2 / 1.959964 for m in ("sft", "rarl")}
    assert error["sft"] < 12 and error["rarl"] > 1.5
    assert (
        f"SFT 12.0 over 3 seeds (38.0 to 62.0) and {error['sft']:.1f} over questions; "
        f"RARL 1.5 over 3 seeds (82.0 to 85.0) and {error['rarl']:.1f} over questions. "
        "The larger one is over seeds for SFT; over questions for RARL."
    ) in output
    cards = html[html.index('class="card m-sft"') : html.index('class="panel"')]
    cards = cards.replace('<div class="card m-rarl">', "|")
    for card, model, spread, larger in zip(
        cards.split("|"), ("sft", "rarl"), ("38.0 to 62.0", "82.0 to 85.0"), ("seeds", "questions")
    ):
        assert f"over questions, SD {error[model]:.1f}" in card and f"{spread} over 3 seeds, SD" in card
        assert f"larger: <strong>{larger}</strong>" in card
    assert "Thick line below an interval: range over seeds" in html and "one draw" not in html
    # SFT's trainings differ by 12 points, and two degrees of freedom make that 52.
    assert "WARNING: 2 of 3 significant differences could come from the seed alone" in output
    assert "differ as much: Base and SFT; SFT and RARL." in output and "Outside the range" not in output


def test_seeds_of_other_settings_are_named(trained):
    _, output = trained({"base": (0, 33.33, 33.33), "sft": (1, 60, 62)})
    assert "Outside the range over seeds" in output and "seeds.csv: SFT." in output
    assert "Trained with one seed: RARL." in output
    _, output = trained({"base": (0, 40, 40), "sft": (1, 49, 51), "rarl": (1, 82, 85)})
    assert "Trained with one seed: SFT, RARL." in output and "of other models, data or settings" in output


def test_a_difference_is_compared_with_what_two_trainings_differ_by():
    noises = [{"sd": sd, "seeds": 3} for sd in (0.0, 2.0, 2.0)]
    # Student's t at 97.5 %: 4.303 with 2 degrees of freedom, 2.776 with 4.
    for models, largest in ((noises[:2], 4.303 * 2), (noises[1:], 2.776 * 8**0.5)):
        assert study_tables.could_be_noise(-largest + 0.01, models, 0.95)
        assert not study_tables.could_be_noise(largest + 0.01, models, 0.95)
    assert not study_tables.could_be_noise(0.1, noises[:1], 0.95) and not study_tables.could_be_noise(9, [], 0.95)


# Grounding, agreement, gap --------------------------------------------------------------------------


def test_grounding_says_what_remains_without_the_right_picture(tmp_path, monkeypatch):
    shuffled = {"prompt": "reasoning", "image": "shuffled", "own_test_only": True}
    make_run(tmp_path, rows=80, models=["base", "rarl"], judges=["lexical"], benchmarks=[], logs=False,
             modes=["reasoning", "blank", "shuffled"], mode__shuffled=shuffled)  # fmt: skip
    html, output = score_and_report(tmp_path, monkeypatch)
    frame = tables.grounding(Run(load_params())).set_index(["model", "image"])
    row = frame.loc[("rarl", "blank")]
    assert row["shown"] > row["final"] and row["high"] < 0
    assert row["difference"] == pytest.approx(row["final"] - row["shown"], abs=0.011)
    assert row["kept"] == pytest.approx(100 * row["final"] / row["shown"], abs=0.02)
    assert set(frame.index) == {(m, i) for m in ("base", "rarl") for i in ("blank", "shuffled")}
    assert "How much comes from the image?" in html and "another question's image" in " ".join(output.split())


def test_agreement_is_pooled_over_models_and_disagreements_are_listed(inside):
    run, _ = inside
    frame = tables.judge_agreement(run)
    pair = frame[(frame["first"] == "lexical") & (frame["second"] == "truth") & (frame["score"] == "final")]
    models, pooled = pair[pair["model"] != "all"], pair[pair["model"] == "all"].iloc[0]
    assert pooled["n"] == models["n"].sum() and pooled["disagree"] == models["disagree"].sum()
    listed = tables.disagreements(run)
    finals = listed[(listed["score"] == "final") & (listed["lexical"] != listed["truth"])]
    assert len(finals) == pooled["disagree"]
    assert not any(Path("metrics/tables").glob("disagreements*")), "texts stay out of git"


def test_people_are_held_against_people_and_not_against_their_own_majority(tmp_path, monkeypatch):
    people = {"human": {"kind": "human"}} | {
        f"human_{name}": {"kind": "human", "rater": name} for name in ("anna", "ben")
    }
    make_run(
        tmp_path, rows=40, models=["sft"], benchmarks=[], logs=False, judges=["lexical", *people],
        judge={"lexical": {"kind": "lexical"}} | people,
    )  # fmt: skip
    path = tmp_path / f"data/verdicts/sft/human_anna/reasoning/{OWN_TEST}.jsonl"
    first, *others = read_records(path, Verdict)
    write_records(path, [Verdict(id=first.id, unscored="not <b>rated</b>"), *others])
    html, _ = score_and_report(tmp_path, monkeypatch)
    run = Run(load_params())
    for name, printed in (("human", 60.81), ("human_anna", 60.81), ("lexical", 64.86)):
        frame = tables.paper_table(run, "table3")
        [row] = frame[(frame["row"] == "SFT") & (frame["source"] == "ours") & (frame["judge"] == name)].itertuples()
        assert row.difference == pytest.approx(row.final - printed, abs=0.006)
    pairs = {(r.first, r.second) for r in tables.judge_agreement(run).itertuples()}
    assert pairs == {("lexical", name) for name in people} | {("human_anna", "human_ben")}
    assert page.unscored(run)["human_anna"][0][0] in ("not <b>rated</b>", "image unreadable")
    assert "1 × not &lt;b&gt;rated&lt;/b&gt;" in html
    cells = [run.scores["sft"]["reasoning"][OWN_TEST][name]["n"] for name in ("lexical", "human_anna")]
    assert cells[0] == cells[1] + 1 and f'<span class="range">n {cells[1]}</span>' in html


def test_a_gap_to_the_truth_that_opens_is_marked(tmp_path, monkeypatch):
    make_run(tmp_path, rows=80, models=["base", "sft", "rarl"], judges=["lexical", "truth"], benchmarks=[],
             modes=["reasoning"], logs=False)  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for model in ("base", "sft", "rarl"):
        path = f"data/verdicts/{model}/truth/reasoning/{OWN_TEST}.jsonl"
        lexical = read_records(path.replace("truth", "lexical"), Verdict)
        if model == "rarl":  # half of what the lexical judge calls right is not
            lexical = [v.model_copy(update={"prediction_score": v.prediction_score and i % 2})
                       if v.prediction_score is not None else v for i, v in enumerate(lexical)]  # fmt: skip
        write_records(path, lexical)
    html, _ = score_and_report(tmp_path, monkeypatch)
    gaps = tables.reward_gap(Run(load_params()))
    gaps = gaps[gaps["score"] == "final"].set_index("model")
    assert gaps.loc["rarl", "opens"] and gaps.loc["rarl", "change_low"] > 0
    assert not gaps.loc["sft", "opens"] and gaps.loc["sft", "gap"] == 0
    assert gaps.loc["rarl", "agreement"] < gaps.loc["base", "agreement"] == 100
    assert html.count('<span class="chip lower">opens</span>') == 2, "the legend and RARL"


def test_breakdown_leaves_out_what_has_one_value(inside):
    run, html = inside
    frame = tables.breakdown(run)
    assert set(frame["by"]) == {"kind", "modality"}
    own = frame[(frame["set"] == OWN_TEST) & (frame["by"] == "modality") & (frame["model"] == "sft")]
    cell = json.loads(Path("metrics/scores/sft.json").read_text())["reasoning"][OWN_TEST]["lexical"]
    assert own["n"].sum() == cell["n"]
    right = (own["final"] * own["n"] / 100).round().sum()
    assert 100 * right / cell["n"] == pytest.approx(cell["final"], abs=0.01)
    assert "by kind of answer" in html


def yes_no_run(answers: list[tuple[str, str | None]], confidence: float = 0.95) -> Run:
    """A run of one model on yes-or-no questions: (reference, answer) of each; None could not be asked."""
    samples = [
        Sample(id=str(i), dataset="own", split="test", image="1.png", image_sha256=f"{i}", question="Is it?",
               answers=[reference], kind="open" if reference == "Mass" else "yes_no")
        for i, (reference, _) in enumerate(answers)
    ]  # fmt: skip
    said = [
        Prediction(id=str(i), completion=answer or "", answer=(answer or "").removesuffix(" …"),
                   truncated=(answer or "").endswith(" …"), error="no image" if answer is None else None)
        for i, (_, answer) in enumerate(answers)
    ]  # fmt: skip
    report = SimpleNamespace(confidence=confidence)
    modes = {"modes": ["reasoning"], "modes_of": lambda model: ["reasoning"], "sets_of": lambda mode: ["own"]}
    run = Run(SimpleNamespace(**modes, models=["base"], all_models=MODELS, report=report))
    run.samples, run.predictions = {"own": samples}, {("base", "reasoning", "own"): said}
    return run


def test_sensitivity_and_specificity_count_every_answer():
    yes = ["Yes", "yes, there is", "Yes.", "no", "No nodule", "maybe", "", "Yes …"]
    no = ["No", "no", "Yes", "yes and no", None]
    run = yes_no_run([("Yes", a) for a in yes] + [("no.", a) for a in no] + [("Mass", "yes")])
    [row] = tables.yes_no(run).to_dict("records")
    counted = {key: row[key] for key in row if "said" in key or "unreadable" in key}
    assert counted == {
        "yes_said_yes": 3, "yes_said_no": 1, "yes_unreadable": 4,
        "no_said_yes": 1, "no_said_no": 2, "no_unreadable": 1,
    }  # fmt: skip
    assert (row["n"], row["unscored"]) == (12, 1) and sum(counted.values()) == row["n"]
    assert (row["sensitivity"], row["specificity"]) == (37.5, 50.0)
    # Wilson's interval of 3 of 8 and of 2 of 4 (Newcombe 1998, method 3).
    assert (row["sensitivity_low"], row["sensitivity_high"]) == (13.68, 69.43)
    assert (row["specificity_low"], row["specificity_high"]) == (15.0, 85.0)


def test_without_a_reference_yes_there_is_no_sensitivity():
    [row] = tables.yes_no(yes_no_run([("No", "no")])).to_dict("records")
    assert pd.isna(row["sensitivity"]) and pd.isna(row["sensitivity_low"])
    assert row["specificity"] == 100
    assert tables.yes_no(yes_no_run([("Mass", "yes")])).empty


def test_yes_or_no_agrees_with_the_lexical_judge_and_is_on_the_page(inside):
    run, html = inside
    frame = tables.yes_no(run)
    assert set(frame["set"]) == {OWN_TEST, "slake", "vqa_rad", "vqa_med", "path_vqa"}
    for row in frame.itertuples():
        pairs = [
            (sample, said)
            for sample, said in zip(run.samples[row.set], run.predictions[row.model, row.mode, row.set])
            if sample.kind == "yes_no"
        ]  # fmt: skip
        verdicts = lexical.judge(*map(list, zip(*pairs)), SimpleNamespace(threshold=None, reasoning_threshold=None))
        assert row.yes_said_yes + row.no_said_no == sum(v.prediction_score or 0 for v in verdicts)
        assert row.n == sum(v.prediction_score is not None for v in verdicts)
    section = html[html.index('id="yes-no"') : html.index('id="training"')]
    own = frame[(frame["mode"] == "reasoning") & (frame["set"] == OWN_TEST)]
    for row in own.itertuples():
        assert f"{row.sensitivity:.1f}<span" in section and f"{row.specificity_low:.1f} to" in section  # fmt: skip


def test_markdown_has_the_pages_numbers(inside):
    run, _ = inside
    text = Path("data/report/report.md").read_text(encoding="utf-8")
    cell = run.scores["rarl"]["reasoning"][OWN_TEST]["lexical"]
    assert f"{cell['final']:.1f} \\[{cell['final_low']:.1f}, {cell['final_high']:.1f}\\]" in text
    assert "Research only, not for clinical use." in text and "PHANTOM RESULTS" in text
    assert "## The paper's claims" in text
