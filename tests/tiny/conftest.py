"""A small world for the tiny tier: a random Qwen2-VL on disk, synthetic images, and a project folder around them."""

import copy
import functools
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarl.cache import code_key
from rarl.models.base_files import base_pointer
from rarl.params import Base, Rewards, load_params
from rarl.phantom import general
from rarl.records import Sample, read_records, write_json, write_records


@pytest.fixture(scope="session")
def random_base(tmp_path_factory):
    """Folder of a randomly initialised Qwen2-VL of the embedded base's shape with fewer layers, and its parts."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    from rarl.pretraining.tiny import build_config, build_processor, train_tokenizer
    from rarl.pretraining.training import corpus

    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus(0, 60), 800)
    processor = build_processor(tokenizer)
    config = build_config(tokenizer)
    text = config.text_config
    text.num_hidden_layers, text.layer_types, config.vision_config.depth = 2, text.layer_types[:2], 2
    model = Qwen2VLForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="session")
def params():
    """The shipped parameters, shortened to a run of seconds."""
    params = load_params("params.yaml")
    params.model.threads = 1
    params.train.eval_steps = 2
    params.train.dev_samples = 4
    params.sft.epochs, params.sft.batch_size, params.sft.micro_batch_size = 1, 4, 4
    (params.rl.max_steps, params.rl.group_size, params.rl.prompts_per_step, params.rl.micro_prompts) = 4, 4, 2, 2
    params.rl.max_completion_length = params.decoding.max_new_tokens = 12
    params.decoding.batch_size = 4
    params.benchmarks = []
    return params


CODE_KEY = functools.cache(code_key)


@pytest.fixture(scope="module", autouse=True)
def code_read_once():
    """The code does not change while tests run, so each stage's is read and hashed once."""
    from rarl import encoding
    from rarl.inference import predictions
    from rarl.training import run

    with pytest.MonkeyPatch.context() as patch:
        for module in (encoding, predictions, run):
            patch.setattr(module, "code_key", CODE_KEY)
        yield


@pytest.fixture(scope="session")
def first_project(tmp_path_factory, random_base, params):
    """What `project` copies: 16 training, 4 development and 6 test rows on synthetic images."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("project")
    root = folder / params.data.root
    for split, count in (("train", 16), ("dev", 4), ("test", 6)):
        rows = []
        for index in range(count):
            scene = general.draw_grey(rng)
            image = f"pictures/{split}{index}.png"
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            scene.image.save(root / image)
            bright = any(thing.colour == "bright" for thing in scene.things)
            rows.append(
                Sample(
                    id=f"drawn/{split}/{index}",
                    dataset="drawn",
                    split=split,
                    image=image,
                    image_sha256=hashlib.sha256((root / image).read_bytes()).hexdigest(),
                    question="Is there a bright spot in this image?",
                    answers=["Yes" if bright else "No"],
                    kind="yes_no",
                    reasoning="There is a bright spot." if bright and index % 2 else None,
                    modality="other",
                )
            )
        write_records(folder / f"data/curated/{split}.jsonl", rows)
    write_json(folder / "data/models/base/base.json", base_pointer(Base(source=str(random_base[0]))))
    return folder


@pytest.fixture
def project(first_project, tmp_path, monkeypatch):
    """A project folder of one's own; the test works in it."""
    monkeypatch.chdir(shutil.copytree(first_project, tmp_path, dirs_exist_ok=True))
    return tmp_path


@pytest.fixture(scope="session")
def training_features(first_project, tmp_path_factory):
    """Folder of the project's training features for a `model` block, made by the encode stage's own library calls."""
    from rarl.images import open_rgb
    from rarl.models.features import FeatureStore
    from rarl.models.loading import load

    made = {}

    def make(params):
        kind = (params.model.dtype, params.model.device)
        if kind in made:
            return made[kind]
        loaded = load(first_project / "data/models/base", params.model)
        store = FeatureStore()
        store.attach(loaded.model)
        for split in ("train", "dev"):
            for sample in read_records(first_project / f"data/curated/{split}.jsonl", Sample):
                inputs = loaded.processor.image_processor(
                    [open_rgb(first_project / params.data.root / sample.image)], return_tensors="pt"
                ).to(loaded.device)
                loaded.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        made[kind] = tmp_path_factory.mktemp("features")
        store.save(made[kind])
        return made[kind]

    return make


@pytest.fixture
def encoded(project, training_features, params):
    """The project with its training features."""
    shutil.copytree(training_features(params), "data/features/training")
    return project


QUESTIONS = ("Is there a bright spot?", "Where in this image is the bright spot, if there is one at all?", "Spot?")
SIZES = ((112, 112), (84, 112), (112, 56), (56, 84))


@pytest.fixture
def mixed(encoded, params):
    """The project with questions of different lengths and images of different sizes."""
    rows = read_records("data/curated/train.jsonl", Sample)
    for index, row in enumerate(rows):
        path = Path(params.data.root) / row.image
        Image.open(path).resize(SIZES[index % len(SIZES)]).save(path)
        rows[index] = row.model_copy(update={"question": QUESTIONS[index % len(QUESTIONS)]})
    write_records("data/curated/train.jsonl", rows)
    params = copy.deepcopy(params)
    params.grpo.rewards = Rewards(format=1, length=50)  # rewards that differ, from a random model
    params.rarl.rewards = Rewards(format=1, length=50, accuracy=1, reasoning=1)
    params.rl.prompts_per_step, params.rl.micro_prompts = 3, 3
    params.rl.learning_rate = 1e-2
    return params
