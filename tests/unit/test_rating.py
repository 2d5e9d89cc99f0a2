"""Human evaluation: the queue, the session, the judge, the page and the export. Data and pictures are made up."""

import hashlib
import html
import json
import re
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
import requests
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from rarl.answers.completion import read_completion
from rarl.cli import rate
from rarl.errors import UserError
from rarl.judges import human
from rarl.judges.human import Rating, fingerprint, majority, read_ratings
from rarl.params import load_params
from rarl.rating import access, blinding, console, export, worklist
from rarl.rating.page import html_of, image_html
from rarl.rating.session import Session
from rarl.records import Prediction, Sample, predictions_file, read_records, write_records

MODELS = ("base", "sft", "grpo", "rarl")


def a_sample(number: int = 0, **fields) -> Sample:
    base = {
        "id": f"x/test/{number}", "dataset": "x", "split": "test", "image": "1.png", "image_sha256": "ab",
        "question": "What is seen?", "answers": ["Nodule"], "kind": "open", "reasoning": "A round spot.",
    }  # fmt: skip
    return Sample(**{**base, **fields})


def a_prediction(completion: str, number: int = 0, **fields) -> Prediction:
    think, answer = read_completion(completion)
    base = {"id": f"x/test/{number}", "completion": completion, "think": think, "answer": answer}
    return Prediction(**base | fields)


def an_item(completion="<think>A spot.</think> <answer>Nodule</answer>", number=0, **fields):
    sample, prediction = a_sample(number, **fields), a_prediction(completion, number)
    return worklist.Item(sample, prediction, fingerprint(sample, prediction), (token_of(PLACE),))


def token_of(place: str) -> str:
    return blinding.tokens([place])[place]


def items_of(questions: int = 6, models: int = 4) -> list[worklist.Item]:
    return [
        an_item(f"<think>Thought {m}.</think> <answer>Nodule {q}</answer>", q)
        for m in range(models)
        for q in range(questions)
    ]


PLACE = "rarl/reasoning/x"


def verdicts(samples, predictions, rater=None, ratings=None, place=PLACE):
    settings = SimpleNamespace(rater=rater, ratings=ratings)
    return human.judge(samples, predictions, settings, place=place, encoder=None, truth_file=None)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Ratings of the tests lie in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(empty_folder, repository):
    """params.yaml, six questions, a picture, and four models' predictions for them."""
    params = (repository / "params.yaml").read_text(encoding="utf-8")
    (empty_folder / "params.yaml").write_text(params, encoding="utf-8")
    params = load_params()
    write_records(params.samples_file(params.own_test), [a_sample(n) for n in range(6)])
    for mode in params.modes:
        for model in [model for model in params.models if mode in params.modes_of(model)]:
            rows = [
                a_prediction(f"<think>{mode} {'' if n else model}</think> <answer>A</answer>", n) for n in range(6)
            ]
            write_records(predictions_file(model, mode, params.own_test), rows)
    return empty_folder


# The queue ------------------------------------------------------------------------------------------


def test_questions_come_in_the_same_order_for_all_and_answers_do_not():
    items = items_of()
    anna, ben = (worklist.queue_of(items, rater, seed=7) for rater in ("anna", "ben"))
    assert len(anna) == 24 and {item.key for item in anna} == {item.key for item in ben}
    assert [item.sample.id for item in anna] == [item.sample.id for item in ben]
    assert [item.key for item in anna] != [item.key for item in ben]
    assert [item.key for item in anna] == [item.key for item in worklist.queue_of(items, "anna", 7)]
    assert [i.sample.id for i in anna] != [i.sample.id for i in worklist.queue_of(items, "anna", 8)]


def test_a_place_in_the_queue_says_nothing_about_the_model():
    """Over many questions every model is first about as often."""
    first = [
        part[0].prediction.think
        for number in range(200)
        for items in [[an_item(f"<think>{m}</think> <answer>A</answer>", number) for m in MODELS]]
        for part in [worklist.queue_of(items, "anna", 7)]
    ]
    assert all(25 <= first.count(model) <= 75 for model in MODELS), {m: first.count(m) for m in MODELS}  # fmt: skip


