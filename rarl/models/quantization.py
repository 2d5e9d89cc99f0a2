"""NF4: the language model's linear layers in 4 bits (`model.quantization`), for small GPUs; needs bitsandbytes.

As in QLoRA (arXiv 2305.14314): blocks of 64 weights, whose scales are quantized too, and LoRA adapters in float32 on
top. Vision tower, projector, embeddings, norms and the head keep `model.dtype`, which is also the dtype that a layer
is dequantized to and computes in.
"""

import importlib.util

from rarl import params as P
from rarl.errors import UserError
from rarl.models.families import FAMILIES

BLOCK = 64
"""Weights with one scale, a byte."""
SCALES = 256
"""Scales with one scale of their own, in float32."""
BYTES_PER_WEIGHT = 1 / 2 + 1 / BLOCK + 4 / (BLOCK * SCALES)
"""0.5159: of a quantized layer, which also has tables of 1,092 bytes (16 + 256 entries and an offset in float32)."""
#: A regular expression of the modules that are not quantized: everything outside the language model.
NOT_QUANTIZED = rf"(?!model\.({'|'.join(sorted({family.language for family in FAMILIES.values()}))})\.).*"


def require_bitsandbytes(setting: str) -> None:
    """Raise a UserError if the package that a setting of params.yaml needs is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        fix = f"`pip install -c constraints.txt -e '.[quantization]'`, or unset {setting.split(' ')[0]}"
        raise UserError(setting, "the package bitsandbytes is not installed", "bitsandbytes", fix)


def quantization(model: P.Model, device) -> dict:
    """Arguments of `from_pretrained` for `model.quantization`; none if it is null."""
    if model.quantization is None:
        return {}
    require_bitsandbytes(f"model.quantization = {model.quantization}")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=model.dtype,
        llm_int8_skip_modules=[NOT_QUANTIZED],
    )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_layout(network) -> None:
    """Stop bitsandbytes from repacking weights in evaluation on processors with AVX512-BF16.

    It would not undo that for training, where a layer then fails, or has no gradient, and it rounds the blocks' scales
    to bfloat16.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class Float32AdapterMixin:
    """Mixin for a trainer: keeps adapters in float32, which TRL rounds to bfloat16 on a quantized base.

    RL's updates are mostly smaller than the last digit of a bfloat16 weight, and would be lost.
    """

    def __init__(self, model, *args, **kwargs):
        loaded = {weight: weight.data for weight in model.parameters()}  # an adapter that training continues from
        super().__init__(model, *args, **kwargs)
        for weight in self.model.parameters():
            if weight.requires_grad:
                weight.data = loaded.get(weight, weight.data).float()
