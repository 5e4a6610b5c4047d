"""Let transformers' Trainer divide the loss of accumulated batches by their tokens, where it asks the model wrongly.

The Trainer asks `model_accepts_loss_kwargs` in three places: when it collects the batches of an update and counts
their labels, when it hands the number to the model, and when it would divide by the number of batches instead. All are
below `get_batch_samples` and `training_step`, so the answer is another one there and nowhere else: evaluation, training
without accumulation, and whatever reads the attribute, find what they found before.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from nrl_patches import Edit, Observation, Patch, mismatch
from nrl_patches.patches._shared import accumulation, token_weights

TOLERANCE = 1e-4
"""Of a loss of two to three; the order of summation changes 1e-6 of it."""

Decision = Callable[[Any], bool]
"""Whether a model, unwrapped, divides its loss by ``num_items_in_batch``, which the Trainer does not know."""


def let_trainer_count(patch: Patch, decide: Decision) -> None:
    """Add the fixes of the Trainer to a patch.

    Args:
        patch: The patch.
        decide: For which models.
    """
    patch.fix(
        "transformers.trainer:Trainer.get_batch_samples",
        guard=lambda get: mismatch(get, parameters="self epoch_iterator", attributes="next"),
    )(_collecting(decide))
    patch.fix(
        "transformers.trainer:Trainer.training_step",
        guard=lambda step: mismatch(step, parameters="self model inputs", attributes="model_accepts_loss_kwargs"),
    )(_training(decide))


def forward_of(model: Any) -> Any:
    """Return the ``forward`` of a model's class, None if the model itself has another one.

    Args:
        model: The model; what accelerate wraps around its ``forward``, for autocast or hooks, is none.
    """
    own = vars(model)
    inner = own.get("_original_forward", own.get("_old_forward", own.get("forward")))
    forward = getattr(type(model), "forward", None)
    return forward if inner is None or getattr(inner, "__func__", None) is forward else None


def runs(target: str) -> Decision:
    """Return the decision for models whose ``forward`` is that at a target, with the edits that it has.

    Args:
        target: ``module:Class.forward``. Asking does not import it.
    """
    name, _, qualname = target.partition(":")

    def decide(model: Any) -> bool:
        module = sys.modules.get(name)
        owner = getattr(module, qualname.partition(".")[0], None)
        return owner is not None and forward_of(model) is owner.forward

    return decide


def divides_by_tokens(keywords: str) -> tuple[Edit, Edit]:
    """Return the edits of a ``forward`` that computes the cross-entropy by itself.

    Args:
        keywords: What it calls its further keyword arguments.
    """
    return (
        Edit(
            old="loss_fct = nn.CrossEntropyLoss()",
            new=f"""\
num_items_in_batch = {keywords}.get("num_items_in_batch") if self.training else None
loss_fct = nn.CrossEntropyLoss(reduction="mean" if num_items_in_batch is None else "sum")
""",
        ),
        Edit(
            old="loss = loss_fct(flat_logits, flat_labels)",
            new="""\
loss = loss_fct(flat_logits, flat_labels)
if num_items_in_batch is not None:
    loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device)
""",
        ),
    )


def losses(name: str, build: Callable[[], Any], *, added_up: bool | None = None) -> Observation:
    """Train a model for one update of accumulated batches, and compare the loss with the mean over all tokens.

    Args:
        name: Its class in transformers; a release that has none has no defect of it.
        build: Builds it.
        added_up: Whether the defect is that the losses of the batches are added up, as where the Trainer takes a model
            to divide that doesn't; False if it is that their mean is taken, None if it may be either.

    Returns:
        The defect is present if the two are further apart than rounding; the evidence has both.
    """
    import transformers

    if not hasattr(transformers, name):
        return Observation(False, {"absent": name})
    by_tokens = accumulation.loss_by_tokens(accumulation.seeded(build))
    seen, _ = accumulation.update(accumulation.seeded(build), accumulated=True)
    present = abs(seen - by_tokens) > TOLERANCE and added_up in {None, seen > 2 * by_tokens}
    return Observation(present, {"by_tokens": round(by_tokens, 4), "accumulated": round(seen, 4)})


def without_first_label(batch: Any) -> Any:
    """Mask the labels that no token predicts, which many releases count, in a batch.

    Args:
        batch: The batch, which is changed.

    Returns:
        The batch.
    """
    if isinstance(batch, MutableMapping) and "labels" in batch and "shift_labels" not in batch:
        labels = batch["labels"].clone()
        labels[..., 0] = -100
        batch["labels"] = labels
    return batch


def _collecting(decide: Decision) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the build of a fix of ``Trainer.get_batch_samples``, which then counts the labels.

    Args:
        decide: For which models.
    """

    def build(get_batch_samples: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(get_batch_samples)

        def get_counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _counting(self, decide) as counts:
                if not counts:
                    return get_batch_samples(self, *args, **kwargs)
                call = signature.bind(self, *args, **kwargs)
                call.arguments["epoch_iterator"] = map(without_first_label, call.arguments["epoch_iterator"])
                return get_batch_samples(*call.args, **call.kwargs)

        return get_counted

    return build


def _training(decide: Decision) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the build of a fix of ``Trainer.training_step``, which then hands the number of labels to the model.

    Args:
        decide: For which models.
    """

    def build(training_step: Callable[..., Any]) -> Callable[..., Any]:
        def step_counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _counting(self, decide):
                return training_step(self, *args, **kwargs)

        return step_counted

    return build


@contextlib.contextmanager
def _counting(trainer: Any, decide: Decision) -> Iterator[bool]:
    """Let a trainer count if it accumulates, and only then; the value is whether it does for this reason."""
    accumulates, said = trainer.args.gradient_accumulation_steps > 1, trainer.model_accepts_loss_kwargs
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    # Sequence parallelism counts for itself, and denies the attribute for that.
    spared = getattr(parallel, "sp_enabled", False) or not (accumulates or said)
    if spared or not decide(token_weights.innermost(trainer, trainer.model)):
        yield False
        return
    trainer.model_accepts_loss_kwargs = accumulates
    try:
        yield accumulates
    finally:
        trainer.model_accepts_loss_kwargs = said
