"""Rivals that are asked: an adapter, weights with another vision tower, and a model at an endpoint."""

import base64
import copy
import io
import json
import re
import shutil
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML
from tiny_bases import make_base

from rarl import rivals
from rarl.chat import endpoint
from rarl.errors import UserError
from rarl.images import open_rgb
from rarl.inference import endpoint as endpoint_inference
from rarl.inference import predictions
from rarl.inference.asking import ask_once
from rarl.models.features import FeatureStore, describe
from rarl.models.loading import load
from rarl.params import Rival, load_params
from rarl.records import Prediction, Sample, predictions_file, read_json, read_records

ROOT = Path(__file__).parents[2]


def with_rival(params, modes=("reasoning",), **settings):
    """Parameters that list the rival `x` alone, and its folder."""
    params = copy.deepcopy(params)
    params.models, params.modes = ["x"], list(modes)
    params.rival = {"x": Rival(label="Other", **settings)}
    rivals.write_folder("x", params.rival["x"], Path("data/models/x"))
    return params


def given(mode="reasoning") -> list[Prediction]:
    return read_records(predictions_file("x", mode, "silvar_med"), Prediction)


@pytest.fixture(scope="module")
def adapter(random_base, tmp_path_factory):
    """A PEFT adapter of the random base that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2VLForConditionalGeneration

    torch.manual_seed(1)
    network = Qwen2VLForConditionalGeneration.from_pretrained(random_base[0])
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], exclude_modules=".*visual.*", init_lora_weights=False
    )
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(network, config).save_pretrained(folder)
    return folder


def test_an_adapter_is_asked_with_the_base_s_features_and_each_mode_once(
    project, params, random_base, adapter, monkeypatch
):
    base = load("data/models/base", params.model)
    FeatureStore(tower=describe(base)).save("data/features/benchmarks")
    params = with_rival(params, source=str(random_base[0]), adapter=str(adapter), reads="plain")
    asked, stores = [], []
    ask_sets, attach = predictions.ask_sets, FeatureStore.attach

    def noted(model, params, tasks, forks=None):
        asked.append([task.mode for task in tasks])
        ask_sets(model, params, tasks, forks)

    monkeypatch.setattr(predictions, "ask_sets", noted)
    monkeypatch.setattr(FeatureStore, "attach", lambda store, model: stores.append(store) or attach(store, model))
    predictions.infer("x", params)
    assert [store.tower for store in stores] == [describe(base)]
    first = given()
    assert [one.id for one in first] == [one.id for one in read_records("data/curated/test.jsonl", Sample)]
    assert all(one.answer == one.completion.strip() and one.think is None for one in first)
    assert read_json("data/predictions/x/rival.json")["reads"] == "plain"
    params.modes = ["reasoning", "direct"]
    predictions.infer("x", params)
    assert asked == [["reasoning"], ["direct"]] and given() == first and given("direct")
    params.models, params.rival = ["base"], {}
    predictions.infer("base", params)
    own = read_records(predictions_file("base", "reasoning", "silvar_med"), Prediction)
    assert [one.completion for one in own] != [one.completion for one in first]


def test_rarl_ask_reads_a_rival_s_form(project, params, random_base, adapter):
    settings = {"source": str(random_base[0]), "adapter": str(adapter), "reads": "plain", "max_tokens": 3}
    params = with_rival(params, **settings)
    image = Path(params.data.root) / read_records("data/curated/test.jsonl", Sample)[0].image
    _, prediction = ask_once("x", image, "Is it bright?", "reasoning", (), params)
    assert prediction.answer == prediction.completion and prediction.tokens <= 3
    params.rival["x"] = Rival(label="Other", base_url="http://localhost:1/v1", model="m")
    with pytest.raises(UserError, match="a rival at an endpoint"):
        ask_once("x", image, "Is it bright?", "reasoning", (), params)


def test_another_vision_tower_encodes_each_image_once(project, params, random_base, monkeypatch):
    base = load("data/models/base", params.model)
    FeatureStore(tower=describe(base)).save("data/features/benchmarks")
    shutil.copytree(random_base[0], "other")
    other = load("data/models/base", params.model).model
    with_noise = {name: value * 1.5 if "visual" in name else value for name, value in other.state_dict().items()}
    other.save_pretrained("other", state_dict=with_noise)
    params = with_rival(params, ["reasoning", "direct"], source="other")
    stores, attach = [], FeatureStore.attach
    monkeypatch.setattr(FeatureStore, "attach", lambda store, model: stores.append(store) or attach(store, model))
    predictions.finish("x", params, forks=1)
    [store] = stores
    samples = read_records("data/curated/test.jsonl", Sample)
    assert store.computed == len({sample.image_sha256 for sample in samples}), "two modes, each image once"


def test_an_adapter_on_the_tower_sees_its_own_features(project, params, random_base, monkeypatch):
    from peft import LoraConfig, get_peft_model

    base = load("data/models/base", params.model)
    FeatureStore(tower=describe(base)).save("data/features/benchmarks")
    config = LoraConfig(r=2, target_modules=["v_proj", "qkv"], init_lora_weights=False)
    get_peft_model(base.model, config).save_pretrained("on_tower")
    stores, attach = [], FeatureStore.attach
    monkeypatch.setattr(FeatureStore, "attach", lambda store, model: stores.append(store) or attach(store, model))
    params = with_rival(params, source=str(random_base[0]), adapter="on_tower")
    predictions.finish("x", params, forks=1)
    [store] = stores
    assert store.computed == len({sample.image_sha256 for sample in read_records("data/curated/test.jsonl", Sample)})


def test_a_rival_of_another_family_is_asked_too(project, params, random_base):
    make_base("gemma3", Path("gemma"), random_base[2].tokenizer)
    base = load("data/models/base", params.model)
    FeatureStore(tower=describe(base)).save("data/features/benchmarks")
    predictions.infer("x", with_rival(params, source="gemma", max_tokens=4))
    assert len(given()) == 6 and all(one.tokens and one.error is None for one in given())


def test_the_shipped_rival_goes_the_whole_way(project, monkeypatch):
    """The embedded base and its rival, from the folder in git to the report."""
    from stages import base, infer, judge, report, rival, score

    shutil.rmtree("data/models")
    for name in ("base", "rivals"):
        Path("data", name).symlink_to(ROOT / "data" / name)
    raw = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw |= {"models": ["base", "seed_11"], "benchmarks": [], "modes": ["reasoning", "direct"], "judges": ["lexical"]}
    raw["decoding"] |= {"max_new_tokens": 24}
    Path("params.yaml").write_text(json.dumps(raw), encoding="utf-8")
    Path("data/benchmarks").mkdir()
    params = load_params()
    tower = describe(load(pointer_of(base), params.model))
    FeatureStore(tower=tower).save("data/features/benchmarks")

    def run(stage, **options):
        arguments = [text for key, value in options.items() for text in (f"--{key}", value)]
        result = CliRunner().invoke(stage.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    run(rival, rival="seed_11")
    for model in ("base", "seed_11"):
        run(infer, model=model)
        run(judge, model=model)
        run(score, model=model)
    output = run(report)
    own = pd.read_csv("metrics/tables/own_test.csv")
    assert {"base", "seed_11"} <= {*own["model"]}
    families = {*pd.read_csv("metrics/tables/paired_tests.csv")["family"]}
    assert "between models, with rivals" in families and "between models" not in families
    page = Path("data/report/report.html").read_text(encoding="utf-8")
    assert "SFT, seed 11" in page and "rival: not trained here" in page and "test, with rivals, points" in output
    assert "--m-seed_11: #aa00ff" in page and "SFT, seed 11" in Path("data/report/report.md").read_text(
        encoding="utf-8"
    )
    assert read_json("metrics/summary.json")["seed_11"]["reasoning"]


def pointer_of(stage) -> str:
    result = CliRunner().invoke(stage.main, [], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return "data/models/base"


# Endpoints ------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Answers every question, or with `status` and `body`."""

    daemon_threads = True

    def __init__(self, status=200, body=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.calls, self.lost, self.input_tokens = status, body, [], 0, 300
        self.message, self.fault = {}, "content policy"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @property
    def settings(self) -> dict:
        return {"base_url": f"http://127.0.0.1:{self.server_port}/v1", "model": "seer-1", "reads": "boxed"}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.calls.append(request)
        status, body = server.status, server.body
        if len(server.calls) <= server.lost:
            status, body = 400, {"error": {"message": server.fault}}
        if body is None:
            content = f"It is bright. \\boxed{{Yes {len(server.calls)}}}"
            message = {"role": "assistant", "content": content} | server.message
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": server.input_tokens, "completion_tokens": 20}
            body = {"object": "chat.completion", "model": request["model"], "choices": [choice], "usage": usage}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.005)


