"""LoRA cannot be applied to the vision and audio towers of Gemma 4 by the names of their layers.

Problem: `LoraModel._create_and_replace` (tuners/lora/model.py) knows no `Gemma4ClippableLinear`, a module that clips
    what its `.linear` is given and returns; every linear layer of the towers is one.
Hit by: `get_peft_model` with `target_modules=["q_proj", "v_proj"]`, or a regular expression such as
    `.*vision_tower.*q_proj`: `ValueError: Target module Gemma4ClippableLinear(...) is not supported`. The text model is
    hit too, as its layers have the same names. `"all-linear"`, and names that end with `.linear`, work.
Fix: where a clippable layer is targeted, its `.linear` gets the adapter, so that clipping stays around both. Names in
    the state dict are those of `target_modules=["q_proj.linear"]`, which PEFT's maintainers advise. `rank_pattern` and
    `alpha_pattern` may name either of the two.
Remove when: PEFT adapts the layer inside; no release so far does, and the maintainers do not plan to.

An adapter that was saved with such target modules raises the same error where it is loaded without the patch. Other
kinds of adapters (AdaLoRA, LoHa, IA3) raise as before.
"""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any, Optional

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="peft>=0.18.0,<=0.21.2 & transformers>=5.5.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/peft/issues/3129",
        "https://github.com/huggingface/peft/issues/3130",
        "https://github.com/huggingface/peft/pull/3154",
    ),
    opt_out="NRL_DISABLE_PEFT_GEMMA4_CLIPPABLE_LINEAR_PATCH",
    relies_on=(
        "peft.tuners.tuners_utils:BaseTuner.inject_adapter",
        "transformers.models.gemma4.modeling_gemma4:Gemma4ClippableLinear.forward",
    ),
)

CLIPPABLE = {"Gemma4ClippableLinear", "DiffusionGemmaClippableLinear"}


def is_clippable(target: Any, lora_config: Any) -> bool:
    """Whether a module is a clippable layer that PEFT would refuse.

    Args:
        target: The module.
        lora_config: A ``LoraConfig``, for which users may have registered layers of their own.
    """
    from torch.nn import Linear

    # Some replace the class by one that is linear itself, which PEFT adapts.
    if CLIPPABLE.isdisjoint(kind.__name__ for kind in type(target).__mro__) or isinstance(target, Linear):
        return False
    return not isinstance(target, tuple(lora_config._custom_modules or ()))


def with_patterns_of(lora_config: Any, outer: str, inner: str) -> Any:
    """Return a configuration whose patterns say of a layer what they say of the one around it.

    Args:
        lora_config: A ``LoraConfig``; returned as it is unless a pattern names the layer around.
        outer: The name of that.
        inner: The name of the layer.
    """
    from peft.utils.other import get_pattern_key

    changed = copy.copy(lora_config)
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(lora_config, name)
        key = get_pattern_key(pattern.keys(), outer)
        if key in pattern:
            setattr(changed, name, {**pattern, inner: pattern[key]})
    return lora_config if vars(changed) == vars(lora_config) else changed


@patch.fix(
    "peft.tuners.lora.model:LoraModel._create_and_replace",
    guard=lambda create: mismatch(
        create,
        parameters="lora_config adapter_name target target_name parent current_key parameter_name",
        attributes="get_pattern_key rank_pattern alpha_pattern _create_new_module _replace_module update_layer",
    ),
)
def adapt_the_layer_inside(create: Callable[..., None]) -> Callable[..., None]:
    """Build a function that adapts the layer inside of a clippable one.

    Args:
        create: PEFT's ``LoraModel._create_and_replace``.
    """

    def create_and_replace(  # noqa: PLR0913, PLR0917 - PEFT's signature
        self: Any,
        lora_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str | None,
        *,
        parameter_name: Optional[str] = None,  # noqa: UP045 - PEFT's annotations are looked up in this module
    ) -> None:
        if current_key is not None and is_clippable(target, lora_config):
            inner = f"{current_key}.linear"
            # Matched by itself it is adapted in its own turn, and excluded by itself it is not adapted.
            if self._check_target_module_exists(lora_config, inner) not in (None, False):
                return
            lora_config = with_patterns_of(lora_config, current_key, inner)
            target, target_name, parent, current_key = target.linear, "linear", target, inner
        create(self, lora_config, adapter_name, target, target_name, parent, current_key, parameter_name=parameter_name)

    return create_and_replace


@patch.probe
def a_tower_is_refused() -> Observation:
    """Target a clippable layer by its name."""
    import peft
    from torch import nn

    if importlib.util.find_spec("transformers.models.gemma4") is None:
        return Observation(False, {"absent": "Gemma 4"})
    from transformers import Gemma4VisionConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear

    with quiet():
        model = nn.ModuleDict({"q_proj": Gemma4ClippableLinear(Gemma4VisionConfig(), 2, 2)})
        try:
            adapted = peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=["q_proj"]))
        except ValueError as error:
            return Observation(True, {"error": str(error).partition("(")[0]})
    names = peft.get_peft_model_state_dict(adapted)
    return Observation(False, {"adapted": min(names)})
