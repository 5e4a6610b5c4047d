"""Gradient accumulation adds up the losses of models that drop the number of tokens.

Problem: the Trainer takes a model whose `forward` has `**kwargs` to divide its loss by the tokens of all micro-batches,
    and divides by nothing itself. Many a `forward` has them, drops them, and returns the mean of what it is given.
Hit by: Mamba and FalconMamba up to 5.16.1; heads for classification from 4.54.0 on; BERT, T5, Bart, Whisper and others,
    436 classes of 5.24.0. With `gradient_accumulation_steps=n` loss and gradient are n times too large, on m ranks m
    times more, and a token of a short row weighs more than one of a long row. Nothing is said.
Fix: the loss of a micro-batch is weighed by its share in the tokens of the update, as the Trainer counts them.
Remove when: no class drops what it is handed.

A `forward` drops the number if all of its losses are transformers' own, without keyword arguments, or torch's means,
and nobody else gets the labels. Of models that have another function compute the loss, those that were measured are
repaired too: BLIP, DeBERTa's head for classification, DistilBERT, Flaubert, Pix2Struct, ProphetNet, Qwen2-Audio, XLM.
"""

import inspect
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import accumulation, means_elsewhere, token_counts, token_weights

patch = Patch(
    __name__,
    affected=("transformers>=4.47.1,<4.48.0", "transformers>=4.48.1,<=5.24.0"),
    upstream=("https://github.com/huggingface/transformers/issues/47688",),
    opt_out="NRL_DISABLE_ACCEPTS_LOSS_KWARGS_DROPPED_PATCH",
    relies_on=token_weights.RULES,
)


@patch.fix(
    "transformers.trainer:Trainer.get_batch_samples",
    guard=lambda get: mismatch(get, parameters="self epoch_iterator", attributes="next"),
)
def count_what_is_predicted(get_batch_samples: Callable[..., Any]) -> Callable[..., Any]:
    """Build a collection of batches whose labels are counted as such a model takes the mean of them.

    Args:
        get_batch_samples: The Trainer's.
    """
    signature = inspect.signature(get_batch_samples)

    def get_counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = token_weights.innermost(self, self.model)
        if not self.model_accepts_loss_kwargs or not means_elsewhere.drops_number(model):
            return get_batch_samples(self, *args, **kwargs)
        if hasattr(self, "_loss_shifts_labels"):  # Older releases count first labels, too.
            self._loss_shifts_labels = means_elsewhere.shifts_labels(model)
        elif means_elsewhere.shifts_labels(model):
            call = signature.bind(self, *args, **kwargs)
            call.arguments["epoch_iterator"] = map(token_counts.without_first_label, call.arguments["epoch_iterator"])
            return get_batch_samples(*call.args, **call.kwargs)
        return get_batch_samples(self, *args, **kwargs)

    return get_counted


@patch.fix("transformers.trainer:Trainer.compute_loss", guard=token_weights.guard)
def weigh_loss(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loss that is weighed where it is a mean that nobody divides.

    Args:
        compute_loss: The Trainer's.
    """
    signature = inspect.signature(compute_loss)

    def compute_weighed(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not means_elsewhere.drops_number(token_weights.innermost(self, model)):
            return compute_loss(self, model, *args, **kwargs)
        given = signature.bind(self, model, *args, **kwargs).arguments
        weight = token_weights.weight_of(self, given["inputs"], given.get("num_items_in_batch"))
        return token_weights.weighed(compute_loss(self, model, *args, **kwargs), weight)

    return compute_weighed


def tiny_mamba() -> Any:
    """Return a Mamba with random weights, which shifts labels."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=16, state_size=4, num_hidden_layers=1))


def tiny_classifier() -> Any:
    """Return a Llama with random weights that classifies tokens."""
    from transformers import LlamaConfig, LlamaForTokenClassification

    return LlamaForTokenClassification(LlamaConfig(**accumulation.TEXT, num_labels=16, classifier_dropout=0.0))


@patch.probe
def losses_are_added_up() -> Observation:
    """Train a Mamba and a classifier for one update, in one batch and in four; compare with a Llama for text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def llama() -> Any:
        return LlamaForCausalLM(LlamaConfig(**accumulation.TEXT))

    builds = {"llama": llama, "mamba": tiny_mamba, "classifier": tiny_classifier}
    taken = {name: build for name, build in builds.items() if _takes_keywords(build())}
    losses = {name: token_weights.losses(build) for name, build in taken.items()}
    ratios = {name: round(many / one, 4) for name, (one, many) in losses.items()}
    # In 4.48.0 the Trainer adds up the losses of all models, which no model can be blamed for.
    usual = ratios["llama"] > token_weights.ADDED_UP
    return Observation(not usual and max(ratios.values()) > token_weights.ADDED_UP, ratios)


def _takes_keywords(model: Any) -> bool:
    return inspect.Parameter.VAR_KEYWORD in {p.kind for p in inspect.signature(model.forward).parameters.values()}