def test_a_rival_at_an_endpoint_is_shown_the_image_and_asked_once(project, params, capsys):
    with Server() as server:
        params = with_rival(params, ["reasoning", "blank"], **server.settings)
        params.model.max_pixels = 784
        predictions.infer("x", params)
        samples = read_records("data/curated/test.jsonl", Sample)
        distinct = len({sample.image_sha256 for sample in samples})
        [grey] = {Image.open(Path(params.data.root, sample.image)).size for sample in samples}
        assert grey[0] * grey[1] > 784
        shown = Counter()
        for call in server.calls:
            [message] = call["messages"]
            image, text = message["content"]
            assert text["text"].count(samples[0].question) == 1 and call["max_tokens"] == 12
            picture = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2])))
            assert picture.width * picture.height <= 784 and not picture.info
            shown[len(picture.getcolors())] += 1
        assert len(server.calls) == distinct + 1 and shown[1] == 1, "every image, and a grey one"
        assert not any(word in json.dumps(server.calls) for word in ("drawn/test", "pictures/", "response_format"))
        first = given()
        assert all(
            one.think == "It is bright." and one.answer.startswith("Yes ") and one.tokens == 20 for one in first
        )
        assert "rival x sends to" in capsys.readouterr().out
        # Nothing is asked twice: neither with other limits nor without what was kept of this run's predictions.
        shutil.rmtree(".cache/predictions")
        params.rival["x"] = params.rival["x"].model_copy(update={"max_calls": 1})
        predictions.infer("x", params)
        assert len(server.calls) == distinct + 1 and given() == first


