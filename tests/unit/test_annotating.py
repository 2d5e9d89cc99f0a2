"""Annotation: the plan, the session, the page, agreement, adjudication, the export and what `curate` joins."""

import io
import json
import resource
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from click.testing import CliRunner
from PIL import Image
from sample_images import draw_bars
from test_datasets_stages import project as releases
from test_datasets_stages import run
from test_dicom import make
from test_rating import empty_folder

from rarl.annotating import agreement, console, drafts, export, plan, session, sources
from rarl.annotating.session import Annotation, Item, Proposal, Session, Stale, annotations_file, read_annotations
from rarl.annotating.usefulness import MARGIN, models_disagree, rare_finding, usefulness
from rarl.cli.annotate import main as annotate
from rarl.data import annotations
from rarl.data.adapters import own as own_data
from rarl.data.annotations import content_key
from rarl.data.release import Images, read
from rarl.errors import UserError
from rarl.judges import semantic
from rarl.params import load_params
from rarl.records import (
    Prediction,
    Sample,
    Verdict,
    predictions_file,
    read_json,
    read_records,
    verdicts_file,
    write_records,
)
from rarl.training import groups
from stages.curate import main as curate

__all__ = ["empty_folder", "releases"]  # the fixtures

ROOT = Path(__file__).parents[2]
HOSTILE = (
    '</textarea><script>alert(1)</script> =HYPERLINK("http://x")\n{{ 7*7 }} ${x} </think><answer>no</answer> 😀 \u202e'
)


def a_sample(number: int = 0, **fields) -> Sample:
    base = {
        "id": f"x/train/{number}", "dataset": "x", "split": "train", "image": f"{number}.png",
        "image_sha256": f"{number // 2:02}", "question": f"Is there a nodule, {number}?", "answers": ["Yes"],
        "kind": "yes_no",
    }  # fmt: skip
    return Sample(**{**base, **fields})


DRAFT = Proposal("sft", "A small nodule in the left lung.", ("left", "lung", "nodule", "small"), answer="Yes")


def answer(sample: Sample, text: str) -> Prediction:
    return Prediction(id=sample.id, completion="", answer=text)


def items_of(count: int = 4, *proposals: Proposal) -> list[Item]:
    return [Item(a_sample(number), proposals) for number in range(count)]


