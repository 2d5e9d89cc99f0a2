"""What comes out is usable elsewhere: the card, plain PEFT, merged weights, and a question from the command line."""

import copy
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from tiny_bases import make_base
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
)

from rarl.cli import ask, merge, publish
from rarl.inference import asking
from rarl.models.base_files import base_pointer
from rarl.models.families import FAMILIES
from rarl.models.generation import Response
from rarl.models.loading import load
from rarl.models.processor import chat
from rarl.params import Base, Model
from rarl.prompts import render
from rarl.records import Sample, read_json, read_records, write_json
from rarl.sharing.model_card import counts, make_portable, write_card
from rarl.sharing.model_folder import merge as merge_folder

METRICS = {
    "steps": 4,
    "trainable_parameters": 1234,
    "best_step": 2,
    "dev_score": 75.0,
    "reward_first": 1.5,
    "reward_last": 2.25,
}


@pytest.fixture
def trained(project, params, random_base):
    """A project whose `data/models/rarl` holds an adapter that moves the logits, as a training leaves it."""
    with open("params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params.model_dump(), file)
    folder = Path("data/models/rarl")
    folder.mkdir()
    shutil.copyfile("data/models/base/base.json", folder / "base.json")
    add_adapter(load("data/models/base", params.model).model, folder, params, r".*visual.*")
    card(folder, params)
    return folder


def add_adapter(network, folder, params, exclude):
    """Write a random adapter that moves the logits into a model folder, as a training leaves it."""
    torch.manual_seed(1)
    adapter = LoraConfig(
        r=params.lora.r, lora_alpha=params.lora.alpha, task_type="CAUSAL_LM",
        target_modules=params.lora.target_modules, exclude_modules=exclude,
    )  # fmt: skip
    model = get_peft_model(network, adapter)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    make_portable(folder)


def card(folder, params, method="rarl", model_type="qwen2_vl"):
    rows = [read_records(f"data/curated/{split}.jsonl", Sample) for split in ("train", "dev")]
    write_card(folder, method, params, METRICS, counts(*rows), model_type)
    return (folder / "README.md").read_text(encoding="utf-8")


def logits(model, processor):
    inputs = processor(
        text=[chat(processor, "Is there a bright spot in this image?")],
        images=[Image.new("RGB", (100, 140), (90, 90, 90))], return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        return model(**inputs).logits


def test_plain_peft_gives_the_same_model(trained, params, random_base):
    ours = load(trained, params.model)
    base = Qwen2VLForConditionalGeneration.from_pretrained(random_base[0], dtype=torch.float32)
    untrained = logits(base.eval(), ours.processor)
    plain = PeftModel.from_pretrained(base, trained).eval()
    found = logits(plain, ours.processor)
    torch.testing.assert_close(found, logits(ours.model, ours.processor), rtol=0, atol=0)
    assert (found - untrained).abs().max() > 0.1, "the adapter of this test must do something"


def test_adapter_files_are_equal_for_equal_runs_on_any_machine(trained, random_base, tmp_path):
    """PEFT writes the base's path and, in an order of the process's own, its sets of module names."""
    before = (trained / "adapter_config.json").read_bytes()
    assert str(random_base[0].parent).encode() not in before
    config = json.loads(before)
    assert config["base_model_name_or_path"] == random_base[0].name
    random.Random(1).shuffle(config["target_modules"])
    config["base_model_name_or_path"] = "/elsewhere/base0"
    write_json(trained / "adapter_config.json", config)
    assert (trained / "adapter_config.json").read_bytes() != before
    make_portable(trained)
    assert (trained / "adapter_config.json").read_bytes() == before


def test_a_hub_base_is_named_with_its_revision(trained, params):
    pointer = {"source": "Qwen/Qwen2-VL-2B-Instruct", "revision": "895c3a4", "sha256": None}
    write_json(trained / "base.json", pointer)
    make_portable(trained)
    config = read_json(trained / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("Qwen/Qwen2-VL-2B-Instruct", "895c3a4")
    text = card(trained, params)
    assert YAML(typ="safe").load(text.split("---")[1])["base_model"] == pointer["source"]
    assert 'from_pretrained("Qwen/Qwen2-VL-2B-Instruct", revision="895c3a4")' in text


def test_card_says_what_the_model_is(trained, params, random_base, tmp_path):
    text = (trained / "README.md").read_text(encoding="utf-8")
    front = YAML(typ="safe").load(text.split("---")[1])
    assert (front["library_name"], front["base_model"]) == ("peft", random_base[0].name)
    assert {"rarl", "lora", "phantom"} <= set(front["tags"]) and front["license"] == "other"
    assert "Research only, not for clinical use." in text and "PHANTOM RESULT" in text
    train = read_records("data/curated/train.jsonl", Sample)
    annotated = sum(sample.reasoning is not None for sample in train)
    assert 0 < annotated < 16
    assert f"| training | 16 | 16 | {annotated} ({100 * annotated / 16:.0f} %) | yes_no 16 |" in text  # fmt: skip
    for line in ("| optimizer steps | 4 |", "| reward first | 1.5 |", "| lora.r | 8 |",
                 "| rarl.rewards.reasoning | 1.0 |", "| rl.max_completion_length | 12 |"):  # fmt: skip
        assert line in text, line
    assert not any(line in text for line in ("| sft.epochs", "| grpo.prompts"))
    assert str(tmp_path) not in text and str(random_base[0]) not in text
    assert card(trained, params) == text


def test_card_of_real_data_is_not_marked_as_phantom(trained, params):
    real = params.model_copy(deep=True)
    real.data.root = "/mnt/releases"
    text = card(trained, real)
    assert "phantom" not in text.lower() and "/mnt" not in text


def test_the_cards_code_loads_the_model(trained, params, random_base):
    """The block is run as it stands, with the two folders put in."""
    (code,) = re.findall(r"```python\n(.*?)```", (trained / "README.md").read_text(), re.DOTALL)
    code = code.replace("<folder of the base>", str(random_base[0]))
    values = {}
    exec(code.replace("<this folder>", str(trained)), values)
    ours = load(trained, params.model)
    torch.testing.assert_close(logits(values["model"].eval(), ours.processor), logits(ours.model, ours.processor))


def test_full_weights_have_a_card_and_no_adapter(trained, params, random_base):
    folder = Path("data/models/grpo")
    shutil.copytree(random_base[0], folder / "full")
    shutil.copyfile("data/models/base/base.json", folder / "base.json")
    full = params.model_copy(deep=True)
    full.train.trainable = "full"
    make_portable(folder)
    text = card(folder, full, "grpo")
    assert "library_name: transformers" in text and "<this folder>/full" in text
    assert "| lora.r" not in text and "peft import" not in text
    result = CliRunner().invoke(merge.main, ["--model", "grpo", "--output", "whole"])
    assert result.exit_code == 0, result.output
    assert Path("whole/model.safetensors").is_file()


def test_merged_weights_are_the_adapters_and_a_base(trained, params):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    result = CliRunner().invoke(merge.main, ["--model", "rarl", "--output", "out/merged"])
    assert result.exit_code == 0, result.output
    folder = Path("out/merged")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    ours = load(trained, params.model)
    expected = logits(ours.model, ours.processor)

    # By the pipeline's own base code, as base.source = out/merged.
    Path("data/models/merged").mkdir()
    write_json("data/models/merged/base.json", base_pointer(Base(source="out/merged")))
    again = load("data/models/merged", params.model)
    torch.testing.assert_close(logits(again.model, again.processor), expected, rtol=1e-5, atol=1e-5)
    # And by the library alone, with the stock image processor.
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(model, ours.processor), expected, rtol=1e-5, atol=1e-5)
    stock = Qwen2VLImageProcessorPil.from_pretrained(folder)
    image = Image.new("RGB", (300, 200), (10, 90, 200))
    assert torch.equal(
        stock([image], return_tensors="pt")["pixel_values"],
        ours.processor.image_processor([image], return_tensors="pt")["pixel_values"],
    )
    named = "".join(path.read_text() for path in folder.glob("*config.json"))
    assert "ImageTextProcessor" not in named, "a class that only this project has"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in text and "Research only" in text
    assert "PeftModel" not in text and "## Parameters" in text


def test_merged_and_published_cards_have_the_scores_of_this_model_only(trained, monkeypatch, repository):
    scores = read_json(repository / "metrics/scores/rarl.json")
    for folder, found in (("unscored", None), ("scored", scores)):
        if found:
            monkeypatch.setattr("rarl.cli.merge.measured", lambda _: scores)
        result = CliRunner().invoke(merge.main, ["--model", "rarl", "--output", folder])
        assert result.exit_code == 0 and ("the card has no scores; missing" in result.stderr) is not bool(found)
        assert bool(ModelCard.load(Path(folder, "README.md")).data.eval_results) is bool(found)
    result = CliRunner().invoke(publish.main, ["rarl", "--to", "me/tiny", "--merged", "--no-scores"])
    assert result.exit_code == 0 and "Nothing was sent" in result.output
    for file in Path("unscored").iterdir():
        assert f"bytes  {file.name}" in result.output, file
    assert "adapter" not in result.output and "library_name: transformers" in result.output


#: How the hub's checkpoints begin the names of a language model's weights and of a vision tower's.
PUBLISHED = {
    "qwen2_vl": ("model.layers.", "visual.blocks."),
    "qwen2_5_vl": ("model.layers.", "visual.blocks."),
    "qwen3_vl": ("model.language_model.layers.", "model.visual.blocks."),
    "gemma3": ("language_model.model.layers.", "vision_tower.vision_model.encoder.layers."),
    "smolvlm": ("model.text_model.layers.", "model.vision_model.encoder.layers."),
    "idefics3": ("model.text_model.layers.", "model.vision_model.encoder.layers."),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def of_family(request, params, random_base, tmp_path_factory):
    """(family, base, adapter that moves the logits) as folders, with the hub's names of weights."""
    folder = tmp_path_factory.mktemp(request.param)
    base, adapter = folder / "base", folder / "rarl"
    base.mkdir()
    make_base(request.param, base, random_base[2].tokenizer)
    if request.param == "gemma3":  # the library drops a part of the names of what it did not load
        weights = load_file(base / "model.safetensors")
        weights = {re.sub("^vision_tower", "vision_tower.vision_model", name): w for name, w in weights.items()}
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    write_json(adapter / "base.json", base_pointer(Base(source=str(base))))
    add_adapter(load(adapter, params.model).model, adapter, params, FAMILIES[request.param].lora_exclude)
    return request.param, base, adapter


def inputs_of(processor, text):
    image = Image.new("RGB", (100, 140), (90, 30, 200))
    # The template has the token that begins a sequence; Gemma 3's stock processor would add a second one.
    return processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)


def stock_processor(folder, ours):
    """What `AutoProcessor` loads. Where it needs torchvision, its parts in the place of our processor's."""
    try:
        return AutoProcessor.from_pretrained(folder)
    except ImportError:
        images = AutoImageProcessor.from_pretrained(folder, backend="pil")
        parts = copy.copy(ours)
        parts.tokenizer, parts.image_processor = AutoTokenizer.from_pretrained(folder), images
        return parts


def test_merged_weights_of_each_family_load_without_this_project(of_family, params, tmp_path):
    family, base, adapter = of_family
    ours = load(adapter, params.model)
    merge_folder(str(adapter), tmp_path / "merged", params)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    processor = stock_processor(tmp_path / "merged", ours.processor)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a bright spot?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    assert text == chat(ours.processor, "Is there a bright spot?")
    inputs = inputs_of(processor, text)
    with torch.no_grad():
        expected, found = ours.model(**inputs_of(ours.processor, text)).logits, whole(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    weights = load_file(tmp_path / "merged/model.safetensors")
    assert weights.keys() == load_file(base / "model.safetensors").keys()
    for start in PUBLISHED[family]:
        assert any(name.startswith(start) for name in weights), start
    # The base's configuration as it is: version 4 of transformers cannot read what version 5 writes.
    config = read_json(tmp_path / "merged/config.json")
    assert config == {"torch_dtype": "float32"} | read_json(base / "config.json")
    assert config["architectures"] == [type(whole).__name__]
    for file in ("tokenizer_config.json", "preprocessor_config.json"):
        assert read_json(tmp_path / "merged" / file)["processor_class"] == FAMILIES[family].processor


def test_adapters_of_each_family_load_in_plain_peft(of_family, params):
    family, base, adapter = of_family
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
    ours = load(adapter, params.model)
    inputs = inputs_of(ours.processor, chat(ours.processor, "Is there a bright spot?"))
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, ours.model(**inputs).logits, rtol=1e-5, atol=1e-5)
    start = f"base_model.model.model.{FAMILIES[family].language}.layers."
    assert all(name.startswith(start) for name in load_file(adapter / "adapter_model.safetensors"))


@pytest.mark.skipif("quantization" not in Model.model_fields, reason="needs model.quantization")
def test_adapters_on_a_base_in_4_bits_are_merged_into_its_own_weights(of_family, params, tmp_path):
    family, base, adapter = of_family
    nf4, folder = params.model_copy(deep=True), tmp_path / "rarl"
    nf4.model.quantization = "nf4"
    write_json(folder / "base.json", read_json(adapter / "base.json"))
    network = load(folder, nf4.model).model
    assert any("4bit" in type(module).__name__ for module in network.modules())
    add_adapter(network, folder, params, FAMILIES[family].lora_exclude)
    merge_folder(str(folder), tmp_path / "merged", nf4)
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), folder).eval()
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    processor = load(adapter, params.model).processor
    inputs = inputs_of(processor, chat(processor, "Is there a bright spot?"))
    with torch.no_grad():
        torch.testing.assert_close(whole(**inputs).logits, plain(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_the_card_names_the_family_and_its_class(of_family, params, tmp_path, project):
    family, base, adapter = of_family
    folder = shutil.copytree(adapter, tmp_path / "rarl")
    text = card(folder, params, model_type=family)
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    values = {}
    exec(code.replace("<folder of the base>", str(base)).replace("<this folder>", str(folder)), values)
    assert type(values["base"]).__name__ in code and f"- {family}\n" in text
    assert f" {FAMILIES[family].name} trained by RARL" in text


def test_merging_overwrites_nothing_and_needs_something_trained(trained):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("file").write_text("mine")
    for args, said in (
        (["rarl", "full"], "it exists already"),
        (["rarl", "file"], "it exists already"),
        (["base", "new"], "neither an adapter nor trained weights"),
        (["rral", "new"], "there: base, rarl"),
    ):
        result = CliRunner().invoke(merge.main, ["--model", args[0], "--output", args[1]])
        assert result.exit_code == 1 and said in result.output, result.output
    assert sorted(path.name for path in Path("full").iterdir()) == ["mine.txt"]
    assert not Path("new").exists()


FULL = """
import torch
from safetensors.torch import save_file
from rarl.running.entry import explained
from rarl.errors import UserError

for save in (lambda w: torch.save(w, "w.pt"), lambda w: save_file(w, "w.safetensors")):
    try:
        with explained():
            save({"w": torch.zeros(100_000)})
    except UserError as error:
        print(error.format_message())
"""


def on_a_full_disk(*command):
    """The kernel refuses a file of more than 20 kB as it does on a full disk."""
    return subprocess.run(["prlimit", "--fsize=20000", sys.executable, *command], capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit")
def test_weights_that_cannot_be_written_in_full_end_in_one_message(trained):
    Path("stages").symlink_to(Path(__file__).parents[2] / "stages")
    done = on_a_full_disk("-m", "rarl", "merge", "--model", "rarl", "--output", "merged")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and said.count("then run the same command again") == 1, said
    assert "Traceback" not in said
    assert not list(Path().glob("*.partial")) and not Path("merged").exists()


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit")
def test_what_pytorch_and_safetensors_raise_on_a_full_disk_is_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = on_a_full_disk("-c", FULL)
    assert done.returncode == 0 and done.stdout.count("then run the same command again") == 2, done.stderr
    assert not list(Path().glob("*.partial"))


def asked(*args):
    return CliRunner().invoke(ask.main, args)


def test_ask_answers_by_name_folder_and_merged_folder(trained, project, random_base):
    picture = str(next(Path("data/phantom/pictures").glob("test*.png")))
    question = ["--image", picture, "--question", "Is there a bright spot?"]
    CliRunner().invoke(merge.main, ["--model", "rarl", "--output", "merged"])
    shutil.copytree(trained, "copy")
    outputs = {}
    for name in ("base", "rarl", "copy", "merged"):
        result = asked("--model", name, *question)
        assert result.exit_code == 0, result.output
        about = result.stderr.splitlines()
        assert about[0].startswith(f"Base: {random_base[0].name}"), "without this machine's path"
        assert about[0].endswith("Research only, not for clinical use.")
        assert about[1].startswith("Reasoning: ") and len(about) <= 3
        outputs[name] = result.stdout, about[1]
    assert outputs["rarl"] == outputs["copy"] == outputs["merged"] != outputs["base"]
    assert not Path("metrics").exists(), "asking is no stage and leaves nothing behind"


def test_ask_shows_the_reasoning_and_puts_the_choices(trained, params, monkeypatch):
    met = []

    def answers(loaded, requests, limit, temperature, seed):
        met.append((requests[0].prompt, limit))
        return [Response("asked", "<think> A dense area. </think> <answer> (B) </answer>", 12, True)]

    monkeypatch.setattr("rarl.models.generation.ask", answers)
    picture = str(next(Path("data/phantom/pictures").glob("*.png")))
    args = ["--model", "rarl", "--image", picture, "--question", "What is it?"]
    result = asked(*args, "--choices", "Effusion", "--choices", "Nodule")
    assert result.stdout == "(B)\n", "the answer alone, for a pipe"
    assert "Reasoning: A dense area.\n" in result.stderr and "off after 12 tokens" in result.stderr
    question = "What is it? Select from the following choices.\n(A) Effusion\n(B) Nodule"
    assert met == [(render("reasoning", question), params.decoding.max_new_tokens)]
    asked(*args, "--mode", "direct")
    assert met[1][0] == render("direct", "What is it?")


def test_ask_names_what_is_wrong(trained):
    good = str(next(Path("data/phantom/pictures").glob("*.png")))
    Path("notes.png").write_text("no picture")
    Path("scan.dcm").write_text("no DICOM either")
    Path("empty").mkdir()
    for model, image, more, said in (
        ("rarl", "missing.png", (), "no such file"),
        ("rarl", "notes.png", (), "--image notes.png"),
        ("rarl", "scan.dcm", (), "--image scan.dcm"),
        ("rarl", "/dev/zero", (), "not a regular file but a device"),
        ("rarl", "empty", (), "a folder"),
        ("rral", good, (), "there: base, rarl"),
        ("empty", good, (), "neither base.json nor config.json"),
        ("rarl", good, ("--mode", "loud"), "--mode loud"),
    ):
        result = asked("--model", model, "--image", image, "--question", "What?", *more)
        assert result.exit_code == 1 and said in result.output, result.output
        assert "to do:" in result.output and "Traceback" not in result.output


def test_ask_names_what_the_model_cannot_be_asked(trained):
    good = str(next(Path("data/phantom/pictures").glob("*.png")))
    for question, said in (
        ("Is there a bright spot? " * 2500, "the model takes 2,036 besides an answer of 12"),
        ("Is <|image_pad|> bent?", "a token that stands for an image"),
    ):
        result = asked("--model", "rarl", "--image", good, "--question", question)
        assert result.exit_code == 1 and said in result.stderr and not result.stdout, result.output
        assert len(result.stderr) < 500, "no warnings besides"


def test_ask_names_a_folder_that_is_not_whole(trained):
    good = str(next(Path("data/phantom/pictures").glob("*.png")))
    CliRunner().invoke(merge.main, ["--model", "rarl", "--output", "merged"])
    weights = Path("merged/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    shutil.copytree(trained, "copy")
    Path("copy/base.json").write_text("{")
    for model, where in (("merged", "base.source = merged"), ("copy", "copy")):
        result = asked("--model", model, "--image", good, "--question", "What?")
        assert result.exit_code == 1 and f"Error: {where}\n" in result.stderr, result.output
        assert "copy or fetch the folder again" in result.stderr


def test_ask_refuses_choices_that_are_no_text(trained):
    good = str(next(Path("data/phantom/pictures").glob("*.png")))
    result = asked("--model", "rarl", "--image", good, "--question", "What?", "--choices", "\udcff")
    assert result.exit_code == 1 and "Error: --choices" in result.stderr, result.output


def test_ask_says_that_the_embedded_base_has_seen_no_real_image(project, repository, params):
    folder = Path("data/models/base")
    write_json(folder / "base.json", {"source": "data/base", "revision": None, "sha256": None})
    loaded = load_embedded(repository, params)
    said = asking.about_base(folder, loaded.model)
    assert "2.1 million parameters, trained on synthetic images only" in said
    assert "a real image has no meaning" in said
    write_json(folder / "base.json", {"source": "Qwen/Qwen2-VL-2B-Instruct", "revision": "895c3a4", "sha256": None})
    said = asking.about_base(folder, loaded.model)
    assert said == "Base: Qwen/Qwen2-VL-2B-Instruct at 895c3a4; its model card names its training data."  # fmt: skip


def load_embedded(repository, params):
    """The shipped base, from another folder than the project's."""
    pointer = {"source": str(repository / "data/base"), "revision": None, "sha256": None}
    write_json("embedded/base.json", pointer)
    return load("embedded", params.model)


def test_ask_reads_dicom(trained, monkeypatch):
    """A drawn DICOM file reaches the model as the picture that it shows."""
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = "1.2.3", "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = 60, 80, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = np.linspace(0, 4000, 60 * 80).astype("<u2").tobytes()
    data.save_as("scan.dcm", enforce_file_format=True)

    seen = []

    def answers(loaded, requests, *args):
        from rarl.images import open_rgb

        seen.append(open_rgb(requests[0].image))
        return [Response("asked", "Yes", 1, False)]

    monkeypatch.setattr("rarl.models.generation.ask", answers)
    result = asked("--model", "base", "--image", "scan.dcm", "--question", "What?")
    assert result.exit_code == 0, result.output
    (picture,) = seen
    assert picture.size == (80, 60) and picture.getpixel((0, 0)) != picture.getpixel((79, 59))


def test_commands_start_without_torch():
    code = "import sys, rarl.cli.ask, rarl.cli.merge\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
