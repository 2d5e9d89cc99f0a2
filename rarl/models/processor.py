"""Processors of images and text: the Qwens' without the video half, which would need torchvision, and the others'."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import xxhash
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BatchFeature,
    Gemma3Processor,
    Idefics3Processor,
    PreTrainedConfig,
    Qwen2VLProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from rarl.models.base_files import CHAT_TEMPLATES, check_family, check_template, no_image_token, no_template
from rarl.models.families import FAMILIES, image_token, image_tokens, largest_edge

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


#: Processors of families other than the Qwens, and their name for the number of tokens of an image or tile. SmolVLM's
#: own class gives the same tokens as Idefics3's, but needs a video processor and num2words.
PROCESSORS = {
    "Gemma3Processor": (Gemma3Processor, "image_seq_length"),
    "Idefics3Processor": (Idefics3Processor, "image_seq_len"),
    "SmolVLMProcessor": (Idefics3Processor, "image_seq_len"),
}


def load_processor(source: str | Path, revision: str | None, min_pixels: int, max_pixels: int) -> ProcessorMixin:
    """Load tokenizer, chat template and image processor of a base.

    Args:
        source: a local folder or hub id, in the hub's layout.
        revision: of a hub id.
        min_pixels: size to which the Qwens' images are scaled up. Other families have a fixed lower limit.
        max_pixels: size to which images are scaled down, see `families.image_tokens`. Gemma 3 has one fixed size.

    Raises:
        UserError: the family is not supported, the tokenizer has no image token, or there is no chat template that has
            a place for an image.
    """
    check_family(str(source), PreTrainedConfig.get_config_dict(source, revision=revision)[0])
    config = AutoConfig.from_pretrained(source, revision=revision).to_dict()  # with the defaults of its class
    family, token = FAMILIES[config["model_type"]], image_token(config)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as TRL does
    template = _chat_template(source, revision, tokenizer)
    check_template(str(source), template)
    if family.grid:
        kind, extra = ImageTextProcessor, {}
        images = ImageProcessor.from_pretrained(source, revision=revision)
        images.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    else:
        kind, length = PROCESSORS[family.processor]
        extra = {length: image_tokens(config, 0)}
        images = _image_processor(source, revision, max_pixels)
    try:
        processor = kind(images, tokenizer, chat_template=template, **extra)
        known = token in processor.image_token_ids
    except AttributeError:  # Gemma 3's asks the tokenizer for its image tokens by name
        known = False
    if not known:
        raise no_image_token(str(source), token)
    # The template has the token that begins a sequence; a second one would shift Gemma 3's `token_type_ids` in TRL.
    processor.text_kwargs = {"add_special_tokens": False}
    _check_rendered(str(source), processor)
    return processor


def _image_processor(source: str | Path, revision: str | None, max_pixels: int) -> BaseImageProcessor:
    """An image processor that gives each image as one, or as its tiles, with the same pixels on every machine."""
    images = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil")
    if hasattr(images, "max_image_size"):
        edge = largest_edge(max_pixels, images.max_image_size["longest_edge"])
        images.size = {"longest_edge": min(images.size["longest_edge"], edge)}
    else:
        images.do_pan_and_scan = False
    return images


def _check_rendered(where: str, processor: ProcessorMixin) -> None:
    """Refuse a chat template that fails for a message with an image, or leaves the image out."""
    try:
        rendered = chat(processor, "")
    except TemplateError as error:
        raise no_template(where, f"a chat template that cannot be rendered ({error})") from None
    if processor.image_token not in rendered:
        raise no_template(where, "a chat template that leaves the image of a user's message out")


def _chat_template(source: str | Path, revision: str | None, tokenizer) -> str | None:
    """The template of one of `CHAT_TEMPLATES` or of the tokenizer's config, the first that exists."""
    for name in CHAT_TEMPLATES:
        if file := cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False):
            text = Path(file).read_text(encoding="utf-8")
            return text if name.endswith(".jinja") else json.loads(text)["chat_template"]
    return tokenizer.chat_template


def chat(processor: ProcessorMixin, prompt: str, completion: str | None = None) -> str:
    """A user message, image before text, in the chat template, followed by the completion if there is one."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    return text if completion is None else text + completion