def test_a_question_without_a_completion_is_asked_again_and_the_others_are_not(project, params):
    with Server() as server:
        params = with_rival(params, **server.settings | {"concurrency": 1})
        server.lost = 1
        predictions.infer("x", params)
        lost = [one for one in given() if one.error]
        assert lost and all("content policy" in one.error for one in lost) and len(lost) < len(given())
        calls = len(server.calls)
        predictions.infer("x", params)
        assert len(server.calls) == calls + 1 and not any(one.error for one in given())


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_that_a_server_returns_apart_is_read(project, params, name):
    with Server() as server:
        server.message = {"content": "Yes.", name: "It is bright."}
        predictions.infer("x", with_rival(params, **server.settings | {"reads": "plain"}))
    assert {(one.think, one.answer) for one in given()} == {("It is bright.", "Yes.")}


@pytest.mark.parametrize(
    "fault",
    [
        "The decoder prompt is longer than the maximum model length of 4096, text tokens plus multimodal tokens.",
        "height:10 and width:10 must be larger than factor:28, image too small",
        "The prompt must be no longer than 4096 tokens",
    ],
)
def test_an_image_that_does_not_fit_leaves_the_others_alone(project, params, fault):
    with Server() as server:
        server.lost, server.fault = 1, fault
        predictions.infer("x", with_rival(params, **server.settings))
    assert Counter(one.error is None for one in given())[False] >= 1 and any(one.error is None for one in given())