@pytest.fixture
def project(empty_folder):
    """params.yaml, and twenty training rows about ten images, of which four have reasoning."""
    (empty_folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    rows = [a_sample(n, reasoning="From the release." if n < 4 else None) for n in range(20)]
    write_records("data/curated/train.jsonl", rows)
    return empty_folder


def a_plan(**fields) -> plan.Plan:
    return plan.Plan(**{"raters": ("anna", "ben"), "overlap": 0.2, "order": "random", "seed": 7} | fields)


# The plan -------------------------------------------------------------------------------------------


def test_the_plan_shares_the_rows_and_repeats(empty_folder):
    samples = [a_sample(n) for n in range(50)]
    made = plan.make(a_plan(), samples)
    both = [row for row in made.rows if len(row.raters) == 2]
    assert len(made.rows) == 50 and len(both) == 10
    assert {len(made.of(rater)) for rater in ("anna", "ben")} == {30}
    assert plan.read() == made == plan.make(a_plan(), samples[::-1]), "whatever the order of the rows"
    assert plan.make(a_plan(seed=8), samples).rows != made.rows
    assert len(plan.make(a_plan(raters=("anna",)), samples).of("anna")) == 50, "nobody to share with"
    assert plan.make(a_plan(sample=10), samples).rows[:10] == tuple(
        row.model_copy(update={"raters": new.raters})
        for row, new in zip(made.rows, plan.make(a_plan(sample=10), samples).rows)
    )


def test_rows_with_reasoning_are_left_out_unless_it_is_an_annotation(empty_folder):
    samples = [a_sample(0, reasoning="Known."), a_sample(1, reasoning="Annotated and joined."), a_sample(2)]
    made = plan.make(a_plan(), samples, annotated=[content_key(samples[1])])
    assert {row.id for row in made.rows} == {"x/train/1", "x/train/2"}
    with pytest.raises(UserError, match="no row without reasoning"):
        plan.make(a_plan(), samples[:1])


def test_equal_rows_are_annotated_once(empty_folder):
    again = a_sample(0, id="x/train/0-2")
    assert len(plan.make(a_plan(), [a_sample(0), again]).rows) == 1


def test_useful_rows_come_first_with_random_ones_between(empty_folder):
    samples = [a_sample(n) for n in range(40)] + [a_sample(40, question="Is there a hernia?")]
    answers = {"one": {content_key(samples[n]): answer(samples[n], "yes") for n in (3, 17)}}
    answers["two"] = {content_key(samples[17]): answer(samples[17], "no")}

    def useful(rows):
        parts = {"models_disagree": models_disagree(rows, answers), "rare_finding": rare_finding(rows)}
        return {content: {name: part.get(content, 0.0) for name, part in parts.items()} for content in rows}

    made = plan.make(a_plan(order="useful"), samples, useful)
    assert [row.id for row in made.rows[:2]] == ["x/train/17", "x/train/40"], "disagreement, then the rare finding"
    assert made.rows[0].why == {"models_disagree": 1.0, "rare_finding": 0.007}
    assert [n for n, row in enumerate(made.rows) if row.chosen == "random"] == list(range(4, 41, 5))
    assert len({row.content for row in made.rows}) == 41
    assert plan.read() == made == plan.make(a_plan(order="useful"), samples[::-1], useful)
    at_random = [row.id for row in plan.make(a_plan(), samples).rows]
    for count in (10, 24, 41, None):
        some = plan.make(a_plan(order="useful", sample=count), samples, useful)
        assert len(some.rows) == (count or 41)
        chosen = [row.id for row in some.rows if row.chosen == "random"]
        assert chosen == at_random[: len(some.rows) // 5], "drawn from all rows, useful or not"


def test_usefulness_is_measured_from_what_trainings_models_and_judges_have_left(project):
    """The groups of a training, answers on which models and judges disagree, and verdicts that were paid for."""
    open_row = {"kind": "open", "answers": ["Pleural effusion"], "question": "What is seen?"}
    samples = [a_sample(0), a_sample(1), a_sample(2, **open_row), a_sample(4, **open_row)]
    rows = {content_key(sample): sample for sample in samples}
    keys = [groups.row_key(one.image, one.question, one.choices, one.answers) for one in samples]
    for folder, steps in {"a": [[(keys[0], 0.5), (keys[1], 0.0)], [(keys[0], 0.25)]], "b": [[(keys[1], 0.0)]]}.items():
        Path(f".cache/training/{folder}").mkdir(parents=True)
        for step, found in enumerate(steps, 1):
            groups.add(step, found, Path(f".cache/training/{folder}/groups.jsonl"))
    params, paraphrase = load_params(), "Fluid in the pleural space"
    for model, texts in {
        "base": ["no", "yes", "Pleural effusion", paraphrase],
        "sft": ["yes", "yes", "Pleural effusion", "Pleural effusion"],
    }.items():
        given = [answer(one, text) for one, text in zip(samples, texts)]
        write_records(predictions_file(model, params.main_mode, params.own_test), given)
    scores = [Verdict(id=one.id, prediction_score=score) for one, score in zip(samples, (0, 1, 1, None))]
    write_records(verdicts_file("base", "truth", params.main_mode, params.own_test), scores)
    vectors = semantic.embed([paraphrase, "Pleural effusion"], params.encoder.source)
    near = semantic.similarity(vectors, paraphrase, "Pleural effusion", exact=True)
    params.judge["semantic"].threshold = near + MARGIN / 2  # a lower threshold would accept it
    made = usefulness(params, (), rows)
    of = [made[content_key(sample)] for sample in samples]
    assert [round(one["no_signal"], 3) for one in of] == [0.25, 1.0, 0.0, 0.0]
    assert [one["models_disagree"] for one in of] == [1.0, 0.0, 0.0, 1.0]
    unsure = [0.0, 0.0, 0.0, (4 * 1 / 4 * 3 / 4 + 0) / 2]  # one of four judges accepts one of two answers
    assert [one["judges_unsure"] for one in of] == unsure
    assert of[0]["rare_finding"] == of[1]["rare_finding"] > 0
    write_records(verdicts_file("base", "truth", params.main_mode, params.own_test), [
        verdict.model_copy(update={"prediction_score": 1}) for verdict in scores
    ])  # fmt: skip
    changed = usefulness(params, (), rows)[content_key(samples[0])]["judges_unsure"]
    assert changed == pytest.approx((4 * 1 / 5 * 4 / 5) / 2), "the verdict of a judge that is not asked here"


def test_a_new_useful_plan_asks_models_about_all_rows_first(project, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "rarl.annotating.usefulness.proposals", lambda model, _, rows: asked.append((model, len(rows)))
    )
    result = CliRunner().invoke(annotate, ["--rater", "anna", "--ask", "sft"])
    assert result.exit_code == 1 and "the order is random" in result.output and not asked
    options = ["--rater", "anna", "--order", "useful", "--ask", "base,sft"]
    monkeypatch.setattr("rarl.annotating.page.Served.run", lambda self: None)
    result = CliRunner().invoke(annotate, [*options, "--port", "0"])
    assert result.exit_code == 0, result.output
    assert (
        asked == [("base", 16), ("sft", 16)]
        and "Usefulness of 16 rows. Known parts: no_signal of 0, " in result.output
    )
    CliRunner().invoke(annotate, [*options, "--port", "0"])
    assert len(asked) == 2, "the plan is there"


def test_a_plan_is_followed_and_other_options_are_refused(project):
    params = load_params()
    with pytest.raises(UserError, match="not among --raters anna,ben"):
        console.planned(params, "ana", {"raters": ("anna", "ben")})
    assert plan.read() is None, "a misspelt rater plans nothing"
    made = console.planned(params, "anna", {"raters": ("anna", "ben"), "overlap": 0.5, "order": None})
    assert console.planned(params, "ben", {"raters": None}) == made
    with pytest.raises(UserError, match=r"--overlap(.|\n)*plan.json"):
        console.planned(params, "ben", {"overlap": 0.1})
    with pytest.raises(UserError, match="annotations stay"):
        made.of("cara")
    plan.file().write_text("{")
    with pytest.raises(UserError, match="delete it to plan again"):
        plan.read()


# The session ----------------------------------------------------------------------------------------


def test_every_change_is_a_line_and_the_last_one_counts():
    one = Session("anna", items_of())
    one.save(0, 0, {"text": "A no"}, 2.0)
    one.save(0, 1, {"text": "A nodule."}, 3.5)
    one.save(0, 2, {"text": "A nodule."}, 9)
    assert len(one.path.read_text().splitlines()) == 2, "what changes nothing is no line"
    assert not one.is_done(0) and one.next_open() == 0
    one.save(0, 2, {"verdict": "explained"}, 1)
    again = Session("anna", items_of())
    found = again.annotation(0)
    assert (found.text, found.verdict, found.origin, found.seconds) == ("A nodule.", "explained", "own", 6.5)
    assert again.done == 1 and again.next_open() == 1
    again.save(0, 3, {"text": "A nodule?"})
    assert again.annotation(0).verdict is None, "a changed text is to be approved again"


def test_a_verdict_needs_a_text_only_if_it_explains():
    one = Session("anna", items_of())
    with pytest.raises(ValueError, match="no text"):
        one.save(0, 0, {"text": "  ", "verdict": "explained"})
    one.save(0, 0, {"verdict": "not_visible"})
    one.save(1, 0, {"verdict": "wrong_question"})
    assert one.done == 2 and not any(one.annotation(n).text for n in (0, 1))


def test_drafts_are_nobodys_text_until_they_are_taken():
    one = Session("anna", items_of(4, DRAFT))
    assert one.annotation(0).text == "" and not one.is_done(0)
    one.save(0, 0, {"take": 0, "verdict": "explained"})
    one.save(1, 0, {"take": 0})
    assert not one.is_done(1), "taken to be edited"
    one.save(1, 1, {"text": DRAFT.text + " It is round."})
    one.save(2, 0, {"reject": True})
    one.save(2, 1, {"text": "No nodule."})
    one.save(3, 0, {"text": "My own words."})
    found = [one.annotation(n) for n in range(4)]
    assert [one.origin for one in found] == ["accepted", "edited", "rejected", "own"]
    assert {one.by for one in found} == {"sft"} and found[0].findings == DRAFT.findings
    one.save(1, 2, {"text": DRAFT.text})
    one.save(1, 3, {"reject": True})
    assert one.annotation(1).origin == "accepted", "edited back, and what is taken is not rejected"


def test_findings_are_terms_of_the_lexicon():
    one = Session("anna", items_of())
    one.save(0, 0, {"add": "no pleural effusion, left"})
    one.save(0, 1, {"add": "effusion"})
    assert one.annotation(0).findings == ("effusion", "left")
    for wrong in ({"add": "gizzard"}, {"findings": ["gizzard"]}, {"findings": ["no gizzard"]}):
        with pytest.raises(ValueError, match="lexicon"):
            one.save(0, 2, wrong)
    one.save(0, 2, {"findings": ["left"]})
    assert one.annotation(0).findings == ("left",)


@pytest.mark.parametrize(
    "text", [HOSTILE, "x" * 50_000, "ä\u2028\x00\r\n\t", "{"], ids=["hostile", "long", "control", "brace"]
)
def test_any_text_changes_its_own_field_only(text):
    one = Session("anna", items_of())
    one.save(0, 0, {"text": "Before."})
    one.save(1, 0, {"text": text, "verdict": None})
    one.save(2, 0, {"text": "After."})
    again = Session("anna", items_of())
    assert [again.annotation(n).text for n in range(3)] == ["Before.", text, "After."]
    assert len(one.path.read_bytes().split(b"\n")) == 4


def test_what_cannot_be_saved_is_refused():
    one = Session("anna", items_of())
    for text in ("x" * 100_001, "half a pair \ud83d"):
        with pytest.raises(ValueError, match=r"characters|two parts"):
            one.save(0, 0, {"text": text})
    assert not one.path.exists()
    for name in ("../ben", "Anna", "", "a b"):
        with pytest.raises(UserError):
            annotations_file(name)


def test_two_windows_do_not_overwrite_each_other():
    first, second = Session("anna", items_of()), Session("anna", items_of())
    first.save(0, 0, {"text": "First."})
    with pytest.raises(Stale):
        second.save(0, 0, {"text": "Second."})
    assert second.annotation(0).text == "First."
    second.save(0, 1, {"text": "Second."})
    first.save(1, 0, {"text": "Other row."})
    assert [line.text for line in first.saved.values()] == ["Second.", "Other row."]


def test_what_is_sent_again_because_the_response_was_lost_is_saved_once():
    one = Session("anna", items_of(4, DRAFT))
    for changes in ({"take": 0, "verdict": "explained"}, {"text": "A nodule."}, {"verdict": "not_visible"}):
        revision = one.annotation(0).revision
        for _ in range(2):
            one.save(0, revision, changes, 1.0)
    assert one.annotation(0).revision == 3 == one.annotation(0).seconds == len(one.path.read_text().splitlines())


def test_two_writers_at_once_lose_nothing_and_double_nothing():
    def write(start):
        own = Session("anna", items_of(40))
        for number in range(start, 40, 2):
            own.save(number, 0, {"text": f"Text {number}"})

    writers = [threading.Thread(target=write, args=[start]) for start in (0, 1)]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    lines = [json.loads(line) for line in annotations_file("anna").read_text().splitlines()]
    assert sorted(line["text"] for line in lines) == sorted(f"Text {number}" for number in range(40))


def test_a_full_disk_loses_nothing():
    one = Session("anna", items_of())
    one.save(0, 0, {"text": "Saved."})
    before = one.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))  # 100 bytes are left
    try:
        with pytest.raises(OSError, match=r"No space|too large"):
            one.save(1, 0, {"text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert one.path.read_bytes() == before and one.annotation(1).text == ""
    one.save(1, 0, {"text": "Now."})
    assert Session("anna", items_of()).annotation(1).text == "Now."


def test_a_line_that_a_kill_cut_off_is_dropped():
    one = Session("anna", items_of())
    one.save(0, 0, {"text": "Saved."})
    with one.path.open("ab") as file:
        file.write(b'{"content": "half')
    again = Session("anna", items_of())
    again.save(1, 0, {"text": "Next."})
    assert len(read_annotations()["anna"]) == 2


def test_a_clock_that_goes_back_changes_no_order(monkeypatch):
    one = Session("anna", items_of())
    one.save(0, 0, {"text": "Earlier."}, 5)
    back = SimpleNamespace(now=lambda zone: datetime.now(UTC) - timedelta(days=3))
    monkeypatch.setattr(session, "datetime", back)
    one.save(0, 1, {"text": "Later."}, -1e9)
    found = Session("anna", items_of()).annotation(0)
    assert (found.text, found.seconds) == ("Later.", 5.0), "the last line, and no negative time"
    one.save(0, 2, {"text": "Last."}, 1e9)
    assert one.annotation(0).seconds == 5.0 + session.MOST_SECONDS


def test_a_damaged_file_is_named_with_its_line():
    annotations_file("anna").parent.mkdir(parents=True)
    annotations_file("anna").write_text('{"content": 1}\n')
    with pytest.raises(UserError, match=r"anna\.jsonl, line 1"):
        Session("anna", items_of())


# Drafts -----------------------------------------------------------------------------------------------


def test_predictions_of_the_pipeline_are_drafts(project):
    params = load_params()
    rows = [a_sample(n) for n in range(3)]
    thinks = ["There is a nodule.", None, "No nodule."]
    write_records(
        predictions_file("sft", params.main_mode, params.own_test),
        [Prediction(id=row.id, completion="", think=think, answer="yes") for row, think in zip(rows, thinks)],
    )
    found = drafts.proposals("sft", params, rows)
    assert found == {
        content_key(rows[0]): (Proposal("sft", thinks[0], ("nodule",), answer="yes"),),
        content_key(rows[2]): (Proposal("sft", thinks[2], ("no nodule",), answer="yes"),),
    }
    assert drafts.answered_by(params, rows)["sft"][content_key(rows[1])].answer == "yes"
    assert drafts.proposals("sft", params, []) == {}


def test_an_endpoint_is_asked_once_and_by_what_asks_for_consent(project, monkeypatch):
    text = (project / "params.yaml").read_text()
    rival = "  far:\n    label: Far\n    base_url: https://example.org/v1\n    model: m\n    api_key_env: null\n"
    (project / "params.yaml").write_text(text.replace("\nrival:\n", f"\nrival:\n{rival}"))
    asked = []

    def ask_endpoint(slug, params, tasks):
        [task] = tasks
        asked.append((slug, [sample.id for sample in task.samples]))
        answers = [Prediction(id=sample.id, completion="", think="A mass.", answer="no") for sample in task.samples]
        write_records(task.kept, answers)

    monkeypatch.setitem(sys.modules, "rarl.inference.endpoint", SimpleNamespace(ask_endpoint=ask_endpoint))
    for _ in range(2):
        [draft] = drafts.proposals("far", load_params(), [a_sample(4)])[content_key(a_sample(4))]
    assert draft == Proposal("far", "A mass.", ("mass",), answer="no")
    assert asked == [("far", [content_key(a_sample(4))])]
    *_, found = drafts.answered_by(load_params(), [a_sample(4)]).values()
    assert found[content_key(a_sample(4))].answer == "no"


def test_an_unknown_model_is_refused(project):
    for option in ("--drafts", "--ask"):
        for name in ("gpt", "../base", "/etc"):
            result = CliRunner().invoke(annotate, ["--rater", "anna", "--order", "useful", option, name])
            assert result.exit_code == 1 and f"{option} {name}\n  found:    no such model" in result.output
    assert plan.read() is None
    with pytest.raises(UserError, match="data/models"):
        drafts.proposals("sft", load_params(), [a_sample(4)])


# Agreement and adjudication ---------------------------------------------------------------------------


def finished(rater, sample, **fields):
    base = {"text": "A text.", "verdict": "explained", "at": "now"}
    write_records(annotations_file(rater), [
        *read_annotations().get(rater, {}).values(),
        Annotation(content=content_key(sample), id=sample.id, **base | fields),
    ])  # fmt: skip


def images_of(samples):
    return {content_key(sample): sample.image_sha256 for sample in samples}


def test_kappa_is_cohens_for_two_and_fleiss_for_more():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(1)
    units = rng.integers(3, size=(60, 2))
    assert agreement.kappa(units, 3) == pytest.approx(cohen_kappa_score(*units.T))
    assert agreement.kappa(np.ones((5, 2), dtype=int), 3) is None
    # Fleiss (1971), as in statsmodels' own test: 10 subjects, 14 raters, 5 categories, 0.210.
    counts = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
              [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
    fleiss = np.array([np.repeat(np.arange(5), row) for row in counts])
    assert agreement.kappa(fleiss, 5) == pytest.approx(0.210, abs=5e-4)


def test_agreement_counts_common_rows_with_intervals_by_image(empty_folder):
    samples = [a_sample(n) for n in range(12)]
    for n, sample in enumerate(samples):
        finished("anna", sample, findings=("nodule",) if n % 2 else ("no nodule",), text="A nodule.")
        finished("ben", sample, findings=("nodule",) if n % 2 and n < 9 else ("no nodule",), text="A left nodule.")
    finished("cara", samples[0], verdict=None)
    rows = agreement.overlaps(read_annotations(), images_of(samples))
    [found] = agreement.agreement(rows, seed=1)
    assert (found["raters"], found["rows"], found["images"], found["kappa"]) == (["anna", "ben"], 12, 6, "Cohen")
    value, low, high = found["findings_kappa"]
    assert value == pytest.approx(2 / 3) and low < value < high <= 1
    assert found["verdict_kappa"][0] is None, "all explained"
    assert found["text_f1"][0] == pytest.approx(2 / 3)
    assert found["disagreements"] == {"opposite findings": 2}
    again = agreement.overlaps(read_annotations(), images_of(samples[::-1]))
    assert agreement.agreement(again, seed=1) == [found], "whatever the order of the rows in their files"
    for sample in samples:
        finished("cara", sample, findings=("nodule",))
    [three] = agreement.agreement(agreement.overlaps(read_annotations(), images_of(samples)))
    assert three["kappa"] == "Fleiss" and three["rows"] == 12


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"findings": ("left", "nodule")}, {"findings": ("left", "nodule")}, None),
        ({"findings": ("left", "lung", "nodule")}, {"findings": ("lung", "nodule", "right")}, "opposite findings"),
        ({"findings": ("nodule",)}, {"findings": ("no nodule",)}, "opposite findings"),
        ({"findings": ("nodule",)}, {"findings": ("nodule", "hazy")}, None),
        ({"findings": ("round",)}, {"findings": ("hazy",)}, "other findings"),
        ({"verdict": "not_visible"}, {}, "verdict"),
        ({"verdict": "not_visible", "findings": ("left",)}, {"verdict": "not_visible"}, None),
    ],
)
def test_when_a_third_reader_is_needed(first, second, why):
    base = {"content": "c", "id": "i", "verdict": "explained"}
    one, two = (Annotation(**base | fields) for fields in (first, second))
    assert agreement.differ(one, two) == agreement.differ(two, one) == why