def test_a_sample_is_the_same_questions_for_all_and_grows_at_its_end():
    items = items_of(20)
    small, large = worklist.queue_of(items, "anna", 7, 5), worklist.queue_of(items, "ben", 7, 9)
    assert len(small) == 20 and len({item.sample.id for item in small}) == 5
    assert [item.sample.id for item in large][:20] == [item.sample.id for item in small]


def test_order_stays_when_a_model_is_added():
    few, many = (worklist.queue_of(items_of(6, models), "anna", 7) for models in (2, 4))
    assert [item.key for item in many if item in few] == [item.key for item in few]


def test_answers_are_read_once_where_models_agree_and_left_out_where_nobody_was_asked(project):
    params = load_params()
    unread = [a_prediction("", n, error="no picture") for n in range(6)]
    write_records(predictions_file("base", "reasoning", "silvar_med"), unread)
    items = worklist.answers(params, MODELS, "reasoning", "silvar_med")
    assert sorted(item.sample.id[-1] for item in items) == ["0", "0", "0", "1", "2", "3", "4", "5"]
    tokens = [token_of(f"{model}/reasoning/silvar_med") for model in ("sft", "grpo", "rarl")]
    assert sorted(len(item.of) for item in items) == [1, 1, 1, 3, 3, 3, 3, 3]
    assert {token for item in items for token in item.of} == {*tokens}


@pytest.mark.parametrize(
    "arguments",
    [(["lora"], "reasoning", "silvar_med"), (["rarl"], "x", "silvar_med"), (["rarl"], "reasoning", "y"),
     (["rarl"], "blank", "slake")],
)  # fmt: skip
def test_what_params_do_not_have_is_refused(project, arguments):
    with pytest.raises(UserError):
        worklist.checked(load_params(), *arguments)


def test_disputed_are_the_ties():
    items = items_of(1)
    scores = {"anna": [1, 1, 1, None], "ben": [1, 0, 1, None], "cara": [None, None, 0, None]}
    raters = {
        rater: {
            item.key: Rating(id=item.sample.id, shown=item.shown, final=score) for item, score in zip(items, given)
        }
        for rater, given in scores.items()
    }
    assert worklist.disputed(items, raters) == [items[1]]


# The session -------------------------------------------------------------------------------------------


def test_each_click_is_a_line_and_the_last_one_counts():
    items = items_of(2, 1)
    session = Session("anna", items)
    assert not session.path.exists()
    for changes in ({"final": 1}, {"reasoning": 0}, {"final": 0}, {"final": 0}, {"comment": "ü\n?"}):
        session.save(0, **changes)
    lines = [json.loads(line) for line in session.path.read_text(encoding="utf-8").splitlines()]
    assert [line["final"] for line in lines] == [1, 1, 0, 0], "what changes nothing adds no line"
    [(key, rating)] = read_ratings("anna")["anna"].items()
    assert key == items[0].key
    assert (rating.final, rating.reasoning, rating.comment) == (0, 0, "ü\n?")


def test_going_on_later_starts_at_the_first_answer_that_is_not_rated():
    items = items_of(3, 1)
    session = Session("anna", items)
    session.save(0, final=1, reasoning=1)
    session.save(1, final=1)
    again = Session("anna", items)
    assert (again.done, again.next_open()) == (1, 1), "without the reasoning score it is not done"
    again.save(1, reasoning=0)
    assert again.next_open() == 2 and again.next_open(2) == 2
    again.save(2, final=0, reasoning=0)
    assert again.next_open() is None and Session("anna", items).done == 3
    assert Session("ben", items).done == 0


def test_a_line_that_a_crash_cut_off_is_dropped():
    items = items_of(2, 1)
    Session("anna", items).save(0, final=1, reasoning=1)
    path = human.ratings_file("anna")
    path.write_bytes(path.read_bytes() + b'{"id": "x/te')
    assert len(read_ratings("anna")["anna"]) == 1, "the judge reads what is whole"
    again = Session("anna", items)
    assert again.done == 1
    again.save(1, final=0, reasoning=0)
    assert len(read_ratings("anna")["anna"]) == 2
    assert len(path.read_bytes().splitlines()) == 2


