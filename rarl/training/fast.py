"""A GRPO step that does each piece of work once: a mixin over TRL's GRPOTrainer.

Stock TRL runs the whole prompt, image tokens included, once per completion: in generation, in the reference pass and
in the policy pass. Here a prompt is run once per group of completions, in each of them. The mathematics is the same
(`tests/tiny/test_fast.py`): log-probabilities, gradients, and the sampled tokens for the same random numbers. With
dropout in the adapter (`lora.dropout`) a group shares its prompt's noise, and sampling has none.
Where something is asked for that this does not know, stock TRL does it, and the run says so once.
"""

from functools import partial

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import (
    FusedCausalLMOutput,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from rarl.models.decode import decode, unknown_settings
from rarl.models.layers import token_scores, without_peft
from rarl.models.shared_prompt import Prompt, packed_inputs, prepare_layers, shared_prompts

#: Losses that are sums over rows, so that it does not matter in which pass of a step a row is.
LOSSES_OF_ROWS = frozenset({"grpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"})


class SharedPrompt:
    """Mixin for `GRPOTrainer`."""

    _said = frozenset()

    def _plain(self, what: str, reason: str) -> bool:
        """Say once why stock TRL does `what`."""
        if (what, reason) not in self._said:
            self._said |= {(what, reason)}
            tqdm.write(f"{what}: {reason}; stock TRL does it, slower")
        return True

    def _unfit(self, what: str, model, shortest: int) -> bool:
        """Whether the model, or a batch whose shortest prompt has `shortest` tokens, does not support shared prompts."""
        reason = prepare_layers(without_peft(model))
        if reason is None and shortest < 2:
            reason = "a prompt of one token"
        return reason is not None and self._plain(what, reason)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        """Sample one completion a row. Arguments and result are TRL's: lists of token ids, end token included."""
        if self._other_generation(prompt_ids, multimodal_fields, kwargs):
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        device = self.accelerator.device
        pictures = {
            name: torch.as_tensor(np.asarray(multimodal_fields[name]), device=device)
            for name in ("pixel_values", "image_grid_thw")
            if name in multimodal_fields
        }
        prompts, rests = shared_prompts(
            [torch.tensor(ids, device=device) for ids in prompt_ids],
            pictures.get("pixel_values"),
            pictures.get("image_grid_thw"),
            [len(shown or []) for shown in images] if images else None,
        )
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self.accelerator.autocast(),
        ):  # fmt: skip
            training = model.training
            model.eval()  # no dropout: what is sampled is the policy's
            try:
                return decode(without_peft(model), prompts, rests, self.generation_config), None
            finally:
                model.train(training)

    def _other_generation(self, prompt_ids: list, fields: dict, kwargs: dict) -> bool:
        what = "generation"
        unknown = unknown_settings(self.generation_kwargs) if not self.use_vllm else ["vLLM"]
        unknown += fields.keys() - {"pixel_values", "image_grid_thw", "mm_token_type_ids"}
        unknown += [name for name, value in kwargs.items() if value]
        if self.use_transformers_continuous_batching:
            unknown.append("continuous batching")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            unknown.append("weights shared among processes")
        if unknown:
            return self._plain(what, ", ".join(unknown))
        network = self.accelerator.unwrap_model(self.model_wrapped)
        return self._unfit(what, network, min(map(len, prompt_ids)))

    def _prepare_inputs(self, generation_batch):
        """Bring the rows of a prompt, which TRL shuffles, into one pass where the loss does not depend on the pass."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        passes = self._buffered_inputs
        if self.model.training and passes is not before and len(passes) > 1:
            reason = self._bound_to_passes(inputs)
            if reason is None:
                self._buffered_inputs = whole_groups(passes)
                inputs = self._buffered_inputs[self._step % len(passes)]
            else:
                self._plain("order of rows", reason)
        return inputs

    def _bound_to_passes(self, inputs: dict) -> str | None:
        """Why a step's loss would be another one if its rows were in other passes, or None."""
        args = self.args
        if self.loss_type not in LOSSES_OF_ROWS:
            return f"loss_type {self.loss_type} is normalised by the tokens of a pass"
        if self.top_entropy_quantile < 1.0:
            return "top_entropy_quantile is taken of a pass"
        if self._entropy_in_loss():
            return "the entropy bonus is the mean over the tokens of a pass"
        if args.steps_per_generation != args.gradient_accumulation_steps:
            return "steps_per_generation differs from gradient_accumulation_steps"
        if inputs.get("pixel_values") is not None and inputs.get("image_grid_thw") is None:
            return "a model without image_grid_thw"
        return None

    def _entropy_in_loss(self) -> bool:
        return bool(self.entropy_coef or self.use_adaptive_entropy)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False,
        compute_aux_loss=False, pixel_values=None, image_grid_thw=None, num_images=None,
        mm_token_type_ids=None, **others,
    ):  # fmt: skip
        """Log-probabilities (rows, completion tokens) of the policy or the reference, and entropies when asked.

        Arguments and result are TRL's; what is padding is 0. At most `batch_size` rows, in whole groups, a pass.
        """
        unknown = [name for name, value in others.items() if value is not None]
        unknown += ["an auxiliary loss"] if compute_aux_loss else []
        what = "log-probabilities"
        network = self.accelerator.unwrap_model(model)
        prompt_ids, completion_ids = input_ids.split([input_ids.shape[1] - logits_to_keep, logits_to_keep], 1)
        prompt_mask, mask = attention_mask.bool().split([prompt_ids.shape[1], completion_ids.shape[1]], 1)
        if (
            (unknown and self._plain(what, ", ".join(unknown)))
            or self._unfit(what, network, int(prompt_mask.sum(1).min()))
            # No token to score: all are truncated, under mask_truncated_completions.
            or not mask.any()
        ):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size,
                compute_entropy=compute_entropy, compute_aux_loss=compute_aux_loss, pixel_values=pixel_values,
                image_grid_thw=image_grid_thw, num_images=num_images, mm_token_type_ids=mm_token_type_ids, **others,
            )  # fmt: skip
        prompts, rests = shared_prompts(
            [ids[real] for ids, real in zip(prompt_ids, prompt_mask)], pixel_values, image_grid_thw, num_images
        )
        completions = [ids[real] for ids, real in zip(completion_ids, mask)]
        bare = without_peft(network)
        scores, rows = [], []
        for some in _passes(prompts, batch_size or len(input_ids)):
            own = [row for prompt in some for row in prompt.rows]
            rows += own
            if not any(len(completions[row]) for row in own):
                continue
            with self.accelerator.autocast():
                scores.append(
                    packed_scores(
                        model, bare, some, rests, completions, self.temperature, self._entropy_in_loss()
                    )
                )  # fmt: skip

        order = torch.tensor(rows, device=mask.device)

        def table(values):
            """From one row of tokens back to TRL's rows."""
            packed = torch.cat(values)
            padded = packed.new_zeros(mask.shape).masked_scatter(mask[order], packed)
            return padded[order.argsort()]

        log_probs = table([one for one, _ in scores])
        entropies = table([one for _, one in scores]) if compute_entropy else None
        return log_probs, entropies, None


