"""The unused projections of KV-shared layers: their own ``k_proj``, ``v_proj`` and norms.

Once the states of these layers always come from a donor, the projections get no gradient, which DDP reports as an
error, and LoRA adapts them in vain. Upstream's fix builds layers without them, and ignores them in checkpoints.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from nrl_patches import Patch, mismatch
from nrl_patches.errors import Problem

IDLE = ("k_proj", "v_proj", "k_norm", "v_norm")


def drop_from(patch: Patch, family: str, prefix: str) -> None:
    """Declare the fixes of a patch that remove the unused projections from the models of a family.

    Args:
        patch: The patch.
        family: The name of the family's package below ``transformers.models``.
        prefix: The prefix of the names of its classes.
    """
    module = f"transformers.models.{family}.modeling_{family}:{prefix}"
    patch.fix(
        f"{module}PreTrainedModel.post_init",
        guard=lambda post_init: mismatch(post_init, parameters="self", attributes="init_weights"),
    )(drop_idle_projections)
    patch.fix(
        f"{module}TextAttention._load_from_state_dict",
        guard=lambda load: mismatch(load, parameters="self state_dict prefix"),
    )(load_without_idle_projections)


def drop_idle_projections(post_init: Callable[..., Any]) -> Callable[..., Any]:
    """Build a ``post_init`` that removes the unused projections before weights are initialised or loaded.

    Args:
        post_init: Upstream's ``PreTrainedModel.post_init`` of the family.
    """
    from transformers import PreTrainedModel

    # Up to 4.56 the loader reads the list of the class, where entries of another model do no harm.
    by_class = not hasattr(PreTrainedModel, "_adjust_missing_and_unexpected_keys")

    def post_init_without(self: Any, *args: Any, **kwargs: Any) -> Any:
        ignored = list(self._keys_to_ignore_on_load_unexpected or [])
        for name, module in self.named_modules():
            if getattr(module, "is_kv_shared_layer", False):
                for idle in IDLE:
                    module._modules.pop(idle, None)
                ignored += [f"{name}.{idle}" for idle in IDLE]
        if ignored:
            (type(self) if by_class else self)._keys_to_ignore_on_load_unexpected = list(dict.fromkeys(ignored))
        return post_init(self, *args, **kwargs)

    return post_init_without


def load_without_idle_projections(load: Callable[..., Any]) -> Callable[..., Any]:
    """Build a ``_load_from_state_dict`` that accepts checkpoints which still have the unused projections.

    Args:
        load: The ``_load_from_state_dict`` of the attention.
    """

    def load_without(self: Any, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "is_kv_shared_layer", False):
            dropped = tuple(f"{prefix}{idle}." for idle in IDLE if idle not in self._modules)
            state_dict = {name: state for name, state in state_dict.items() if not name.startswith(dropped)}
        return load(self, state_dict, prefix, *args, **kwargs)

    return load_without


def note_idle_projections(attention: Any) -> None:
    """Warn once about a model built before the patch: it has the projections, and DDP waits for their gradients.

    Args:
        attention: The attention that runs, with gradients enabled.
    """
    import torch

    if attention.is_kv_shared_layer and "k_proj" in attention._modules and torch.is_grad_enabled():
        weights = [weight for idle in IDLE for weight in getattr(attention, idle).parameters()]
        if any(weight.requires_grad for weight in weights) and not torch.compiler.is_compiling():
            _warn_once()


@functools.cache
def _warn_once() -> None:
    logging.getLogger("nrl_patches").warning(
        Problem(
            "KV-shared layers",
            expected="a model built after the patch was applied, whose shared layers have no k_proj and v_proj",
            found="one that has them, though they get no gradient: DDP stops at its second step",
            next_step="import nrl_patches before the model is built, or freeze them (requires_grad_(False)) before DDP",
        )
    )