def test_the_models_fault_is_wrong_whatever_is_pressed_and_reasoning_is_asked_only_where_annotated():
    empty, plain = an_item("<think>A spot.</think>"), an_item(number=1, reasoning=None)
    session = Session("anna", [empty, plain])
    session.save(0, final=1)
    session.save(1, final=1, reasoning=1)
    assert session.rating(0).final == 0 and not session.is_done(0)
    assert session.rating(1).reasoning is None and session.is_done(1)


@pytest.mark.parametrize("name", ["../anna", "Anna", "a b", "", "a" * 41, "/etc/x", "a.b", "a\n", "..", "ä"])
def test_unsafe_rater_names_are_refused(name):
    with pytest.raises(UserError):
        human.ratings_file(name)
    with pytest.raises(UserError):
        Session(name, [])


# The judge ------------------------------------------------------------------------------------------


def test_ratings_become_verdicts_in_the_order_of_the_predictions():
    items = [an_item(f"<answer>{n}</answer>", n) for n in range(3)]
    session = Session("anna", items)
    session.save(1, final=1, reasoning=0, comment="Left, not right")
    session.save(0, final=0, reasoning=1)
    found = verdicts([i.sample for i in items], [i.prediction for i in items])
    assert [v.id for v in found] == [i.sample.id for i in items]
    assert [v.prediction_score for v in found] == [0, 1, None]
    assert [v.reasoning_score for v in found] == [1, 0, None]
    assert [v.unscored for v in found] == [None, None, "not rated"]
    assert "Left, not right" in found[1].evaluation


def test_a_rating_holds_only_for_what_was_seen():
    """Another completion, question, reference or picture of the same id: not rated, and the reason says so."""
    item = an_item()
    Session("anna", [item]).save(0, final=1, reasoning=1)
    [same] = verdicts([item.sample], [item.prediction])
    assert same.prediction_score == 1
    changes = {"question": "?", "answers": ["Mass"], "reasoning": "Other", "image_sha256": "cd"}
    others = [
        (item.sample, a_prediction("<answer>Something else</answer>")),
        (item.sample, item.prediction.model_copy(update={"truncated": True})),
        *((item.sample.model_copy(update={key: value}), item.prediction) for key, value in changes.items()),
    ]
    for sample, prediction in others:
        [verdict] = verdicts([sample], [prediction])
        assert verdict.prediction_score is None and "1 of 1 rated answers" in verdict.unscored


def test_no_score_of_the_answers_that_happen_to_be_rated():
    """What is rated must not depend on the answer: else the score is that of the easy ones."""
    items = [an_item(f"<answer>{n}</answer>", n) for n in range(3)]
    session = Session("anna", items)
    for position in (0, 1):
        session.save(position, final=1, reasoning=1)
    samples, predictions = [i.sample for i in items], [i.prediction for i in items]
    assert [v.unscored for v in verdicts(samples, predictions)] == [None, None, "not rated"]
    elsewhere = verdicts(samples, predictions, place="base/reasoning/x")
    assert {v.unscored for v in elsewhere} == {"not rated"}, "equal answers of a model that was not to be rated"

    retrained = [predictions[0], a_prediction("<answer>new</answer>", 1), predictions[2]]
    found = verdicts(samples, retrained)
    assert {v.unscored for v in found} == {"1 of 2 rated answers have changed since, and are to be rated again"}
    Session("ben", [worklist.Item(samples[1], retrained[1], fingerprint(samples[1], retrained[1]), items[0].of)]).save(
        0, final=0, reasoning=0
    )
    assert [v.prediction_score for v in verdicts(samples, retrained)] == [1, 0, None]


def test_an_answer_that_another_model_gave_too_is_confirmed_before_it_counts_there():
    rarl = an_item()
    both = replace(rarl, of=(*rarl.of, token_of("sft/reasoning/x")))
    Session("anna", [rarl]).save(0, final=1, reasoning=1)
    session = Session("anna", [both])
    assert session.rating(0).final == 1 and not session.is_done(0)
    assert both.is_scored(session.rating(0)), "going on is enough"
    session.save(0)
    assert session.is_done(0)
    [verdict] = verdicts([rarl.sample], [rarl.prediction], place="sft/reasoning/x")
    assert verdict.prediction_score == 1


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([1], 1), ([1, 0], None), ([1, 0, 0], 0), ([1, 1, 0], 1), ([None, 1], 1), ([], None), ([None], None)],
)  # fmt: skip
def test_majority(scores, expected):
    assert majority(scores) == expected


