"""Log-probabilities of completions, with each shared prefix run once."""

import torch
from torch.autograd import Function
from torch.distributed.fsdp import FSDPModule

from rarl.models.patching import without_peft
from rarl.models.shared_prefix.layout import Prefix, packed_inputs


class _TokenScores(Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature):
        log_probs, entropies, hits, slopes = [], [], [], []
        rows = max(64, 2**19 // len(weight))
        for some, target in zip(hidden.split(rows), targets.split(rows)):
            scores = (some @ weight.t()).div_(temperature)
            scores = scores.log_softmax(-1)
            hits.append(scores.argmax(-1) == target)
            log_probs.append(scores.gather(-1, target[:, None])[:, 0])
            probs = scores.exp()
            entropies.append(-torch.linalg.vecdot(probs, scores))
            if ctx.needs_input_grad[0]:
                slopes.append(weight[target].sub_(probs @ weight).div_(temperature))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        entropies, hits = torch.cat(entropies), torch.cat(hits)
        ctx.mark_non_differentiable(entropies, hits)
        return torch.cat(log_probs), entropies, hits

    @staticmethod
    def backward(ctx, grad, *_):
        return ctx.saved_tensors[0] * grad[:, None], None, None, None


def token_scores(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability of each token under a frozen head, entropy (without gradient), and whether it is the top token.

    The gradient with respect to the hidden state, the target's weights less the expected weights, is computed in the
    forward pass, while the logits are in memory. The backward pass only scales it.

    hidden: (tokens, hidden size). weight: (vocabulary, hidden size). targets, and each result: (tokens,).
    """
    return _TokenScores.apply(hidden, weight, targets, temperature)


def packed_log_probs(
    model,
    network,
    prefixes: list[Prefix],
    suffixes: list[torch.Tensor],
    completions: list[torch.Tensor],
    temperature: float,
    entropy_has_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run each prefix once, and its rows' completions after it.

    Args:
        model: as the trainer calls it, wrapped or not, with TRL's fused head.
        network: the same model without wrappers, PEFT's included.
        prefixes: those of the rows to score.
        suffixes: the last token of each row's prompt, for all rows of the batch.
        completions: token ids without padding, for all rows of the batch.
        temperature: divides the logits.
        entropy_has_gradient: whether the loss depends on the entropies.

    Returns:
        Log-probabilities and, if the head gives them, entropies, each (completion tokens,), prefix after prefix.
    """
    if without_peft(model) is network and not entropy_has_gradient and frozen_head(network) is not None:
        return frozen_head_scores(network, prefixes, suffixes, completions, temperature)[:2]
    inputs, labels = _inputs_and_targets(network, prefixes, suffixes, completions)
    output = model(**inputs, shift_labels=labels[None], fused_lm_head=True)
    return output.log_probs[0], None if output.entropy is None else output.entropy[0]


def frozen_head(network) -> torch.Tensor | None:
    """The head's weight if `token_scores` can replace TRL's fused head, which has fused kernels for a GPU."""
    head = network.get_output_embeddings()
    if isinstance(head, FSDPModule) or hasattr(head.weight, "ds_id"):  # ZeRO stage 3
        return None  # whole only inside a forward pass of the wrapped model
    weight = head.weight
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    return weight if fits and not (weight.requires_grad or torch.is_autocast_enabled("cpu")) else None


def frozen_head_scores(network, prefixes, suffixes, completions, temperature: float) -> tuple[torch.Tensor, ...]:
    """As `token_scores`, of the completions' tokens. Arguments are those of `packed_log_probs`."""
    inputs, targets = _inputs_and_targets(network, prefixes, suffixes, completions)
    hidden = network.model(**inputs, use_cache=False).last_hidden_state[0]
    return token_scores(hidden, frozen_head(network), targets, temperature)


def _inputs_and_targets(network, prefixes, suffixes, completions) -> tuple[dict, torch.Tensor]:
    """The backbone's inputs, and the tokens that it has to predict.

    A row's own part is its prompt's last token, which predicts the completion's first one, and the completion without
    its last token, which predicts nothing.
    """
    parts = [torch.cat(row)[:-1] for row in zip(suffixes, completions)]
    targets = torch.cat([completions[row] for prefix in prefixes for row in prefix.rows])
    return packed_inputs(network.model, prefixes, parts), targets
