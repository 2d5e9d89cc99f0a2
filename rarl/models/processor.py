"""Qwen2-VL's processor of images and text, without the video half, which would need torchvision."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import xxhash
from transformers import AutoTokenizer, BatchFeature, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import cached_file

from rarl.errors import UserError

#: Images whose patches are cached (10 MB each at 401,408 pixels): more than a training step has.
KEPT_IMAGES = 32


class ImageProcessor(Qwen2VLImageProcessorPil):
    """The stock image processor with a cache, since TRL processes each image twice per completion."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._kept = OrderedDict()

    def _preprocess(self, images, return_tensors, **kwargs):
        done = []
        for image in images:
            key = (xxhash.xxh3_128_digest(np.ascontiguousarray(image)), image.shape, repr(kwargs))
            if key not in self._kept:
                self._kept[key] = super()._preprocess([image], return_tensors=None, **kwargs)
            self._kept.move_to_end(key)
            done.append(self._kept[key])
            if len(self._kept) > KEPT_IMAGES:
                self._kept.popitem(last=False)
        joined = {name: np.concatenate([one[name] for one in done]) for name in done[0]}
        return BatchFeature(joined, tensor_type=return_tensors)

    def to_dict(self):
        """The settings, without the cache."""
        return {key: value for key, value in super().to_dict().items() if key != "_kept"}


class ImageTextProcessor(Qwen2VLProcessor):
    """Qwen2-VL's processor for images only.

    The stock class requires a video processor, and that requires torchvision, whose wheels cannot be imported with the
    CPU build of torch. The PIL image processor gives the same pixels on every machine.
    """

    @classmethod
    def get_attributes(cls):
        """The parts to save and load."""
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token = getattr(tokenizer, "image_token", "<|image_pad|>")
        self.video_token = getattr(tokenizer, "video_token", "<|video_pad|>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super(Qwen2VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


def load_processor(source: str | Path, revision: str | None, min_pixels: int, max_pixels: int) -> ImageTextProcessor:
    """Load tokenizer, chat template and an image processor that scales images to `min_pixels` up to `max_pixels`.

    `source` is a local folder or hub id, in the layout of `Qwen/Qwen2-VL-2B-Instruct`.
    """
    images = ImageProcessor.from_pretrained(source, revision=revision)
    images.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, padding_side="left")
    return ImageTextProcessor(images, tokenizer, chat_template=_chat_template(source, revision, tokenizer))


def _chat_template(source: str | Path, revision: str | None, tokenizer) -> str:
    """The template of `chat_template.jinja`, `chat_template.json` or the tokenizer's config, the first that exists."""
    for name in ("chat_template.jinja", "chat_template.json"):
        if file := cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False):
            text = Path(file).read_text(encoding="utf-8")
            return text if name.endswith(".jinja") else json.loads(text)["chat_template"]
    if tokenizer.chat_template:
        return tokenizer.chat_template
    expected = "chat_template.jinja, chat_template.json or one in tokenizer_config.json"
    fix = "use the folder of an instruct model, such as Qwen2-VL-2B-Instruct"
    raise UserError(str(source), "no chat template", expected, fix)


def chat(processor: ImageTextProcessor, prompt: str, completion: str | None = None) -> str:
    """A user message, image before text, in the chat template, followed by the completion if there is one."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return text if completion is None else text + completion
