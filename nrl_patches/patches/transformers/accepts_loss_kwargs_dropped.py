"""Gradient accumulation adds up the losses of models that drop the number of tokens.

Problem: the Trainer takes a model whose `forward` has `**kwargs` to divide its loss by the tokens of all micro-batches,
    and divides by nothing itself. Many a `forward` has them, drops them, and returns the mean of what it is given.
Hit by: Mamba and FalconMamba up to 5.16.1; heads for classification from 4.54.0 on; BERT, T5, Bart, Whisper and
    others, some 480 classes of 5.24.0. With `gradient_accumulation_steps=n` loss and gradient are n times too large, on
    m ranks m times more, and a token of a short row weighs more than one of a long row. Nothing is said.
Fix: the loss of a micro-batch is weighed by its share in the tokens of the update, as the Trainer counts them.
Remove when: no class drops what it is handed.

A `forward` drops the number if all of its losses are transformers' own, without keyword arguments, or torch's means,
and nobody else gets the labels. Where another function or module takes the mean, nobody can tell in general; what was
measured is listed in `_shared/means_elsewhere.py`: BLIP, BLIP-2, InstructBLIP, DeBERTa, DistilBERT, Flaubert, LUKE,
LXMERT, MusicGen, Pix2Struct, ProphetNet, Qwen2-Audio, ViLT, VisualBERT and XLM, Gemma 3's and Cohere Compass's head for
classification, those for speakers and for segmentation, and classifiers such as ViT and Zamba2 for regression.

The mean of CTC, of Wav2Vec2 and its kin, is one of rows: the Trainer takes that of the batches, as it does of a model
that takes no number. So it does where it finds no labels that it can count, such as those of answers, before 4.53.0.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import accumulation, means_elsewhere, token_counts, token_weights, uncounted

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
    import torch

    signature = inspect.signature(compute_loss)

    def compute_weighed(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        inner = token_weights.innermost(self, model)
        given = signature.bind(self, model, *args, **kwargs).arguments
        weigh = partial(token_weights.weight_of, self, given["inputs"], given.get("num_items_in_batch"))
        if inner.training and means_elsewhere.takes_mean_of_rows(inner) and weigh() is not None:
            steps = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
            # The Trainer multiplies by the ranks what it takes to be divided by the labels of all of them.
            with mock.patch.object(self, "model_accepts_loss_kwargs", new=False):
                return token_weights.weighed(compute_loss(self, model, *args, **kwargs), torch.tensor(1 / steps))
        found = compute_loss(self, model, *args, **kwargs)
        return token_weights.weighed(found, weigh()) if means_elsewhere.drops_number(inner) else found

    return compute_weighed


patch.fix("transformers.trainer:Trainer.training_step", guard=uncounted.guard)(uncounted.divide_by_batches)


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
    """Train a Mamba, a classifier and who finds answers, in one batch and in four; compare with a Llama for text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def llama() -> Any:
        return LlamaForCausalLM(LlamaConfig(**accumulation.TEXT))

    builds = {"llama": llama, "mamba": tiny_mamba, "classifier": tiny_classifier}
    taken = {name: build for name, build in builds.items() if _takes_keywords(build())}
    losses = {name: token_weights.losses(build) for name, build in taken.items()}
    if _takes_keywords(uncounted.tiny_answerer()):
        losses["answers"] = token_weights.losses(uncounted.tiny_answerer, uncounted.with_answers)
    ratios = {name: round(many / one, 4) for name, (one, many) in losses.items()}
    # In 4.48.0 the Trainer adds up the losses of all models, which no model can be blamed for.
    usual = ratios["llama"] > token_weights.ADDED_UP
    return Observation(not usual and max(ratios.values()) > token_weights.ADDED_UP, ratios)


def _takes_keywords(model: Any) -> bool:
    return inspect.Parameter.VAR_KEYWORD in {p.kind for p in inspect.signature(model.forward).parameters.values()}