class CompletionsOnly:
    """Mixin for `SFTTrainer`: padding is not run, and the last layer and the head run for the completions only.

    The same mathematics as TRL's (`tests/tiny/test_fast.py`), which a model, head or batch that does not fit falls back
    to.
    """

    def compute_loss(self, model, inputs, *args, **kwargs):
        network, completion = without_peft(model), inputs["labels"] != -100
        fits = (
            network is without_peft(self.accelerator.unwrap_model(model))
            and len(inputs.get("image_grid_thw", ())) == len(inputs["input_ids"])
            and prepare_layers(network) is None
            and _frozen_head(network) is not None
            and completion.any()
            and (inputs["attention_mask"].bool() & ~completion).sum(1).min() > 1
        )
        return super().compute_loss(partial(_completion_scores, network) if fits else model, inputs, *args, **kwargs)


def _completion_scores(
    network, input_ids, attention_mask, labels, pixel_values, image_grid_thw, **_
) -> FusedCausalLMOutput:
    """What TRL's fused head returns, each (completion tokens of all rows,).

    Args:
        input_ids, attention_mask, labels: (rows, tokens); a row's labels are -100 before its completion.
        pixel_values, image_grid_thw: of one image a row.
    """
    real, completion = attention_mask.bool(), labels != -100
    prompts, rests = shared_prompts(
        [ids[here] for ids, here in zip(input_ids, real & ~completion)],
        pixel_values,
        image_grid_thw,
        [1] * len(input_ids),
    )
    completions = [ids[here] for ids, here in zip(input_ids, completion)]
    inputs, targets = _inputs_and_targets(network, prompts, rests, completions)
    log_probs, entropy, is_top1 = _frozen_head_scores(network, inputs, targets, 1.0)
    mask = torch.ones_like(is_top1)
    return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)


