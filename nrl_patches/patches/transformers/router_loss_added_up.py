"""Gradient accumulation and ranks multiply the auxiliary loss of a mixture of experts.

Problem: `forward` divides the cross-entropy by the tokens of all micro-batches, whose number the Trainer hands it, and
    adds the router's loss, which is a mean, as it is. The Trainer divides by nothing, so `router_aux_loss_coef` is n
    times what was asked for under `gradient_accumulation_steps=n`; and m times more on m ranks, as the Trainer
    multiplies the loss of each by their number if it averages tokens across them.
Hit by: Mixtral, Qwen2-MoE and Qwen3-MoE, Qwen3-Next, OLMoE, gpt-oss, Granite, Phi-3.5-MoE, Jamba, DBRX and others, with
    `output_router_logits=True`. The balance of the experts outweighs the text; with Adam too. Nothing is said.
Fix: a micro-batch adds its router's loss by its share in the tokens of the update, like its cross-entropy.
Remove when: the Trainer or the models do so.

A router's loss is not linear in tokens: that of accumulated batches is a mean of theirs, and near that of one large
batch. Classes that deny `accepts_loss_kwargs`, as Qwen3-VL-MoE does, have the mean anyway.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import accumulation, loss_sources, token_weights

patch = Patch(
    __name__,
    affected=("transformers>=4.47.1,<4.48.0", "transformers>=4.48.1,<=5.24.0"),
    upstream=(
        "https://github.com/huggingface/transformers/issues/48690",
        "https://github.com/NVIDIA-NeMo/Automodel/pull/3359",
    ),
    opt_out="NRL_DISABLE_ROUTER_LOSS_ADDED_UP_PATCH",
    relies_on=token_weights.RULES,
)


@patch.fix("transformers.trainer:Trainer.compute_loss", guard=token_weights.guard)
def weigh_router_loss(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loss in which the router's is weighed, as the model multiplies it by a smaller coefficient meanwhile.

    Args:
        compute_loss: The Trainer's.
    """
    signature = inspect.signature(compute_loss)

    def compute_weighed(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        inner = token_weights.innermost(self, model)
        name = loss_sources.router_coefficient(inner)
        if name is None:
            return compute_loss(self, model, *args, **kwargs)
        given = signature.bind(self, model, *args, **kwargs).arguments
        weight = token_weights.weight_of(self, given["inputs"], given.get("num_items_in_batch"))
        if weight is None:
            return compute_loss(self, model, *args, **kwargs)
        coefficient = getattr(inner, name)
        # What has one element on the CPU is multiplied on any device, as of a model that is spread over several.
        setattr(inner, name, coefficient * (weight.cpu() if getattr(self, "is_model_parallel", False) else weight))
        try:
            return compute_loss(self, model, *args, **kwargs)
        finally:
            setattr(inner, name, coefficient)

    return compute_weighed


def tiny_model(coefficient: float = 0.5) -> Any:
    """Return a Mixtral with random weights.

    Args:
        coefficient: Of its router's loss.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    experts = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": coefficient}
    return MixtralForCausalLM(MixtralConfig(**accumulation.TEXT, **experts))


@patch.probe
def coefficient_grows_with_the_steps() -> Observation:
    """Train a Mixtral for one update, in one batch and in four, with its router's loss and without it."""
    bare, whole = (token_weights.losses(functools.partial(tiny_model, coefficient)) for coefficient in (0.0, 0.5))
    text = bare[1] / bare[0]
    router = (whole[1] - bare[1]) / (whole[0] - bare[0])
    # In 4.48.0 the Trainer adds up the losses of all models.
    present = router > token_weights.ADDED_UP > text
    return Observation(present, {"accumulated_to_one_batch": round(text, 4), "of_the_router": round(router, 4)})