def test_the_third_reader_sees_what_others_disagree_on_and_nobody_else_does(project):
    params = load_params()
    made = console.planned(params, "anna", {"raters": ("anna", "ben"), "overlap": 1.0})
    samples = list(console.samples_of("train").values())[4:]
    for n, sample in enumerate(samples[:-1]):
        finished("anna", sample, findings=("nodule",), text=f"Anna {n}")
        finished("ben", sample, findings=("no nodule" if n == 3 else "nodule",), text=f"Ben {n}")
    with pytest.raises(UserError, match="1 unfinished rows of their own"):
        console.disputed("anna", made, read_annotations())
    [item] = console.disputed("cara", made, read_annotations())
    assert item.sample.id == samples[3].id and item.adjudicates == ("anna", "ben")
    assert {proposal.text for proposal in item.proposals} == {"Anna 3", "Ben 3"}
    third = Session("cara", [item])
    assert third.adjudicating
    third.save(0, 0, {"take": 0, "verdict": "explained"})
    decided = third.annotation(0)
    assert decided.by in ("anna", "ben") and decided.origin == "accepted" and decided.adjudicates == ("anna", "ben")
    assert console.disputed("dora", made, read_annotations()) == []
    rows = agreement.overlaps(read_annotations(), images_of(samples))
    assert all("cara" not in row.by for row in rows), "an adjudication is no blind annotation"


