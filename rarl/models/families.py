"""The supported families of base models: one table, keyed by the `model_type` of a base's `config.json`.

Reads no weights and imports no torch: the stages `check` and `base` use it, too.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What the pipeline needs to know about a family of vision-language models."""

    name: str
    example: str
    """A hub id."""
    processor: str
    """The stock processor's class, which other programs load."""
    decoder_layer: str
    """Class of the language model's layers, for FSDP."""
    vision: tuple[str, ...] = ("visual",)
    """Frozen modules of the backbone (`model.model`) without adapters: the vision tower, then its projector.

    One name means that the projector is a part of the tower.
    """
    language: str = "language_model"
    """The backbone's language model."""
    grid: bool = True
    """Whether images are rows of patches with `image_grid_thw`, and positions those of M-RoPE."""
    deepstack: bool = False
    """Whether features of several tower layers enter the language model, each (image tokens, hidden size)."""
    patch: int = 0
    """Edge in pixels of the square that becomes one image token; 0 where an image has a fixed number of tokens."""

    @property
    def lora_exclude(self) -> str:
        """PEFT's `exclude_modules`, a pattern of whole module names.

        >>> FAMILIES["qwen2_vl"].lora_exclude, FAMILIES["gemma3"].lora_exclude
        ('.*visual.*', '.*vision_tower.*|.*multi_modal_projector.*')
        """
        return "|".join(f".*{name}.*" for name in self.vision)


_SIGLIP = {"vision": ("vision_model", "connector"), "language": "text_model", "grid": False}

#: By `model_type`. MedGemma is a Gemma 3, SmolVLM2 a SmolVLM, and the first SmolVLM an Idefics3.
FAMILIES = {
    "qwen2_vl": Family("Qwen2-VL", "Qwen/Qwen2-VL-2B-Instruct", "Qwen2VLProcessor", "Qwen2VLDecoderLayer", patch=28),
    "qwen2_5_vl": Family(
        "Qwen2.5-VL", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2_5_VLProcessor", "Qwen2_5_VLDecoderLayer", patch=28
    ),
    "qwen3_vl": Family(
        "Qwen3-VL",
        "Qwen/Qwen3-VL-2B-Instruct",
        "Qwen3VLProcessor",
        "Qwen3VLTextDecoderLayer",
        deepstack=True,
        patch=32,
    ),
    "gemma3": Family(
        "Gemma 3",
        "google/medgemma-4b-it",
        "Gemma3Processor",
        "Gemma3DecoderLayer",
        vision=("vision_tower", "multi_modal_projector"),
        grid=False,
    ),
    "smolvlm": Family(
        "SmolVLM", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "SmolVLMProcessor", "LlamaDecoderLayer", **_SIGLIP
    ),
    "idefics3": Family(
        "Idefics3", "HuggingFaceTB/SmolVLM-Instruct", "Idefics3Processor", "LlamaDecoderLayer", **_SIGLIP
    ),
}


def image_token(config: dict) -> int | None:
    """The id of an image's placeholder token, as a `config.json` has it; Gemma 3's has it under another name.

    The processor is no source: Gemma 3's gives the token that opens an image.

    >>> image_token({"image_token_id": 151655}), image_token({"image_token_index": 262144}), image_token({})
    (151655, 262144, None)
    """
    return config.get("image_token_id", config.get("image_token_index"))


def image_tokens(config: dict, max_pixels: int) -> int:
    """Number of tokens of the largest image, from a `config.json`.

    Qwens: one token per square of patches. Gemma 3: a fixed number. SmolVLM and Idefics3: a fixed number per tile, and
    one tile more, the whole image, where there is more than one.

    >>> image_tokens({"model_type": "qwen2_vl"}, 401_408), image_tokens({"model_type": "gemma3"}, 401_408)
    (512, 256)
    >>> vision = {"image_size": 512, "patch_size": 16}
    >>> [image_tokens({"model_type": "smolvlm", "scale_factor": 4, "vision_config": vision}, n) for n in (5e5, 1.1e6)]
    [64, 320]
    """
    family, vision = FAMILIES[config["model_type"]], config.get("vision_config") or {}
    if family.patch:
        return math.ceil(max_pixels / family.patch**2)
    if family.processor == "Gemma3Processor":
        return config.get("mm_tokens_per_image", 256)
    edge = vision.get("image_size", 224)
    tiles = largest_edge(max_pixels, edge) ** 2 // edge**2
    per_tile = (edge // vision.get("patch_size", 32)) ** 2 // config.get("scale_factor", 2) ** 2
    return per_tile * (tiles + 1 if tiles > 1 else 1)


def largest_edge(max_pixels: int, tile: int) -> int:
    """Edge of the largest square of whole tiles with at most `max_pixels`; one tile at least.

    >>> largest_edge(401_408, 512), largest_edge(1_100_000, 512), largest_edge(1000, 512)
    (512, 1024, 512)
    """
    return max(1, math.isqrt(int(max_pixels)) // tile) * tile
