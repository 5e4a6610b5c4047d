"""Let transformers' Trainer divide by the number of batches where it finds no labels that it could count."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

from nrl_patches import mismatch
from nrl_patches.patches._shared.accumulation import LENGTHS, TEXT, collate

if TYPE_CHECKING:
    import torch


def guard(training_step: Any) -> str | None:
    """Return what is unlike the ``Trainer.training_step`` that :func:`divide_by_batches` was written for.

    Args:
        training_step: The one of this release.

    Returns:
        A phrase, None if it is the one.
    """
    return mismatch(training_step, parameters="self model inputs num_items_in_batch")


def divide_by_batches(training_step: Callable[..., Any]) -> Callable[..., Any]:
    """Build a step of training whose loss is the model's own mean, unless somebody has a number to divide by.

    Args:
        training_step: The Trainer's. From 4.53.0 on it does so itself.
    """
    signature = inspect.signature(training_step)

    def step_divided(self: Any, *args: Any, **kwargs: Any) -> Any:
        number = signature.bind(self, *args, **kwargs).arguments.get("num_items_in_batch")
        if number is not None or not self.model_accepts_loss_kwargs or self.compute_loss_func is not None:
            return training_step(self, *args, **kwargs)
        with mock.patch.object(self, "model_accepts_loss_kwargs", new=False):
            return training_step(self, *args, **kwargs)

    return step_divided


def tiny_answerer() -> Any:
    """Return a Llama with random weights that finds answers in a text."""
    from transformers import LlamaConfig, LlamaForQuestionAnswering

    return LlamaForQuestionAnswering(LlamaConfig(**TEXT))


def with_answers(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a batch of rows, each with the place of an answer, and without labels.

    Args:
        rows: The token ids of each, in one dimension.
    """
    import torch

    # The odds of an answer are those of all places, padding included: of one length, rows have as many in any batch.
    ids = collate(rows)["input_ids"][:, : min(LENGTHS)]
    return {
        "input_ids": ids,
        "start_positions": torch.zeros(len(ids)).long(),
        "end_positions": torch.ones(len(ids)).long(),
    }
