"""Tiny random models of each supported family, as folders in the hub's layout."""

import json

import torch
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from rarl.pretraining.tiny import CHAT_TEMPLATE

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN3_ROPE = {**MROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
QWEN = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
CONFIGS = {
    "qwen2_vl": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN, "embed_dim": 32, "hidden_size": 32, "patch_size": 14, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {
            **QWEN, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 14,
            "window_size": 56, "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        "text_config": {**TEXT, "num_hidden_layers": 3, "head_dim": 16, "rope_parameters": QWEN3_ROPE},
        "vision_config": {
            **QWEN, "depth": 3, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 16,
            "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16,
        },
    },
    "gemma3": {
        "text_config": {
            **TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "smolvlm": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGLIP, "scale_factor": 2},
    "idefics3": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGLIP, "scale_factor": 2},
}  # fmt: skip
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
GEMMA_TOKENS = (
    "<pad>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"
)  # fmt: skip
SMOLVLM_TOKENS = (
    "<pad>", "<|im_start|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"
)  # fmt: skip


def make_base(model_type: str, folder, qwen_tokenizer) -> None:
    """Write a random model of a family with its tokenizer, template and image settings into a folder."""
    tokenizer, template, ids = _tokenizer(model_type, qwen_tokenizer)
    config = AutoConfig.for_model(model_type, **_deep_copy(CONFIGS[model_type]), **ids)
    text = config.get_text_config()
    text.vocab_size = len(tokenizer)
    text.bos_token_id = text.pad_token_id = tokenizer.pad_token_id
    text.eos_token_id = tokenizer.eos_token_id
    # A random model with tied weights repeats its last token, except Gemma 3, which scales its embeddings.
    text.tie_word_embeddings = config.tie_word_embeddings = model_type == "gemma3"
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for name, weight in model.named_parameters():  # a projector of zeros, as Gemma 3's is, would hide the image
        if "projection" in name or "merger" in name:
            torch.nn.init.normal_(weight, std=0.2)
    # A quarter of the vocabulary ends a completion, so that random completions differ in length.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(20, 20 + len(tokenizer) // 4)]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "preprocessor_config.json").write_text(json.dumps(_image_settings(model_type)))


def _deep_copy(config: dict) -> dict:
    return json.loads(json.dumps(config))


def _tokenizer(model_type: str, qwen_tokenizer):
    """A tokenizer with the family's special tokens, its chat template, and the tokens that the config names."""
    if model_type.startswith("qwen"):
        names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
        names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
        return qwen_tokenizer, CHAT_TEMPLATE, _ids(qwen_tokenizer, names)
    gemma = model_type == "gemma3"
    core = Tokenizer.from_str(qwen_tokenizer.backend_tokenizer.to_str())
    core.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (GEMMA_TOKENS if gemma else SMOLVLM_TOKENS)]
    )
    if not gemma:
        end = {"eos_token": "<end_of_utterance>", "bos_token": "<|im_start|>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", **end)
        return tokenizer, SMOLVLM_TEMPLATE, _ids(tokenizer, {"image_token_id": "<image>"})
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<end_of_turn>",
        extra_special_tokens={
            "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"
        },
    )  # fmt: skip
    names = {"image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>"}
    return tokenizer, GEMMA_TEMPLATE, _ids(tokenizer, names | {"eoi_token_index": "<end_of_image>"})


def _ids(tokenizer, names: dict) -> dict:
    return {key: tokenizer.convert_tokens_to_ids(text) for key, text in names.items()}


def _image_settings(model_type: str) -> dict:
    """What the hub's `preprocessor_config.json` of the family has, for tiny images."""
    if model_type.startswith("qwen"):
        patch = CONFIGS[model_type]["vision_config"]["patch_size"]
        kind = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": patch, "merge_size": 2}
        return {**kind, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 12845056}
    if model_type == "gemma3":
        size = {"height": 56, "width": 56}
        return {"image_processor_type": "Gemma3ImageProcessor", "size": size, "processor_class": "Gemma3Processor"}
    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[model_type]
    return {
        "image_processor_type": f"{name}ImageProcessor", "processor_class": f"{name}Processor",
        "size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": True,
    }  # fmt: skip
