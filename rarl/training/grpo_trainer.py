"""A mixin for TRL's GRPOTrainer that runs each prompt once per group of completions.

Stock TRL runs the whole prompt, image tokens included, once per completion: in generation, in the reference pass and
in the policy pass. Log-probabilities, gradients, and the sampled tokens for the same random numbers are the same here
(`tests/tiny/test_shared_prefix.py`). With `lora.dropout` a group shares its prompt's noise, and sampling has none.
Unsupported options fall back to stock TRL, which is logged once.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from tqdm import tqdm
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from rarl.models.patching import without_peft
from rarl.models.shared_prefix.decode import decode, unsupported_settings
from rarl.models.shared_prefix.layers import patch_layers
from rarl.models.shared_prefix.layout import Prefix, group_by_prefix
from rarl.training.log_probs import packed_log_probs
from rarl.training.sharding import with_whole_weights

#: Losses that are sums over rows, which do not depend on how a step's rows are split into passes.
LOSSES_OF_ROWS = frozenset({"grpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"})
#: Inputs of a model that show images, and that tell which tokens stand for one. Each family has some of them.
IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask")
TOKEN_INPUTS = ("mm_token_type_ids", "token_type_ids")


class SharedPrefixMixin:
    """Mixin for `GRPOTrainer`."""

    _logged = frozenset()

    def _fall_back(self, what: str, reason: str) -> bool:
        """Log once why stock TRL does `what`."""
        if (what, reason) not in self._logged:
            self._logged |= {(what, reason)}
            tqdm.write(f"{what}: {reason}; stock TRL does it, slower")
        return True

    def _unsupported(self, what: str, model, shortest: int, options: list[str]) -> bool:
        """Whether stock TRL has to do `what`: unsupported options are set, or the shortest prompt has one token."""
        reason = ", ".join(options) or patch_layers(without_peft(model))
        if reason is None and shortest < 2:
            reason = "a prompt of one token"
        return reason is not None and self._fall_back(what, reason)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        """Sample a completion for each row. Arguments and result are TRL's: lists of token ids, end token included."""
        if self.use_vllm:
            if self.vllm_mode == "colocate" and images:
                prompt_ids = [one_placeholder(ids, self.processing_class.image_token_id) for ids in prompt_ids]
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        options = self._unsupported_in_generation(multimodal_fields, kwargs)
        network = self.accelerator.unwrap_model(self.model_wrapped)
        if self._unsupported("generation", network, min(map(len, prompt_ids)), options):
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        device = self.accelerator.device
        pixels, grid, mask = (
            torch.as_tensor(np.asarray(multimodal_fields[name]), device=device) if name in multimodal_fields else None
            for name in IMAGE_INPUTS
        )
        prompts = [torch.tensor(ids, device=device) for ids in prompt_ids]
        counts = [len(shown or []) for shown in images] if images else None
        prefixes, suffixes = group_by_prefix(prompts, pixels, grid, counts, pixel_mask=mask)
        settings = {"gradient_checkpointing_kwargs": self.args.gradient_checkpointing_kwargs}
        unwrapped = unwrap_model_for_generation(self.model_wrapped, self.accelerator, **settings)
        with unwrapped as model, self.accelerator.autocast():
            training = model.training
            model.eval()  # without dropout: samples are the policy's own
            sample = partial(decode, without_peft(model), prefixes, suffixes, self.generation_config)
            try:
                return with_whole_weights(self.model_wrapped, sample), None
            finally:
                model.train(training)

    def _unsupported_in_generation(self, fields: dict, kwargs: dict) -> list[str]:
        options = unsupported_settings(self.generation_kwargs)
        options += fields.keys() - {*IMAGE_INPUTS, *TOKEN_INPUTS}
        options += [name for name, value in kwargs.items() if value]
        if self.use_transformers_continuous_batching:
            options.append("continuous batching")
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.reshard_after_forward:
            options.append("fsdp_reshard_after_forward is true")
        return options

    def _prepare_inputs(self, generation_batch):
        """Put the rows of a prompt, which TRL shuffles, into one pass if the loss does not depend on the pass."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        passes = self._buffered_inputs
        if self.model.training and passes is not before and len(passes) > 1:
            reason = self._bound_to_passes(inputs)
            if reason is None:
                self._buffered_inputs = whole_groups(passes)
                inputs = self._buffered_inputs[self._step % len(passes)]
            else:
                self._fall_back("order of rows", reason)
        return inputs

    def _bound_to_passes(self, inputs: dict) -> str | None:
        """Why a step's loss depends on how its rows are split into passes, or None."""
        args = self.args
        if self.loss_type not in LOSSES_OF_ROWS:
            return f"loss_type {self.loss_type} is normalised by the tokens of a pass"
        if self.top_entropy_quantile < 1.0:
            return "top_entropy_quantile is taken of a pass"
        if self._entropy_in_loss():
            return "the entropy bonus is the mean over the tokens of a pass"
        if args.steps_per_generation != args.gradient_accumulation_steps:
            return "steps_per_generation differs from gradient_accumulation_steps"
        network = without_peft(self.accelerator.unwrap_model(self.model))
        if inputs.get("pixel_values") is not None and inputs.get("image_grid_thw") is None and patch_layers(network):
            return "a model without image_grid_thw"
        return None

    def _entropy_in_loss(self) -> bool:
        return bool(self.entropy_coef or self.use_adaptive_entropy)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        """Log-probabilities (rows, completion tokens) of the policy or the reference, and entropies if requested.

        Arguments and result are TRL's; padding gets 0. A pass has at most `batch_size` rows, in whole groups.
        """
        network = self.accelerator.unwrap_model(model)
        prompts, completions, mask = unpack(input_ids, attention_mask, logits_to_keep)
        supported = {"num_images", *IMAGE_INPUTS, *TOKEN_INPUTS}
        given = {name for name, value in kwargs.items() if value is not None and value is not False}
        stock = self._unsupported("log-probabilities", network, min(map(len, prompts)), sorted(given - supported))
        if stock or not mask.any():  # no token to score: all are truncated, with mask_truncated_completions
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        pixels, grid, mask_of_pixels = map(kwargs.get, IMAGE_INPUTS)
        images = pixels, grid, kwargs.get("num_images")
        prefixes, suffixes = group_by_prefix(prompts, *images, pixel_mask=mask_of_pixels)
        scores, rows = [], []
        for chunk in chunks(prefixes, batch_size or len(input_ids)):
            own = [row for prefix in chunk for row in prefix.rows]
            rows += own
            if not any(len(completions[row]) for row in own):
                continue
            rest = suffixes, completions, self.temperature, self._entropy_in_loss()
            with self.accelerator.autocast():
                scores.append(packed_log_probs(model, without_peft(network), chunk, *rest))
        log_probs, entropies = zip(*scores)
        return scatter(log_probs, rows, mask), scatter(entropies, rows, mask) if compute_entropy else None, None


