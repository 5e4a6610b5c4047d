"""One update of a tiny model by transformers' own Trainer: what the probes of gradient accumulation look at."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches.patches._shared.quiet import quiet

if TYPE_CHECKING:
    import torch

LENGTHS = (3, 17, 6, 11)
"""Of the rows: of one length, the mean of the rows' means would be the mean of all."""

TEXT = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The configuration of a text model for the rows."""


def update(model: torch.nn.Module, *, accumulated: bool) -> tuple[float, torch.Tensor]:
    """Train a model for one update, as one batch of all rows or accumulated row by row.

    Args:
        model: The model, on the CPU; its weights are changed.
        accumulated: Whether each row is a batch of its own.

    Returns:
        The loss that the Trainer reports, and the gradient of all weights in one dimension.
    """
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    batch, steps = (1, len(LENGTHS)) if accumulated else (len(LENGTHS), 1)
    before = [weight.detach().clone() for weight in model.parameters()]
    with quiet(), tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, collate, rows())
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    gaps = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    return loss, torch.cat([gap.flatten() for gap in gaps])


def loss_by_tokens(model: Any) -> float:
    """Return the mean loss of all tokens that are predicted, of rows that are run alone.

    Args:
        model: The model, on the CPU.
    """
    total = sum(model(**collate([row])).loss.item() * (len(row) - 1) for row in rows())
    return float(total) / sum(length - 1 for length in LENGTHS)


def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a batch of rows of different lengths, padded on the right.

    Args:
        rows: The token ids of each, in one dimension.

    Returns:
        ``input_ids``, ``labels`` and ``attention_mask``, and types of zeros for models that ask for them.
    """
    import torch

    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    types = {name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids")}
    return {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100), "attention_mask": (ids != 0).long()} | types


def seeded(build: Callable[[], Any]) -> Any:
    """Return the model that a function builds, with the same random weights each time.

    Args:
        build: The function.
    """
    import torch

    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def rows() -> list[torch.Tensor]:
    """Make the rows, of ``LENGTHS``.

    Returns:
        Their token ids, each in one dimension; no row needs a random number.
    """
    import torch

    return [torch.arange(length) * 7 % 13 + 3 for length in LENGTHS]