def _inputs_and_targets(network, prompts, rests, completions) -> tuple[dict, torch.Tensor]:
    """The backbone's inputs for prompts and their completions, and the tokens that it has to predict.

    A row's own part is its prompt's last token, which predicts the completion's first one, and the completion without
    its last token, which predicts nothing. Arguments are those of `packed_scores`.
    """
    parts = [torch.cat(row)[:-1] for row in zip(rests, completions)]
    targets = torch.cat([completions[row] for prompt in prompts for row in prompt.rows])
    return packed_inputs(network.model, prompts, parts), targets


def packed_scores(
    model,
    network,
    prompts: list[Prompt],
    rests: list[torch.Tensor],
    completions: list[torch.Tensor],
    temperature: float,
    entropy_has_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run each prompt once and its completions against it.

    Args:
        model: as the trainer calls it, wrapped or not, with TRL's fused head.
        network: the same without wrappers and without PEFT's.
        rests: of each of the batch's rows, the prompt's last token.
        completions: token ids of each of the batch's rows, without padding.
        temperature: of TRL's fused head.
        entropy_has_gradient: whether the loss depends on the entropies.

    Returns:
        Log-probabilities and, where the head gives them, entropies, both (completion tokens,), prompt after prompt.
    """
    inputs, labels = _inputs_and_targets(network, prompts, rests, completions)
    bare = without_peft(model) is network
    if bare and not entropy_has_gradient and _frozen_head(network) is not None:
        return _frozen_head_scores(network, inputs, labels, temperature)[:2]
    output = model(**inputs, shift_labels=labels[None], fused_lm_head=True)
    return output.log_probs[0], None if output.entropy is None else output.entropy[0]


def _frozen_head(network) -> torch.Tensor | None:
    """The head's weight if `token_scores` can stand for TRL's fused head, which has fused kernels for a GPU."""
    head = network.get_output_embeddings()
    if isinstance(head, FSDPModule):  # whole only inside a forward pass of the model as wrapped
        return None
    weight = head.weight
    fit = weight.device.type == "cpu" and weight.dtype == torch.float32
    return weight if fit and not (weight.requires_grad or torch.is_autocast_enabled("cpu")) else None


def _frozen_head_scores(network, inputs, targets, temperature) -> tuple[torch.Tensor, ...]:
    """What `token_scores` returns of the backbone's output for `inputs`."""
    hidden = network.model(**inputs, use_cache=False).last_hidden_state[0]
    return token_scores(hidden, _frozen_head(network), targets, temperature)


def whole_groups(batches: list[dict]) -> list[dict]:
    """The same rows in batches of the same size, the rows of a prompt beside each other."""
    split = [split_pixel_values_by_grid(batch) for batch in batches]
    joined = {}
    for name, value in split[0].items():
        values = [batch[name] for batch in split]
        if torch.is_tensor(value):
            joined[name] = torch.cat(values) if value.ndim else value
        else:
            joined[name] = value if value is None else [row for rows in values for row in rows]
    pixels, grid = joined.get("pixel_values"), joined.get("image_grid_thw")
    prompts, _ = shared_prompts(
        [ids[real.bool()] for ids, real in zip(joined["prompt_ids"], joined["prompt_mask"])],
        None if pixels is None else torch.cat(pixels),
        None if grid is None else torch.cat(grid),
        joined.get("num_images"),
    )
    order = [row for prompt in prompts for row in prompt.rows]
    for name, value in joined.items():
        if torch.is_tensor(value) and value.ndim:
            joined[name] = value[order]
        elif isinstance(value, list):
            joined[name] = [value[row] for row in order]
    return [unsplit_pixel_values_by_grid(one) for one in split_tensor_dict(joined, len(batches))]


def _passes(prompts: list[Prompt], rows: int):
    """Prompts in order, so many at a time that their completions are at most `rows`; one at least."""
    some, count = [], 0
    for prompt in prompts:
        if some and count + len(prompt.rows) > rows:
            yield some
            some, count = [], 0
        some.append(prompt)
        count += len(prompt.rows)
    yield some