def test_majority_of_raters_and_one_rater_alone():
    item = an_item()
    for rater, final, reasoning in (("anna", 1, 1), ("ben", 0, 1), ("cara", 0, 0)):
        Session(rater, [item]).save(0, final=final, reasoning=reasoning)
    [all_three] = verdicts([item.sample], [item.prediction])
    assert (all_three.prediction_score, all_three.reasoning_score) == (0, 1)
    [alone] = verdicts([item.sample], [item.prediction], rater="anna")
    assert (alone.prediction_score, alone.reasoning_score) == (1, 1)
    human.ratings_file("cara").unlink()
    [tied] = verdicts([item.sample], [item.prediction])
    assert tied.prediction_score is None and tied.unscored == "raters disagree, 1 to 1"
    assert tied.reasoning_score is None and "anna" in tied.evaluation and "ben" in tied.evaluation


def test_who_could_not_be_asked_is_unscored_with_the_machinerys_reason():
    [verdict] = verdicts([a_sample()], [a_prediction("", error="image unreadable")])
    assert verdict.unscored == "image unreadable"


def test_changed_ratings_are_said(capsys):
    item = an_item()
    Session("anna", [item]).save(0, final=1, reasoning=1)
    pinned = human.digest(read_ratings())
    verdicts([item.sample], [item.prediction], ratings=pinned)
    assert "--export" not in capsys.readouterr().err
    Session("anna", [item]).save(0, final=0)
    human._print_once.cache_clear()
    verdicts([item.sample], [item.prediction], ratings=pinned)
    assert "--export" in capsys.readouterr().err


def test_a_file_that_is_not_ratings_is_named_with_its_line():
    Session("anna", [an_item()]).save(0, final=1)
    path = human.ratings_file("anna")
    path.write_text(path.read_text() + '{"final": 3}\n')
    for read in (read_ratings, lambda: Session("anna", [])):
        with pytest.raises(UserError, match=r"anna\.jsonl, line 2"):
            read()


def test_a_queued_experiment_reads_the_ratings_of_its_repository(empty_folder, monkeypatch):
    item = an_item()
    Session("anna", [item]).save(0, final=1, reasoning=1)
    copy = empty_folder / ".dvc/tmp/exps/tmp123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert list(read_ratings()) == ["anna"]


# Blinding -------------------------------------------------------------------------------------------


def test_a_ratings_file_tells_nobody_the_model(project):
    """No token in it is a hash of a place, and no two machines have the same one for a place."""
    params = load_params()
    places = [f"{model}/reasoning/silvar_med" for model in MODELS]
    first = blinding.tokens(places)
    session = Session("anna", worklist.answers(params, MODELS, "reasoning", "silvar_med"))
    for position in range(len(session.items)):
        session.save(position, final=1)
    text = human.ratings_file("anna").read_text()
    assert all(token in text for token in first.values())
    for place in places:
        for name in hashlib.algorithms_guaranteed - {"shake_128", "shake_256"}:
            digest = hashlib.new(name, place.encode()).hexdigest()
            assert not any(digest[start : start + 8] in text for start in range(len(digest) - 7))
    assert human.places_file().stat().st_mode & 0o077 == 0, "the owner's alone"
    assert blinding.tokens(places) == first, "they stay"
    human.places_file().unlink()
    assert not {*blinding.tokens(places).values()} & {*first.values()}


@pytest.fixture
def rated_before(project):
    """Ratings of before `places.json`, with hashes as tokens."""
    params = load_params()
    own = human.old_token("rarl/reasoning/silvar_med")
    rows = [
        Rating(id=sample.id, shown=fingerprint(sample, prediction), final=1, of=(own,))
        for sample, prediction in zip(
            read_records(params.samples_file("silvar_med"), Sample),
            read_records(predictions_file("rarl", "reasoning", "silvar_med"), Prediction),
        )
    ]  # fmt: skip
    write_records(human.ratings_file("anna"), rows)
    return params