def unpack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, completion: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Split padded rows, (rows, tokens), into prompts and completions without padding, and the completions' mask.

    The last `completion` tokens of a row are its padded completion.

    >>> prompts, completions, mask = unpack(torch.tensor([[0, 5, 6, 7, 0]]), torch.tensor([[0, 1, 1, 1, 0]]), 2)
    >>> prompts, completions, mask
    ([tensor([5, 6])], [tensor([7])], tensor([[ True, False]]))
    """
    start, real = input_ids.shape[1] - completion, attention_mask.bool()
    prompts = [ids[here] for ids, here in zip(input_ids[:, :start], real[:, :start])]
    completions = [ids[here] for ids, here in zip(input_ids[:, start:], real[:, start:])]
    return prompts, completions, real[:, start:]


def one_placeholder(ids: list[int], token: int) -> list[int]:
    """A prompt with one placeholder per image: vLLM repeats it itself, and TRL 1.16 does not undo the processor's.

    https://github.com/huggingface/trl/issues/6294

    >>> one_placeholder([1, 9, 9, 9, 2, 9, 9, 3], 9)
    [1, 9, 2, 9, 3]
    """
    return [id for id, before in zip(ids, [None, *ids]) if id != token or before != token]


def chunks(prefixes: list[Prefix], rows: int) -> Iterator[list[Prefix]]:
    """Prefixes in order, as many at a time as have at most `rows` rows together, but at least one.

    >>> counts = [2, 2, 5, 1]
    >>> parts = chunks([Prefix(None, None, None, list(range(count))) for count in counts], 4)
    >>> [[len(prefix.rows) for prefix in part] for part in parts]
    [[2, 2], [5], [1]]
    """
    chunk, count = [], 0
    for prefix in prefixes:
        if chunk and count + len(prefix.rows) > rows:
            yield chunk
            chunk, count = [], 0
        chunk.append(prefix)
        count += len(prefix.rows)
    yield chunk


def scatter(values: tuple[torch.Tensor, ...], rows: list[int], mask: torch.Tensor) -> torch.Tensor:
    """Packed values, row after row in the order of `rows`, as a table with 0 where the mask is False.

    >>> scatter((torch.tensor([1, 2]), torch.tensor([3])), [1, 0], torch.tensor([[True, False], [True, True]]))
    tensor([[3, 0],
            [1, 2]])
    """
    order, packed = torch.tensor(rows, device=mask.device), torch.cat(values)
    return packed.new_zeros(mask.shape).masked_scatter(mask[order], packed)[order.argsort()]


def whole_groups(batches: list[dict]) -> list[dict]:
    """The same rows in batches of the same size, with the rows of a prompt next to each other."""
    joined = {}
    for name, value in batches[0].items():
        values = [batch[name] for batch in batches]
        if torch.is_tensor(value):
            joined[name] = torch.cat(values) if value.ndim else value
        else:
            joined[name] = value if value is None else [row for rows in values for row in rows]
    pixels, grid, mask = map(joined.get, IMAGE_INPUTS)
    prompts = [ids[real.bool()] for ids, real in zip(joined["prompt_ids"], joined["prompt_mask"])]
    prefixes, _ = group_by_prefix(prompts, pixels, grid, joined.get("num_images"), pixel_mask=mask)
    order = [row for prefix in prefixes for row in prefix.rows]
    joined = split_pixel_values_by_grid(joined)
    for name, value in joined.items():
        if torch.is_tensor(value) and value.ndim:
            joined[name] = value[order]
        elif isinstance(value, list):
            joined[name] = [value[row] for row in order]
    return [unsplit_pixel_values_by_grid(one) for one in split_tensor_dict(joined, len(batches))]
