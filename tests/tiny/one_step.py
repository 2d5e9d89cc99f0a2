"""What tests of the RL step share: its first batch, an adapter that has moved, and one completion by itself."""

import pytest
import torch


class Caught(Exception):
    """Carries the batch out of the trainer."""


def first_batch(trainer):
    """What the trainer computes its first loss of."""
    caught = {}

    def stop(model, inputs, *args, **kwargs):
        caught.update(inputs)
        raise Caught

    compute, trainer.compute_loss = trainer.compute_loss, stop
    with pytest.raises(Caught):
        trainer.train()
    trainer.compute_loss = compute
    return caught


def move_adapter(model):
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def one_row(model, batch, row):
    """Log-probabilities and entropies [tokens] of one completion: its prompt and itself, without padding."""
    prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
    completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
    patches = batch["image_grid_thw"].prod(-1).tolist()
    start = sum(patches[:row])
    ids = torch.cat([prompt, completion])[None]
    logits = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        pixel_values=batch["pixel_values"][start : start + patches[row]],
        image_grid_thw=batch["image_grid_thw"][row : row + 1],
    ).logits[0, len(prompt) - 1 : -1]
    all_log_probs = torch.log_softmax(logits, -1)
    entropy = -(all_log_probs.exp() * all_log_probs).sum(-1)
    return all_log_probs.gather(1, completion[:, None])[:, 0], entropy