def test_the_command_prints_the_agreement(project):
    result = CliRunner().invoke(annotate, ["--agreement"])
    assert result.exit_code == 1 and "common rows" in result.output
    for n, sample in enumerate(list(console.samples_of("train").values())[4:10]):
        finished("anna", sample, findings=("nodule",) if n else ("left",))
        finished("ben", sample, findings=("nodule",))
    result = CliRunner().invoke(annotate, ["--agreement"])
    assert result.exit_code == 0, result.output
    assert "findings: Cohen's kappa" in result.output and "verdict: Cohen's kappa undefined" in result.output
    assert read_json("data/annotations/agreement.json")["all"][0]["rows"] == 6
    made = console.planned(load_params(), "anna", {"raters": ("anna", "ben"), "order": "useful"})
    assert CliRunner().invoke(annotate, ["--agreement"]).exit_code == 0
    done = {one.content for one in read_annotations()["anna"].values()}
    at_random = [row for row in made.rows if row.chosen == "random" and row.content in done]
    of_them = read_json("data/annotations/agreement.json")["random"]
    assert sum(group["rows"] for group in of_them) == len(at_random)


# Export and training --------------------------------------------------------------------------------


def test_only_finished_and_undisputed_annotations_are_exported(project):
    samples = list(console.samples_of("train").values())[4:]
    finished("anna", samples[0], text="Approved.")
    finished("anna", samples[1], verdict=None, text="Taken to be edited, and left.", origin="accepted", by="sft")
    finished("anna", samples[2], findings=("nodule",))
    finished("ben", samples[2], findings=("no nodule",))
    finished("anna", samples[3], verdict="not_visible", text="Typed before.")
    finished("anna", samples[4], text="Anna's.")
    finished("ben", samples[4], text="Ben's.")
    rows, disputed = export.table(read_annotations())
    by_id = {row.id: row for row in rows}
    assert disputed == 1 and by_id.keys() == {samples[n].id for n in (0, 3, 4)}
    assert by_id[samples[3].id].text == "" and by_id[samples[4].id].raters == ("anna", "ben")
    finished("cara", samples[2], text="Decided.", adjudicates=("anna", "ben"))
    rows, disputed = export.table(read_annotations())
    assert disputed == 0 and {row.text for row in rows if row.id == samples[2].id} == {"Decided."}
    finished("ben", samples[2], text="Ben's.", findings=("no nodule",), origin="edited", by="sft")
    finished("cara", samples[2], text="Ben's.", origin="accepted", by="ben", adjudicates=("anna", "ben"))
    [row] = [row for row in export.table(read_annotations())[0] if row.id == samples[2].id]
    assert (row.rater, row.origin, row.by) == ("ben", "edited", "sft"), "an edited draft stays one"
    assert row.raters == ("anna", "ben", "cara")


