"""How far packed rows are from the same sequences alone: the gradients, as ``leak`` has it of the logits."""

import torch

from nrl_patches.patches._shared.packing import leak

__all__ = ["gradient_gap", "leak"]


def summed_loss(model, tokens, positions, **how):
    """Add up the cross-entropy of all tokens that continue a sequence, in float32."""
    logits = model(input_ids=tokens, position_ids=positions, use_cache=False, **how).logits[:, :-1].float()
    labels = tokens.masked_fill(positions == 0, -100)[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


def gradients(model, losses):
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: weight.grad.float().clone() for name, weight in model.named_parameters() if weight.grad is not None}


def gradient_gap(model, lengths, *, ones=False, **how):
    """Return the largest relative distance between the gradient of packed sequences and that of each alone, added up.

    What is less than a thousandth of the largest gradient, such as that of a router with one expert to choose, which is
    nothing but rounding, is held against that.

    Args:
        model: A causal language model.
        lengths: How long the sequences are.
        ones: Whether the packed forward is given a mask of ones.
        how: Its further arguments.

    Returns:
        The distance, and the name of the parameter.
    """
    tokens = 3 + torch.arange(sum(lengths))[None] % (model.config.vocab_size - 3)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    if ones:
        how["attention_mask"] = torch.ones_like(tokens)
    alone = zip(tokens.split(lengths, 1), positions.split(lengths, 1), strict=True)
    # One token alone continues nothing: its gradient is none.
    expected = gradients(model, (summed_loss(model, *part) for part in alone if part[0].shape[1] > 1))
    found = gradients(model, [summed_loss(model, tokens, positions, **how)])
    least = max(float(grad.norm()) for grad in expected.values()) / 1000
    gaps = {
        name: float((found[name] - grad).norm()) / max(float(grad.norm()), least) for name, grad in expected.items()
    }
    worst = max(gaps, key=gaps.get)
    return gaps[worst], worst
