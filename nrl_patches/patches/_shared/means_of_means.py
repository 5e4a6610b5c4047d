"""Weigh a micro-batch by its tokens, where transformers' Trainer divides its mean loss by the number of micro-batches.

The Trainer does so for a model that takes no number of tokens. It counts none for it, so they are counted here, beside
what the Trainer returns: code of the user's that is handed a number divides by it, and the Trainer would divide again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from nrl_patches.patches._shared import loss_sources, token_counts, token_weights

if TYPE_CHECKING:
    import torch

TOTAL = "_nrl_patches_labels_of_update"
"""The attribute of a Trainer for the labels of all micro-batches of its present update that count, a scalar."""

STEPPING: ContextVar[Any] = ContextVar("STEPPING", default=None)
"""The Trainer whose ``training_step`` runs: what computes a loss elsewhere, such as evaluation, gets its mean."""


def concerns(trainer: Any) -> bool:
    """Tell whether a Trainer takes the mean of means of labels that can be counted.

    Args:
        trainer: The Trainer.

    Returns:
        The same on each rank.
    """
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    own = trainer.compute_loss_func is None and trainer.label_smoother is None
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None) is not None or getattr(parallel, "sp_enabled", False)
    # torch's DataParallel returns a loss for each GPU, and nobody knows the tokens of each.
    if trainer.args.gradient_accumulation_steps == 1 or trainer.args.n_gpu > 1 or scaled or not own:
        return False
    return not trainer.model_accepts_loss_kwargs and _is_meant(token_weights.innermost(trainer, trainer.model))


def count(trainer: Any, batches: list[Any]) -> None:
    """Count the labels of the micro-batches of an update.

    Args:
        trainer: The Trainer.
        batches: What ``Trainer.get_batch_samples`` collected.
    """
    import torch

    vars(trainer).pop(TOTAL, None)
    if not concerns(trainer):
        return
    model = token_weights.innermost(trainer, trainer.model)
    counts = [_labels_of(model, batch) for batch in batches]
    total = torch.zeros((), dtype=torch.long, device=trainer.args.device)
    for number in counts:
        total += 0 if number is None else number.to(total.device)
    # All ranks take part, whatever their batches are.
    total = trainer.accelerator.gather(total).sum() if _averages(trainer) else total
    if all(number is not None for number in counts):
        vars(trainer)[TOTAL] = total.clamp(min=1)


def weight_of(trainer: Any, model: Any, inputs: Any) -> torch.Tensor | None:
    """Return what to multiply a micro-batch's mean by, before the Trainer divides it.

    Args:
        trainer: The Trainer.
        model: The model that it calls.
        inputs: What it calls the model with.

    Returns:
        The share of the micro-batch in the labels of the update, on this rank or on all; None where nothing is weighed.
    """
    total = vars(trainer).get(TOTAL)
    if total is None or STEPPING.get() is not trainer or trainer.model_accepts_loss_kwargs:
        return None
    number = _labels_of(token_weights.innermost(trainer, model), inputs)
    steps = getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
    ranks = trainer.accelerator.num_processes if _averages(trainer) else 1
    return None if number is None else number.to(total.device) / total * (ranks * steps)


def _averages(trainer: Any) -> bool:
    """Whether the Trainer takes the mean over the tokens of all ranks, as torch's DDP takes that of the ranks."""
    asked: bool = trainer.args.average_tokens_across_devices
    return asked and trainer.args.world_size > 1


def _is_meant(model: Any) -> bool:
    """Whether transformers says of a model that it takes no number of labels; not where a user says so."""
    if "accepts_loss_kwargs" in vars(model) or not loss_sources.takes_mean(model):
        return False
    forward = token_counts.forward_of(model)
    if _leaves_padding_out(forward):
        return False
    says = next((c for c in type(model).__mro__ if "accepts_loss_kwargs" in vars(c)), None)
    if says is None:
        kinds = {p.kind for p in inspect.signature(forward).parameters.values()}
        return inspect.Parameter.VAR_KEYWORD not in kinds
    own = says.__module__.startswith(("transformers.", "transformers_modules."))
    return own and vars(says)["accepts_loss_kwargs"] is False and not loss_sources.is_wrong_about_itself(model)


@functools.cache
def _leaves_padding_out(forward: Callable[..., Any]) -> bool:
    """Whether the mask leaves labels out, as in pretraining of ELECTRA, which need not be -100 then."""
    return "labels[active_loss]" in inspect.getsource(forward)


def _labels_of(model: Any, inputs: Any) -> torch.Tensor | None:
    """Return how many labels a model takes the mean of, None if that is not of ``labels`` alone."""
    import torch

    if not hasattr(inputs, "keys") or not isinstance(inputs.get("labels"), torch.Tensor):
        return None
    if any("label" in name and name != "labels" for name in inputs):  # A second loss, of another number.
        return None
    labels = inputs["labels"]
    return (labels[..., 1:] if loss_sources.shifts_labels(model) else labels).ne(-100).sum()
