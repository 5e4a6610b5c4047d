"""Trainer divides the gradient by the number of accumulation steps twice.

Problem: `Trainer.create_accelerator_and_postprocess` (trainer.py) tells accelerate the number of accumulation steps,
    and `Accelerator.backward` divides every loss by it. The Trainer's own loss is divided already: by the tokens of all
    micro-batches, or by the number of steps.
Hit by: every model that is trained with `gradient_accumulation_steps=n`: the gradient is an n-th of that of one large
    batch. The loss that is reported is right, `grad_norm` is not; with Adam it shows through epsilon and clipping only.
Fix: accelerate is told one step, as in the release that has the repair.
Remove when: every supported transformers is 5.5.4 or newer.
"""

from typing import Any

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import accumulation

patch = Patch(
    __name__,
    affected="transformers>=5.2.0,<5.5.4",
    upstream=(
        "https://github.com/huggingface/transformers/compare/v5.5.3...v5.5.4",
        "https://github.com/huggingface/accelerate/issues/3533",
    ),
    opt_out="NRL_DISABLE_TRAINER_DIVIDES_GRADIENTS_TWICE_PATCH",
)

patch.rewrite(
    "transformers.trainer:Trainer.create_accelerator_and_postprocess",
    Edit(
        old="""\
else:
    grad_acc_kwargs["num_steps"] = self.args.gradient_accumulation_steps
""",
        new="""\
grad_acc_kwargs["num_steps"] = 1
""",
    ),
)


def tiny_model() -> Any:
    """Return a Llama of one layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**accumulation.TEXT))


@patch.probe
def gradient_shrinks_with_the_steps() -> Observation:
    """Train a Llama of one layer for one update, in one batch and in four accumulated ones."""
    one, many = (
        accumulation.update(accumulation.seeded(tiny_model), accumulated=accumulated)[1].norm().item()
        for accumulated in (False, True)
    )
    return Observation(many < one / 2, {"gradient_accumulated_to_one_batch": round(many / one, 4)})