def test_an_image_is_encoded_once_for_its_questions(project, params, monkeypatch):
    samples, opened = read_records("data/curated/test.jsonl", Sample), []
    monkeypatch.setattr(endpoint_inference, "open_rgb", lambda file: opened.append(file) or open_rgb(file))
    with Server() as server:
        predictions.infer("x", with_rival(params, ["reasoning", "direct"], **server.settings))
    distinct = len({sample.image for sample in samples})
    assert sum(isinstance(file, Path) for file in opened) == distinct < len(server.calls)


def test_the_budget_ends_a_run_before_anything_is_asked(project, params):
    with Server() as server:
        params = with_rival(params, **server.settings, max_calls=2)
        with pytest.raises(UserError, match=r"rival.x.max_calls = 2\n(.|\n)*nothing was asked"):
            predictions.infer("x", params)
        assert server.calls == []


def test_the_estimate_learns_what_an_image_costs(project, params):
    """Providers bill images by rules of their own: 9,000 tokens instead of the guess of 1,000."""
    prices = {"price_per_million_input": 10.0, "price_per_million_output": 0.0}
    with Server() as server:
        server.input_tokens = 9000
        predictions.infer("x", with_rival(params, **server.settings, **prices))
        calls = len(server.calls)
        spent = calls * 9000 * 10 / 1e6
        params = with_rival(params, ["direct"], **server.settings, **prices, max_cost_usd=1.9 * spent)
        with pytest.raises(UserError, match="max_cost_usd"):
            predictions.infer("x", params)
        assert len(server.calls) == calls


def test_no_image_leaves_the_machine_without_consent(project, params, monkeypatch):
    params = with_rival(params, base_url="https://example.org/v1", model="m")
    with pytest.raises(UserError, match=r"rival\.x\.consent"):
        predictions.infer("x", params)


REFUSALS = [
    (500, {"error": {"message": "image input is not supported - hint: you may need to provide the mmproj"}}),
    (400, {"object": "error", "message": "At most 0 image(s) may be provided in one prompt.", "code": 400}),
    (404, {"error": {"message": "No endpoints found that support image input", "code": 404}}),
    (422, {"detail": "messages.0.content: Input should be a valid string"}),
    (400, {"error": {"message": "seer-1 is not a multimodal model"}}),
    (400, {"error": {"message": "Invalid content type. image_url is only supported by certain models."}}),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS)
def test_an_endpoint_that_takes_no_images_is_one_message(project, params, status, body):
    with Server(status, body) as server:
        params = with_rival(params, **server.settings)
        with pytest.raises(UserError, match=r"takes no images for seer-1") as error:
            predictions.infer("x", params)
        assert "rival.x.model" in str(error.value) and len(server.calls) <= params.rival["x"].concurrency


def test_an_image_that_cannot_be_opened_is_not_sent_and_not_named(project, params):
    sample = read_records("data/curated/test.jsonl", Sample)[0]
    Path(params.data.root, sample.image).write_bytes(b"no image")
    with Server() as server:
        params = with_rival(params, **server.settings)
        predictions.infer("x", params)
    errors = {one.id: one.error for one in given()}
    assert (
        re.fullmatch(r"the image cannot be opened \(.*\)", errors[sample.id]) and "pictures" not in errors[sample.id]
    )
    assert Counter(errors.values())[None] == len(errors) - 1


def test_own_prompt_and_limit(project, params):
    with Server() as server:
        params = with_rival(params, **server.settings, prompt="Doctor, {question}", max_tokens=7)
        predictions.infer("x", params)
    assert {call["messages"][0]["content"][1]["text"] for call in server.calls} == {
        f"Doctor, {one.question}" for one in read_records("data/curated/test.jsonl", Sample)
    }
    assert {call["max_tokens"] for call in server.calls} == {7}