def scores_of(params, model):
    samples = read_records(params.samples_file("silvar_med"), Sample)
    predictions = read_records(predictions_file(model, "reasoning", "silvar_med"), Prediction)
    found = verdicts(samples, predictions, place=f"{model}/reasoning/silvar_med")
    return [verdict.prediction_score for verdict in found]


def test_earlier_ratings_are_read_and_their_tokens_replaced(rated_before):
    assert scores_of(rated_before, "rarl") == [1] * 6
    before = human.read_lines(human.ratings_file("anna"))
    assert blinding.renew(rated_before) == ["anna.jsonl"]
    after = human.read_lines(human.ratings_file("anna"))
    assert [row.model_copy(update={"of": ()}) for row in after] == [
        row.model_copy(update={"of": ()}) for row in before
    ]
    assert {row.of for row in after} == {(token_of("rarl/reasoning/silvar_med"),)}
    assert scores_of(rated_before, "rarl") == [1] * 6 and scores_of(rated_before, "sft") == [None] * 6  # fmt: skip
    assert blinding.renew(rated_before) == [], "once"


def test_the_command_replaces_earlier_tokens_and_says_so(rated_before):
    result = CliRunner().invoke(rate.main, ["--export"])
    assert result.exit_code == 0 and "anna.jsonl: its tokens could be read" in result.output
    assert human.old_token("rarl/reasoning/silvar_med") not in human.ratings_file("anna").read_text()


def test_ratings_whose_tokens_nobody_knows_are_no_silent_unrated_answers(project):
    item = an_item()
    Session("anna", [item]).save(0, final=1)
    here = human.places_file().read_text()
    elsewhere = '{"0123456789abcdef": "rarl/reasoning/x"}'
    for left in ("", elsewhere):
        human.places_file().unlink(missing_ok=True)
        if left:
            human.places_file().write_text(left)
        for read in (lambda: verdicts([item.sample], [item.prediction]), read_ratings):
            with pytest.raises(UserError, match=r"(?s)places\.json.*anna\.jsonl.*restore it"):
                read()
    # A rater's file of another machine counts with the lines of that machine's places.json.
    human.places_file().write_text(json.dumps(json.loads(here) | json.loads(elsewhere)))
    assert [v.prediction_score for v in verdicts([item.sample], [item.prediction])] == [1]
    human.places_file().write_text("{")
    with pytest.raises(UserError, match=r"(?s)places\.json.*backup"):
        read_ratings()


# Who is let in --------------------------------------------------------------------------------------


@pytest.fixture
def served(empty_folder):
    """The page, served by the real Gradio; its address with the token, and that without."""
    pytest.importorskip("gradio", minversion="6")
    from rarl.rating import page

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = page.RatingPage(lambda rater: items_of(), empty_folder, rater="anna").blocks
    try:
        yield page.serve(blocks, "127.0.0.1", port, None), f"http://127.0.0.1:{port}"
    finally:
        blocks.close(verbose=False)


def test_nobody_is_let_in_without_the_token(served):
    _, bare = served
    for path in ("/", "/config", "/gradio_api/queue/data?session_hash=x", "/theme.css", "/?token=", "/?token=x"):
        answer = requests.get(bare + path, cookies={f"rarl_rate_{bare.rpartition(':')[2]}": "x"})
        assert answer.status_code == 403 and answer.text.count(".") == 1, (path, answer.text)
        assert "rarl rate" in answer.text
    assert requests.post(f"{bare}/gradio_api/queue/join", json={}).status_code == 403


def test_the_token_gives_a_cookie_that_lets_in(served):
    address, bare = served
    first = requests.get(address, allow_redirects=False)
    assert first.status_code == 303 and "token" not in first.headers["location"]
    assert "httponly" in first.headers["set-cookie"].lower()
    assert "samesite=lax" in first.headers["set-cookie"].lower()
    with requests.Session() as session:
        page = session.get(address)
        assert page.status_code == 200 and page.url == f"{bare}/" and "Human evaluation" in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert session.get(f"{bare}/config").json()["title"] == "Human evaluation"


