"""The code that loads the embedded base loads a folder laid out like the hub's."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_bases import make_base

from rarl.errors import UserError
from rarl.models.base_files import base_pointer, check_text_files, fingerprint
from rarl.models.families import image_tokens
from rarl.models.loading import check_adapter_base, choose_attention, load
from rarl.models.processor import KEPT_IMAGES, chat, load_processor
from rarl.params import Base
from rarl.records import write_json


@pytest.fixture(scope="module")
def hub_folder(random_base, tmp_path_factory):
    """The random base as the hub lays Qwen2-VL-2B-Instruct out: flat config, older weight names, older files."""
    source, model, processor = random_base
    folder = tmp_path_factory.mktemp("hub")
    text, vision = model.config.text_config, model.config.vision_config
    write_json(folder / "config.json", {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
        "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "bos_token_id": text.bos_token_id,
        "max_window_layers": text.num_hidden_layers, "eos_token_id": text.eos_token_id,
        "hidden_size": text.hidden_size, "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "num_attention_heads": text.num_attention_heads, "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads, "rms_norm_eps": text.rms_norm_eps,
        "vocab_size": text.vocab_size, "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "sliding_window": 32768, "use_sliding_window": False, "use_cache": True, "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vision_start_token_id": model.config.vision_start_token_id,
        "vision_end_token_id": model.config.vision_end_token_id,
        "vision_token_id": processor.tokenizer.convert_tokens_to_ids("<|vision_pad|>"),
        "image_token_id": model.config.image_token_id, "video_token_id": model.config.video_token_id,
        "vision_config": {
            "depth": vision.depth, "embed_dim": vision.embed_dim, "mlp_ratio": 4, "num_heads": vision.num_heads,
            "in_chans": 3, "hidden_size": vision.hidden_size, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "temporal_patch_size": 2,
        },
    })  # fmt: skip
    weights = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied, and not stored
        old = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        weights[old] = value.contiguous().clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "preprocessor_config.json", {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
    })  # fmt: skip
    write_json(folder / "chat_template.json", {"chat_template": processor.chat_template})
    write_json(folder / "generation_config.json", {
        "bos_token_id": text.bos_token_id, "do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001,
        "eos_token_id": [text.eos_token_id, text.bos_token_id], "pad_token_id": text.bos_token_id,
    })  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((source / name).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def logits(loaded):
    text = chat(loaded.processor, "Is there a bright spot in this image?")
    inputs = loaded.processor(text=[text], images=[Image.new("RGB", (100, 140), (90, 90, 90))], return_tensors="pt")
    with torch.no_grad():
        return loaded.model(**inputs).logits


def pointed(folder, tmp_path):
    write_json(tmp_path / "base.json", {"source": str(folder), "revision": None, "sha256": None})
    return tmp_path


def test_hub_layout_gives_the_same_model(hub_folder, random_base, params, tmp_path):
    ours = load(pointed(random_base[0], tmp_path), params.model)
    hub = load(pointed(hub_folder, tmp_path), params.model)
    torch.testing.assert_close(logits(hub), logits(ours), rtol=0, atol=0)
    assert hub.model.config.text_config.rope_parameters["mrope_section"] == [4, 6, 6]
    assert not hub.model.generation_config.do_sample, "the hub's sampling settings must not reach our decoding"


def test_published_names_of_gemma_3s_weights_are_read(random_base, params, tmp_path):
    """The hub's MedGemma has the tower's weights below one more name than transformers 5 writes."""
    make_base("gemma3", tmp_path, random_base[2].tokenizer)
    path = tmp_path / "model.safetensors"
    before = logits(load(pointed(tmp_path, tmp_path), params.model))
    weights = load_file(path)
    assert "language_model.model.embed_tokens.weight" in weights
    published = {
        name.replace("vision_tower.", "vision_tower.vision_model.").replace(
            "vision_model.vision_model", "vision_model"
        ): w
        for name, w in weights.items()
    }
    assert published.keys() != weights.keys()
    save_file(published, path, metadata={"format": "pt"})
    torch.testing.assert_close(logits(load(tmp_path, params.model)), before, rtol=0, atol=0)


def test_the_papers_base_is_read_as_published(real_data, random_base, tmp_path):
    """Tokenizer and image settings, without weights; the template of the base model takes no messages."""
    if not (real_data / "qwen2-vl-2b").is_dir():
        pytest.skip("no qwen2-vl-2b there")
    folder = shutil.copytree(real_data / "qwen2-vl-2b", tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(UserError, match="leaves the image of a user's message out"):
        load_processor(folder, None, 3136, 401_408)
    (folder / "chat_template.jinja").write_text(random_base[2].chat_template)
    check_text_files("base", folder, config)
    processor = load_processor(folder, None, 3136, 401_408)
    image = Image.new("RGB", (616, 616), (90, 90, 90))
    inputs = processor(text=[chat(processor, "Is it?")], images=[[image]], return_tensors="pt")
    assert int((inputs["input_ids"] == config["image_token_id"]).sum()) == 22**2 <= image_tokens(config, 401_408)


@pytest.mark.parametrize(
    "template, found",
    [
        ("{{ messages[0].content }}", "a chat template without images"),
        ("{{ raise_exception('no image') }}", "cannot be rendered"),
        ("{% if image %}{% endif %}{{ messages[0].role }}", "leaves the image of a user's message out"),
    ],
)
def test_a_chat_template_without_a_place_for_an_image_is_refused(random_base, tmp_path, template, found):
    folder = shutil.copytree(random_base[0], tmp_path / "base")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=found):
        load_processor(folder, None, 3136, 12544)


def test_loading_needs_no_torchvision(hub_folder, tmp_path):
    """In a fresh interpreter where importing torchvision fails, as beside the CPU build of torch."""
    script = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from rarl.models.processor import load_processor\n"
        f"print(type(load_processor({str(hub_folder)!r}, None, 3136, 12544).image_processor).__name__)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "ImageProcessor"


def test_the_tower_is_frozen_and_nothing_else(random_base, params, tmp_path):
    model = load(pointed(random_base[0], tmp_path), params.model).model
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("visual" not in name), name


def test_attention_falls_back_to_sdpa_without_a_gpu(params):
    assert choose_attention(params.model, torch.device("cpu")) == "sdpa"


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"base\.source"):
        base_pointer(Base(source=str(tmp_path)))


def test_a_sharded_base_without_one_of_its_files_is_refused(random_base, params, tmp_path):
    folder = tmp_path / "sharded"
    load(pointed(random_base[0], tmp_path), params.model).model.save_pretrained(folder, max_shard_size="100KB")
    assert fingerprint(folder)
    first, *_ = sorted(folder.glob("*-of-*.safetensors"))
    first.unlink()
    with pytest.raises(UserError, match=f"no {first.name} in it"):
        fingerprint(folder)


def test_weights_that_are_cut_off_are_one_message(random_base, params, tmp_path):
    folder = shutil.copytree(random_base[0], tmp_path / "base")
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(UserError, match=r"base\.source = .*\n.*\n.*whole weights"):
        load(pointed(folder, tmp_path), params.model)


def test_a_package_that_is_missing_is_named(random_base, params, tmp_path, monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("\nThis base requires the SentencePiece library")

    monkeypatch.setattr("rarl.models.loading.load_processor", missing)
    with pytest.raises(UserError, match=r"base\.source = .*\n.*SentencePiece(.|\n)*install what is named"):
        load(pointed(random_base[0], tmp_path), params.model)
    model = params.model.model_copy(update={"attention": "flash_attention_2"})
    with pytest.raises(UserError, match=r"model\.attention to sdpa"):
        load(pointed(random_base[0], tmp_path), model)


def test_a_tokenizer_without_a_padding_token_gets_one(random_base, tmp_path):
    folder = shutil.copytree(random_base[0], tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    write_json(folder / "tokenizer_config.json", settings)
    tokenizer = load_processor(folder, None, 3136, 12544).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token


#: Language-model layers' names in an adapter: from transformers 4.52 on, and before.
NAMES = ("base_model.model.model.language_model.", "base_model.model.model.")


def test_adapters_of_earlier_versions_are_read(random_base, params, tmp_path):
    """With the older names of layers, and with a part of the model that was trained as a whole."""
    model = load(pointed(random_base[0], tmp_path), params.model).model
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    trained = get_peft_model(model, config)
    with torch.no_grad():
        trained.get_base_model().lm_head.modules_to_save.default.weight.mul_(2)
    trained.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name.replace(*NAMES): value for name, value in weights.items()}, path, metadata={"format": "pt"})
    assert load_file(path).keys() != weights.keys()
    found, expected = (dict(one.named_parameters()) for one in (load(tmp_path, params.model).model, trained))
    learned = [name for name in expected if "lora_" in name or "modules_to_save" in name]
    assert len(learned) > 2 and all(torch.equal(found[name], expected[name]) for name in learned)


def test_pointer_changes_with_the_weights(random_base, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(random_base[0], folder)
    before = base_pointer(Base(source=str(folder)))["sha256"]
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert base_pointer(Base(source=str(folder)))["sha256"] != before


FAMILIES = ("gemma3_text", "llava_next", "gpt2", None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_of_another_family_is_refused(random_base, params, tmp_path, family):
    folder = shutil.copytree(random_base[0], tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "model_type": family})
    for use in (lambda: base_pointer(Base(source=str(folder))), lambda: load(pointed(folder, tmp_path), params.model)):
        with pytest.raises(UserError, match=f"a model of type {family}\n.*qwen2_vl"):
            use()


def changed(folder, change):
    """Apply `change` to the tensors of a model or adapter folder."""
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def drop(weights):
    del weights[sorted(weights)[0]]


def shorten(weights):
    name = next(name for name in sorted(weights) if weights[name].ndim == 2)
    weights[name] = weights[name][1:].clone()


@pytest.mark.parametrize("change", [drop, shorten])
def test_a_base_with_a_missing_or_mismatched_weight_is_refused(random_base, params, tmp_path, change):
    folder = shutil.copytree(random_base[0], tmp_path / "base")
    changed(folder, change)
    with pytest.raises(UserError, match="weights missing or of another shape"):
        load(pointed(folder, tmp_path), params.model)


def test_a_base_that_changed_after_training_is_refused(random_base, params, tmp_path):
    folder = shutil.copytree(random_base[0], tmp_path / "base")
    write_json(tmp_path / "base.json", base_pointer(Base(source=str(folder))))
    load(tmp_path, params.model)
    changed(folder, lambda weights: weights[min(weights)].mul_(2))
    with pytest.raises(UserError, match="SHA-256"):
        load(tmp_path, params.model)


def add(weights):
    name = min(weights)
    weights[name.replace(".0.", ".9.")] = weights[name].clone()


@pytest.mark.parametrize(
    "change, found",
    [(drop, "1 weights missing"), (shorten, "size mismatch|shape"), (add, "1 weights that the base has no layer for")],
)
def test_an_adapter_with_a_missing_or_mismatched_weight_is_refused(random_base, params, tmp_path, change, found):
    model = load(pointed(random_base[0], tmp_path), params.model).model
    adapter = LoraConfig(target_modules=["q_proj"], exclude_modules=".*visual.*")
    get_peft_model(model, adapter).save_pretrained(tmp_path)
    load(tmp_path, params.model)
    changed(tmp_path, change)
    with pytest.raises(UserError, match=found):
        load(tmp_path, params.model)


@pytest.mark.parametrize(
    "key, value, found",
    [
        ("base_model_name_or_path", "Qwen/Qwen2.5-VL-2B-Instruct", "an adapter of Qwen/Qwen2.5-VL-2B-Instruct"),
        ("revision", "b" * 40, f"an adapter of {'b' * 40}"),
        ("base_model_name_or_path", "/a/folder/Qwen2-VL-2B-Instruct", None),
        ("revision", None, None),
    ],
)
def test_an_adapter_of_another_base_is_refused(tmp_path, key, value, found):
    """Qwen2-VL-7B and Qwen2.5-VL-7B have language models of the same shape."""
    adapter = {"base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct", "revision": "a" * 40}
    pointer = {"source": "Qwen/Qwen2-VL-2B-Instruct", "revision": "a" * 40, "sha256": None}
    write_json(tmp_path / "base.json", pointer)
    write_json(tmp_path / "adapter_config.json", adapter | {key: value})
    with pytest.raises(UserError, match=found) if found else contextlib.nullcontext():
        check_adapter_base(tmp_path)
    write_json(tmp_path / "base.json", pointer | {"sha256": "0"})
    check_adapter_base(tmp_path)


def test_kept_patches_are_those_of_the_stock_processor(random_base):
    """Images of several sizes, met again in another order and beyond what is kept."""
    import numpy as np
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    ours = load_processor(str(random_base[0]), None, 3136, 12544).image_processor
    stock = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12544})
    noise = np.random.default_rng(0)
    images = [
        Image.fromarray(noise.integers(0, 256, (60 + 9 * i, 90, 3), dtype=np.uint8)) for i in range(KEPT_IMAGES + 3)
    ]
    for batch in (images, images[::-1], [images[1], images[0], images[1]]):
        got, wanted = ours(batch, return_tensors="pt"), stock(batch, return_tensors="pt")
        for name in ("pixel_values", "image_grid_thw"):
            assert torch.equal(got[name], wanted[name])
    assert len(ours._kept) == KEPT_IMAGES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's")
def test_freed_memory_stays_with_the_process():
    code = """
import psutil, torch
from rarl.models.loading import keep_freed_memory

def kept():
    before = psutil.Process().memory_info().rss
    torch.ones(2**26)  # 268 MB: so large a block glibc gives back by itself
    return (psutil.Process().memory_info().rss - before) // 10**6

print(kept())
keep_freed_memory()
print(kept())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    without, with_it = map(int, said.stdout.split())
    assert without < 100 < 200 < with_it, said.stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's")
@pytest.mark.parametrize(
    ("setting", "least", "most"), [("keep_freed_memory()", 100, 200), ("keep_freed_memory(quantized=True)", -1, 50)]
)
def test_large_blocks_do_not_fragment_the_heap_of_a_quantized_model(setting, least, most):
    """glibc keeps blocks of up to 32 MB once it has freed one of their size, if smaller ones after them are in use."""
    code = f"""
import psutil, torch
from rarl.models.loading import keep_freed_memory
{setting}
torch.ones(2**22)  # 17 MB
before, used = psutil.Process().memory_info().rss, []
blocks = [(torch.ones(2**22), used.append(torch.ones(2**10))) for _ in range(8)]
del blocks
print((psutil.Process().memory_info().rss - before) // 10**6)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert least < int(said.stdout) < most
