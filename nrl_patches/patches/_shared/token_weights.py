"""Weigh what a micro-batch adds to an update by its tokens, where transformers' Trainer adds up means.

The Trainer hands the number of tokens of an update to a model that it takes to divide by it, and divides by nothing
itself. What such a model returns without dividing is a mean of the micro-batch, and means are added up: over
micro-batches, and over ranks, whose number the Trainer multiplies by. Weighed by the share that the micro-batch has in
the tokens of the update, they make the mean over all tokens again, whatever the number of micro-batches and ranks is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

from nrl_patches import mismatch
from nrl_patches.patches._shared import accumulation
from nrl_patches.patches._shared.wrapped import inside

if TYPE_CHECKING:
    import torch

RULES = ("transformers.trainer:Trainer.training_step", "transformers.trainer:Trainer._get_num_items_in_batch")
"""Where the Trainer says which losses it divides, and what it counts."""

ADDED_UP = 2
"""A ratio above it, of four micro-batches to one batch, is that of a sum, and one below that of a mean."""


def guard(compute_loss: Any) -> str | None:
    """Return what is unlike the ``Trainer.compute_loss`` that its wrappers were written for.

    Args:
        compute_loss: The one of this release.

    Returns:
        A phrase, None if it is the one.
    """
    parameters = "self model inputs return_outputs num_items_in_batch"
    return mismatch(compute_loss, parameters=parameters, attributes="model_accepts_loss_kwargs")


def weight_of(trainer: Any, inputs: Any, number: Any) -> torch.Tensor | None:
    """Return the share of a micro-batch in the tokens that the Trainer has counted for an update.

    Args:
        trainer: The Trainer.
        inputs: What it calls the model with.
        number: The ``num_items_in_batch`` that it counted, of all ranks if it averages over them.

    Returns:
        None where the loss is not the model's own, or is divided by the Trainer.
    """
    import torch

    own = getattr(trainer, "compute_loss_func", None) is None and trainer.label_smoother is None
    divided = getattr(trainer, "loss_is_scaled_for_ga", None) is not None or not trainer.model_accepts_loss_kwargs
    # torch's DataParallel returns a loss for each GPU, and nobody knows the tokens of each.
    if number is None or not own or divided or trainer.args.n_gpu > 1:
        return None
    labels = _counted(trainer, inputs)
    if not isinstance(labels, torch.Tensor):
        return None
    total = number.to(labels.device) if isinstance(number, torch.Tensor) else number
    return labels.ne(-100).sum().float() / total


def weighed(found: Any, weight: torch.Tensor | None) -> Any:
    """Return what ``Trainer.compute_loss`` has found, with its loss multiplied by a weight.

    Args:
        found: The loss, or a tuple that begins with it.
        weight: The weight, on any device; None to leave the loss as it is.
    """
    if weight is None:
        return found
    if isinstance(found, tuple):
        loss, *others = found
        return (loss * weight.to(loss.device), *others)
    return found * weight.to(found.device)


def innermost(trainer: Any, model: Any) -> Any:
    """Return what is trained, without what accelerate, a compiler, FSDP and PEFT have put around it.

    Args:
        trainer: The Trainer.
        model: The model that it calls.
    """
    # accelerate's `unwrap_model` takes DDP out of what it has compiled, for good.
    inner = inside(trainer.model if model is trainer.model_wrapped else model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def losses(build: Callable[[], Any], collate: Callable[..., Any] | None = None) -> tuple[float, float]:
    """Train a model for one update, and return the losses that the Trainer reports.

    Args:
        build: Builds the model.
        collate: Makes a batch of rows; by default one of token ids, labels and a mask.

    Returns:
        That of one large batch, and that of accumulated ones.
    """
    with mock.patch.object(accumulation, "collate", collate or _without_types(accumulation.collate)):
        one, many = (
            accumulation.update(accumulation.seeded(build), accumulated=accumulated)[0] for accumulated in (False, True)
        )
    return one, many


def _without_types(collate: Callable[..., Any]) -> Callable[..., Any]:
    """Leave out the types of tokens, which models of old releases do not take."""
    return lambda rows: {name: value for name, value in collate(rows).items() if not name.endswith("token_type_ids")}


def _counted(trainer: Any, inputs: Any) -> Any:
    """Return the labels that the Trainer of this release counts."""
    shifts = getattr(trainer, "_loss_shifts_labels", None)
    if shifts is not None and "shift_labels" in inputs:
        return inputs["shift_labels"]
    labels = inputs.get("labels") if hasattr(inputs, "get") else None
    return labels[..., 1:] if shifts and labels is not None else labels