def test_no_foreign_host_name_is_answered(served):
    """DNS rebinding: a name of the attacker's that leads to this machine."""
    address, bare = served
    with requests.Session() as session:
        assert session.get(address).status_code == 200
        for host in ("evil.com", "evil.com:7860", "localhost.evil.com", "127.0.0.1.evil.com", ""):
            answer = session.get(f"{bare}/config", headers={"Host": host})
            assert answer.status_code == 400 and "Human" not in answer.text, host
            assert requests.get(address, headers={"Host": host}).status_code == 400, host
        [cookie] = [f"{cookie.name}={cookie.value}" for cookie in session.cookies]
    for host in ("localhost", "localhost:1", "[::1]:7860", "127.0.0.1"):
        answer = requests.get(f"{bare}/config", headers={"Host": host, "Cookie": cookie})
        assert answer.status_code == 200, host


def test_nothing_can_be_uploaded_or_read_besides_the_page(served):
    address, bare = served
    with requests.Session() as session:
        session.get(address)
        for path in ("/gradio_api/upload", "/gradio_api/upload/", "/upload", "/gradio_api//upload"):
            answer = session.post(bare + path, files={"files": b"x" * 1000})
            assert answer.status_code == 404, path
        for path in ("/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/info", "/docs",
                     "/openapi.json", "/gradio_api/openapi.json", "/gradio_api/run-history/buckets",
                     "/gradio_api/proxy=http://127.0.0.1/", "/monitoring"):  # fmt: skip
            assert session.get(bare + path).status_code == 404, path


def test_other_names_are_those_of_this_machine_and_those_that_are_named():
    assert set(access.hosts_of("127.0.0.1")) == {"127.0.0.1", "localhost", "[::1]"}
    everywhere = access.hosts_of("0.0.0.0", ("rate.example.org",))
    assert {"127.0.0.1", "rate.example.org", socket.gethostname()} < set(everywhere)
    assert access.hosts_of("::1") == access.hosts_of("127.0.0.1")
    assert not any("*" in name for name in everywhere)
    for pattern in ("*", "*.example.org", "a/b", "a:80"):
        result = CliRunner().invoke(rate.main, ["--name", pattern])
        assert result.exit_code == 2 and "host name" in result.output


def test_the_address_has_a_token_of_its_own_at_each_start():
    first, second = access.new_token(), access.new_token()
    assert first != second and len(first) >= 32
    assert access.address("0.0.0.0", 7860, first) == f"http://127.0.0.1:7860/?token={first}"
    assert access.address("::1", 7860, first).startswith("http://[::1]:7860/")


# The page -------------------------------------------------------------------------------------------

EVIL = '</p></section><script>alert(1)</script> ${1+1} {{value}} "prediction_score": 1 \'<img src=x onerror=y>'


def test_a_models_text_is_text():
    item = an_item(f"<think>{EVIL}</think> <answer>{EVIL}</answer>", question=EVIL, reasoning=EVIL)
    shown = html_of("case", item, 1) + html_of("top", Session("anna", [item]), 0, EVIL)
    assert "<script" not in shown and "<img" not in shown and "$" not in shown and "{" not in shown
    assert shown.count("</section>") == 3
    assert html.unescape(shown).count(EVIL) == 5


def test_the_page_says_all_that_there_is():
    item = an_item(choices=["Nodule", "Mass"])
    shown = html_of("case", item, 1)
    for text in ("What is seen?", "Nodule", "(B) Mass", "A round spot.", "A spot."):
        assert text in shown
    assert "Research only, not for clinical use" in html_of("top", Session("anna", [item]), 0, "")
    named = html_of("case", an_item(choices=["Nodule", "Mass"], question="Which? (A) Nodule (B) Mass"), 1)
    assert named.count("Mass") == 1
    assert "Annotated reasoning" not in html_of("case", an_item(reasoning=None), 1)
    assert "holds no answer" in html_of("case", an_item(""), 1)
    assert "I wonder" in html_of("case", an_item("<think>I wonder"), 1), "what is not read is shown as it is"


def test_nothing_tells_models_apart(project):
    """Two models with the same answers give the same page, and no model is named in it."""
    params = load_params()
    shown = [
        [html_of("case", item, 1) for item in worklist.answers(params, [model], "direct", "silvar_med")][1:]
        for model in ("sft", "rarl")
    ]
    assert len(shown[0]) == 5 and shown[0] == shown[1]
    assert not re.search(r"\b(sft|rarl)\b", "".join(shown[0]))


