"""Gradient accumulation averages micro-batches of different size alike, for models that take no number of tokens.

Problem: the Trainer divides by the tokens of all micro-batches only for a model that takes their number. Of any other
    it takes the mean of the micro-batches' means, in which a token of a short row weighs more than one of a long row.
Hit by: T5, Bart, BERT, Whisper, Qwen2-VL and some 380 other classes of 4.x; Qwen3-VL, Qwen3.5 and GLM-4V up to 5.16.1;
    Qwen3-VL-MoE, Qwen3.5-MoE and other mixtures of experts with images to the newest release, as they say
    `accepts_loss_kwargs = False`.
Fix: the loss of a micro-batch is weighed by its share in the labels of the update, that of a router with it.
Remove when: the Trainer counts tokens for each model that returns a mean over them.

What the Trainer's own `compute_loss` returns in `training_step` is weighed, in updates of several batches, if all
losses in the `forward` of transformers' class are its own or torch's means, of `labels`. As before are evaluation,
label smoothing, a loss that the user computes, a model of which the user says what it accepts, a second kind of labels
(such as `next_sentence_label`), segmentation and pretraining of ELECTRA, whose padding is not -100, and torch's
DataParallel.
"""

import inspect
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import accumulation, means_of_means, models_without_number, token_counts, token_weights

patch = Patch(
    __name__,
    affected="transformers>=4.48.1,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/37766",
        "https://github.com/huggingface/transformers/pull/38432",
    ),
    opt_out="NRL_DISABLE_ACCUMULATION_MEAN_OF_MEANS_PATCH",
    relies_on=token_weights.RULES,
)


@patch.fix(
    "transformers.trainer:Trainer.get_batch_samples",
    guard=lambda get: mismatch(get, parameters="self epoch_iterator", attributes="next"),
)
def count_labels(get_batch_samples: Callable[..., Any]) -> Callable[..., Any]:
    """Build a collection of batches that counts their labels.

    Args:
        get_batch_samples: The Trainer's.
    """

    def get_counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = get_batch_samples(self, *args, **kwargs)
        means_of_means.count(self, found[0])
        return found

    return get_counted


@patch.fix(
    "transformers.trainer:Trainer.training_step",
    guard=lambda step: mismatch(step, parameters="self model inputs", attributes="model_accepts_loss_kwargs"),
)
def tell_step(training_step: Callable[..., Any]) -> Callable[..., Any]:
    """Build a step that says that it runs.

    Args:
        training_step: The Trainer's, which divides the loss.
    """

    def step_told(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = means_of_means.STEPPING.set(self)
        try:
            return training_step(self, *args, **kwargs)
        finally:
            means_of_means.STEPPING.reset(token)

    return step_told


@patch.fix("transformers.trainer:Trainer.compute_loss", guard=token_weights.guard)
def weigh_loss(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loss that is weighed where the Trainer divides it by the number of batches.

    Args:
        compute_loss: The Trainer's.
    """
    signature = inspect.signature(compute_loss)

    def compute_weighed(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, model, *args, **kwargs).arguments
        weight = means_of_means.weight_of(self, model, given["inputs"])
        return token_weights.weighed(compute_loss(self, model, *args, **kwargs), weight)

    return compute_weighed


@patch.probe
def short_rows_weigh_more() -> Observation:
    """Train models that take no number for one update, in one batch and in four; compare with a Llama for text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def llama() -> Any:
        return LlamaForCausalLM(LlamaConfig(**accumulation.TEXT))

    builds = {"llama": llama} | models_without_number.builds()
    losses = {name: token_weights.losses(build) for name, build in builds.items()}
    ratios = {name: round(many / one, 4) for name, (one, many) in losses.items()}
    # In 4.48.0 the Trainer adds up the losses of models that take the number, in 4.47.1 those of the others.
    means = max(ratios.values()) < token_weights.ADDED_UP
    return Observation(means and any(abs(ratio - 1) > token_counts.TOLERANCE for ratio in ratios.values()), ratios)