def test_the_export_names_its_content_and_keeps_the_comments(project):
    before = (project / "params.yaml").read_text()
    assert CliRunner().invoke(annotate, ["--export"]).exit_code == 1
    sample = list(console.samples_of("train").values())[4]
    finished("anna", sample, text=HOSTILE)
    result = CliRunner().invoke(annotate, ["--export"])
    assert result.exit_code == 0, result.output
    first = load_params().annotations
    [row] = annotations.read_table(first)
    assert row.text == HOSTILE
    after = (project / "params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before.splitlines(), after, strict=True) if old != new]
    assert len(changed) == 1 and changed[0][0].split("#")[1] == changed[0][1].split("#")[1], "and the comments"
    CliRunner().invoke(annotate, ["--export"])
    assert load_params().annotations == first, "equal content, equal name"
    finished("anna", sample, text="Other.")
    CliRunner().invoke(annotate, ["--export"])
    assert load_params().annotations != first and annotations.read_table(first), "the earlier table stays"
    (project / f"data/annotations/{first}.jsonl").write_text("")
    for digest in (first, "0" * 16):
        with pytest.raises(UserError, match=r"annotations = (.|\n)*backup"):
            annotations.read_table(digest)


def test_curate_joins_the_annotations_and_counts_them(releases):
    assert run(curate).exit_code == 0
    before = read_json("metrics/curate.json")
    assert "annotations" not in before, "the default's metrics stay as they are"
    samples = {split: read_records(f"data/curated/{split}.jsonl", Sample) for split in ("train", "test")}
    finished(
        "anna", samples["train"][0], text="The crop </think> <answer>is</answer>  even.", origin="edited", by="sft"
    )
    finished("ben", samples["train"][1], verdict="wrong_question", text="")
    finished("ben", samples["test"][0], text="It is even.")
    finished("ben", a_sample(99), text="Of a row that is gone.")
    assert CliRunner().invoke(annotate, ["--export"]).exit_code == 0
    result = run(curate)
    assert result.exit_code == 0 and "1 annotations are of no row here" in result.output, result.output
    joined = {split: read_records(f"data/curated/{split}.jsonl", Sample) for split in ("train", "test")}
    assert joined["train"][0].reasoning == "The crop is even.", "without the tags that would end it in SFT"
    assert joined["test"][0].reasoning == "It is even."
    metrics = read_json("metrics/curate.json")
    assert metrics["train"]["annotated"] == metrics["test"]["annotated"] == 1
    assert metrics.pop("annotations") == {
        "table": load_params().annotations, "rows_joined": 3, "explained": 2, "not_visible": 0, "wrong_question": 1,
        "without_a_row": 1, "by_rater": {"anna": 1, "ben": 1}, "by_source": {"edited": 1, "own": 1},
        "left_out_of_train": {"not_visible": 0, "wrong_question": 1},
        "left_out_of_dev": {"not_visible": 0, "wrong_question": 0},
        "kept_in_test": {"not_visible": 0, "wrong_question": 0},
    }  # fmt: skip
    assert "by_rater (anna 1, ben 1)" in result.output


def test_rows_that_physicians_doubt_are_not_trained_on_and_are_accounted_for(releases):
    assert run(curate).exit_code == 0
    before = {split: read_records(f"data/curated/{split}.jsonl", Sample) for split in ("train", "dev", "test")}
    finished("anna", before["train"][0], verdict="wrong_question", text="")
    finished("anna", before["dev"][0], verdict="not_visible", text="")
    finished("anna", before["test"][0], verdict="wrong_question", text="")
    assert CliRunner().invoke(annotate, ["--export"]).exit_code == 0
    result = run(curate)
    assert result.exit_code == 0, result.output
    assert read_records("data/curated/train.jsonl", Sample) == before["train"][1:]
    for split in ("train", "dev"):
        assert read_records(f"data/curated/{split}_left_out.jsonl", Sample) == before[split][:1]
    assert read_records("data/curated/test.jsonl", Sample) == before["test"], "scores stay comparable"
    counts = read_json("metrics/curate.json")
    found = counts["annotations"]
    assert found["left_out_of_train"] == {"not_visible": 0, "wrong_question": 1}
    assert found["left_out_of_dev"] == {"not_visible": 1, "wrong_question": 0}
    assert found["kept_in_test"] == {"not_visible": 0, "wrong_question": 1}
    assert counts["train"]["total"] + 1 == len(before["train"]), "every row is accounted for"
    assert "1 train rows are left out by annotation: data/curated/train_left_out.jsonl" in result.output
    assert "1 test rows are scored, though annotated as" in result.output
    assert len(console.samples_of("train")) == len(before["train"]), "the raters can still open them"
    finished("anna", before["train"][1], verdict="wrong_question", text="")
    finished("ben", a_sample(99))
    result = CliRunner().invoke(annotate, ["--export"])
    assert result.exit_code == 0 and "anna: 4 finished rows\nben: 1 finished rows\n" in result.output
    result = run(curate)
    assert result.exit_code == 1 and "every training row as not_visible or wrong_question" in result.output


def test_reasoning_of_the_release_is_counted_as_such(releases):
    rows = [{"img_name": f"xmlab{n}.jpg", "question": "Is the crop healthy?", "answer": "It shines."} for n in (0, 1)]
    (releases / "releases/silvar_med").mkdir()
    (releases / "releases/silvar_med/rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert run(curate).exit_code == 0
    finished("anna", read_records("data/curated/train.jsonl", Sample)[0], text="It is even.")
    assert CliRunner().invoke(annotate, ["--export"]).exit_code == 0
    assert run(curate).exit_code == 0
    assert {row.reasoning for row in read_records("data/curated/train.jsonl", Sample)} == {"It is even.", "It shines."}
    assert read_json("metrics/curate.json")["annotations"]["by_source"] == {"own": 1, "release": 1}


# The page -------------------------------------------------------------------------------------------


@pytest.fixture
def annotated(empty_folder):
    """Six rows with a draft, on the page of a real server: the session, and the address with its token."""
    pytest.importorskip("uvicorn")
    from rarl.annotating.page import Page, Served

    for number in range(6):
        draw_bars(empty_folder / f"{number}.png", number)
    own = Session("anna", items_of(6, DRAFT))
    served = Served(Page(own, empty_folder), 0)
    thread = threading.Thread(target=served.run)
    thread.start()
    yield own, served.address
    served.stop()
    thread.join()


def test_nobody_is_let_in_without_the_token(annotated):
    _, address = annotated
    bare = address.partition("?")[0]
    for path in ("", "case/0", "page.js"):
        assert requests.get(bare + path).status_code == 403
    assert "rarl annotate" in requests.get(bare).text
    assert requests.post(bare + "case/0", json={"revision": 0, "text": "x"}).status_code == 403
    with requests.Session() as browser:
        page = browser.get(address)
        assert page.status_code == 200 and "Annotation" in page.text and "connect-src 'self'" in page.text
        assert browser.get(bare + "case/0", headers={"Host": "evil.com"}).status_code == 400
        assert browser.get(bare + "openapi.json").status_code == 404
        assert browser.get(bare + "case/99").status_code == 404


def test_the_server_says_why_it_has_not_saved(annotated, monkeypatch):
    _, address = annotated
    with requests.Session() as browser:
        browser.get(address)
        case = address.partition("?")[0] + "case/1"

        def post(**fields):
            response = browser.post(case, json=fields)
            return response.status_code, response.json().get("error")

        assert post(revision=0, text="A nodule.", seconds=1) == (200, None)
        assert post(revision=0, text="Other.") == (409, "This row was changed in another window.")
        assert post(revision=1, text="", verdict="explained")[0] == 422
        assert post(revision=1, take=7)[0] == post(text="x")[0] == post(revision=1, verdict="maybe")[0] == 422
        assert browser.post(case, data="{").status_code == 422
        monkeypatch.setattr(
            session, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        assert post(revision=1, text="More.") == (507, "NOT SAVED: No space left on device.")
        shown = browser.get(case).json()
    assert shown["annotation"]["text"] == "A nodule." and shown["in_text"] == ["nodule"]
    assert shown["sample"] == {"question": "Is there a nodule, 1?", "choices": [], "answers": ["Yes"]}
    assert shown["proposals"][0]["title"] == "Draft by sft: nobody has checked it"


def a_ct(path: Path, interpretation: str = "MONOCHROME2") -> Path:
    """A CT image in 12 bits, air to bone, with two windows in its header."""
    values = np.linspace(0, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    windows = {"WindowCenter": [40, 400], "WindowWidth": [80, 1800]}
    bits = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": -1024}
    return make(path, values, interpretation, **bits, **windows)


@pytest.fixture
def scans(empty_folder, monkeypatch):
    """Three rows of own data: a CT image in DICOM, one of 8 bits, and a PNG; curated, and on the page of a server."""
    pytest.importorskip("uvicorn")
    own = empty_folder / "raw/own/Gizzard^Wilhelmina"
    own.mkdir(parents=True)
    a_ct(own / "a.dcm")
    make(own / "b.dcm")
    draw_bars(own / "c.png", 1)
    lines = [f"{own.name}/{name},Is it bent?,no,CT" for name in ("a.dcm", "b.dcm", "c.png")]
    (own.parent / "rows.csv").write_text("\n".join(["image,question,answer,modality", *lines]))
    images = Images(empty_folder / "raw", Path("data/curated/pictures"))
    samples = read(own_data, empty_folder / "raw", "test", images=images, table="rows.csv").samples
    write_records("data/curated/train.jsonl", samples)
    return samples


def test_the_dicom_file_of_an_image_is_found_by_its_content_and_in_no_record(scans, monkeypatch):
    images = {sample.image for sample in scans}
    found = sources.dicom_files("raw", images)
    assert {path.name: image for image, path in found.items()} == {"a.dcm": scans[0].image, "b.dcm": scans[1].image}
    assert "Gizzard" not in "".join(sample.model_dump_json() for sample in scans[:2])
    assert sources.KEPT.stat().st_mode & 0o077 == 0, "names may identify a person"
    with monkeypatch.context() as patched:
        patched.setattr(sources, "to_png", None)
        assert sources.dicom_files("raw", images) == found, "kept"
    assert sources.dicom_files("raw", {scans[2].image}) == sources.dicom_files("elsewhere", images) == {}
    sources.KEPT.write_text("{")
    (Path("raw/own") / "broken.dcm").write_bytes(b"no")
    assert sources.dicom_files("raw", images) == found, "a damaged file is made again"


def test_the_page_windows_the_values_of_a_dicom_file(scans):
    from rarl.annotating.page import Page, Served

    dicom = sources.dicom_files("raw", {sample.image for sample in scans})
    served = Served(Page(Session("anna", [*map(Item, scans)]), "raw", dicom=dicom), 0)
    thread = threading.Thread(target=served.run)
    thread.start()
    bare = served.address.partition("?")[0]
    try:
        with requests.Session() as browser:
            browser.get(served.address)
            shown = [browser.get(f"{bare}case/{n}").json()["window"] for n in range(3)]
            assert shown[1:] == [None, None], "8 bits are all that there is"
            assert (shown[0]["low"], shown[0]["high"]) == (-1024, 2976)
            presets = dict(map(tuple, shown[0]["presets"]))
            assert [*presets] == ["Header 1", "Header 2", "Lung", "Soft tissue", "All"], "each once"
            assert presets["Header 2"] == [400, 1800] and presets["All"] == [976.5, 4001]

            def image(centre, width, number=0):
                response = browser.get(f"{bare}case/{number}/image", params={"centre": centre, "width": width})
                assert response.status_code == 200 and response.headers["Cache-Control"] == "no-store"
                return np.asarray(Image.open(io.BytesIO(response.content))).astype(int)

            as_the_model_sees_it = np.asarray(Image.open(scans[0].image)).astype(int)
            assert (image(*presets["Header 1"]) == as_the_model_sees_it).all()
            values = np.linspace(0, 4000, 64 * 64).astype(np.uint16).astype(float) - 1024
            expected = np.clip((values - 399.5) / 1799 + 0.5, 0, 1) * 255  # PS3.3, C.11.2.1.2.1
            assert np.abs(image(400, 1800).ravel() - expected).max() <= 0.51
            assert {*np.unique(image(40, 0.001))} == {0, 255}, "the narrowest window has two values"
            for query, status in {"centre=x&width=1": 422, "centre=nan&width=9": 422, "width=1": 404}.items():
                assert browser.get(f"{bare}case/0/image?{query}").status_code == status
            for number in (2, 9):
                assert browser.get(f"{bare}case/{number}/image?centre=1&width=9").status_code == 404
            assert requests.get(f"{bare}case/0/image?centre=1&width=9").status_code == 403
    finally:
        served.stop()
        thread.join()


def test_the_third_reader_does_not_see_who_wrote_what(empty_folder):
    from rarl.annotating.page import Page

    item = Item(a_sample(), (Proposal("quinta", "One."), Proposal("zeno", "Two.")), ("quinta", "zeno"))
    page = Page(Session("cara", [item]), empty_folder)
    shown = json.dumps(page.state(0)) + page.html()
    assert "Reader A" in shown and "quinta" not in shown and "zeno" not in shown and "Adjudication" in shown


def test_the_page_loads_nothing_from_elsewhere():
    for path in (ROOT / "rarl/annotating").glob("page.*"):
        text = path.read_text(encoding="utf-8")
        assert "https://" not in text and "http://" not in text and "innerHTML" not in text, path


def test_the_command_needs_a_rater_its_packages_and_a_free_port(project, monkeypatch):
    assert "--rater is needed" in CliRunner().invoke(annotate, []).output
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "uvicorn", None)
        result = CliRunner().invoke(annotate, ["--rater", "anna"])
    assert result.exit_code == 1 and "not installed: uvicorn" in result.output and "[annotate]" in result.output
    assert plan.read() is None
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(annotate, ["--rater", "anna", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1 and "the port is taken" in result.output
    assert "nothing to decide" in CliRunner().invoke(annotate, ["--rater", "cara", "--adjudicate"]).output
    plan.file().unlink()
    result = CliRunner().invoke(annotate, ["--rater", "cara", "--adjudicate"])
    assert result.exit_code == 1 and "plan.json\n  found:    no such file" in result.output
    assert plan.read() is None, "the third reader plans nothing"