def test_picture_is_in_the_page_or_said_to_be_missing(empty_folder):
    Image.new("L", (4, 4), 90).save(empty_folder / "1.png")
    assert image_html(empty_folder / "1.png").startswith("<img alt=")
    assert "cannot be shown" in image_html(empty_folder / "none.png")
    (empty_folder / "bad.png").write_text("no picture")
    assert "cannot be shown" in image_html(empty_folder / "bad.png")


def test_the_gradio_page_is_built_and_holds_no_name_and_no_address(empty_folder):
    gradio = pytest.importorskip("gradio", minversion="6")
    from rarl.rating import page

    blocks = page.RatingPage(lambda rater: items_of(), empty_folder, title="24 answers").blocks
    config = json.dumps(blocks.get_config_file(), default=str)
    for element in ("final-1", "final-0", "reasoning-1", "reasoning-0", "go-next", "comment", "image"):  # fmt: skip
        assert f'"{element}"' in config
    assert not re.search(r"\b(sft|grpo|rarl)\b", config)
    assert not blocks.analytics_enabled
    assert isinstance(page.RatingPage(lambda rater: [], empty_folder, rater="anna").blocks, gradio.Blocks)


def test_own_files_of_the_page_load_nothing_from_elsewhere(repository):
    for path in (repository / "rarl/rating").glob("page.*"):
        assert not re.search(r"https?://|url\(", path.read_text(encoding="utf-8")), path


def test_without_gradio_the_command_says_how_to_get_it(project, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(rate.main, ["--rater", "anna"])
    assert result.exit_code == 1 and "pip install" in result.output
    old = SimpleNamespace(__version__="3.18.0")
    monkeypatch.setitem(sys.modules, "gradio", old)
    result = CliRunner().invoke(rate.main, [])
    assert result.exit_code == 1 and "3.18.0" in result.output


def test_others_are_let_in_only_with_a_warning():
    assert "WITHOUT A PASSWORD" in console.open_to_others("0.0.0.0", False)
    assert "WITHOUT A PASSWORD" not in console.open_to_others("0.0.0.0", True)
    [host] = [option.default for option in rate.main.params if option.name == "host"]
    assert host == "127.0.0.1"
    assert "\n      rarl rate --sample 50 " in CliRunner().invoke(rate.main, ["--help"]).output


# Export ---------------------------------------------------------------------------------------------


def test_export_without_ratings_says_what_to_do(project):
    result = CliRunner().invoke(rate.main, ["--export"])
    assert result.exit_code == 1 and "no ratings" in result.output


def test_export_defines_the_judges_and_counts_what_is_stale(project):
    before = (project / "params.yaml").read_text(encoding="utf-8")
    params = load_params()
    items = worklist.answers(params, MODELS, "reasoning", "silvar_med")
    session = Session("anna", [*items, an_item("<answer>Of an earlier run</answer>", 3)])
    for position in range(len(session.items)):
        session.save(position, final=1, reasoning=1)

    result = CliRunner().invoke(rate.main, ["--export"])
    assert result.exit_code == 0, result.output
    assert f"anna: {len(items) + 1} answers rated, 1 of them" in result.output
    params = load_params()
    assert params.judges[-1] == "human" and params.judge["human"].kind == "human"
    assert params.judge["human"].ratings == human.digest(read_ratings())
    assert [line for line in before.splitlines() if "#" in line] == [
        line for line in (project / "params.yaml").read_text().splitlines() if "#" in line
    ], "comments are kept"
    assert "nothing has changed" in CliRunner().invoke(rate.main, ["--export"]).output

    Session("ben", items).save(0, final=0, reasoning=0)
    first = YAML(typ="safe").load((project / "params.yaml").read_text())["judge"]["human"]
    assert CliRunner().invoke(rate.main, ["--export"]).exit_code == 0
    params = load_params()
    assert params.judges[-3:] == ["human", "human_anna", "human_ben"]
    assert params.judge["human_ben"].rater == "ben"
    assert params.judge["human"].ratings != first["ratings"], "DVC sees that there are new ratings"


def test_every_present_answer_counts_as_present(project):
    params = load_params()
    present = export.present_answers(params)
    assert len(present) == sum(
        5 + len([m for m in params.models if mode in params.modes_of(m)]) for mode in params.modes
    )
