"""A subclass of a model does not get the renaming rules of its base, and loses what they rename.

Problem: `get_model_conversion_mapping` (conversion_mapping.py) looks rules up by `type(model).__name__`, not by the
    classes that the model inherits from. Since 5.13.0 it skips every class outside of transformers.
Hit by: `from_pretrained` of `class Mine(Qwen2_5_VLForConditionalGeneration)`: the text model is random.
    `save_pretrained` of it, and of the subclass that FSDP2 derives from a class, writes another layout than the hub's.
    The same holds for all models whose rules are kept by class, and since 5.13.0 for those kept by model type.
Fix: while rules are collected, a class outside of transformers stands for the model of transformers that it inherits
    from, unless the rules would rename one of its own tensors: then it is not structured like its base.
Remove when: transformers searches the bases of a class; no release from 5.9.0 on does so far.

Since 5.13.0 upstream expects such code to register its own rules. Registered rules take precedence, under the name of
the class and under the model type.
"""

import contextvars
import itertools
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.9.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45661",
        "https://github.com/huggingface/transformers/pull/46876",
    ),
    opt_out="NRL_DISABLE_SUBCLASS_CONVERSION_MAPPING_PATCH",
    relies_on=(
        "transformers.conversion_mapping:register_checkpoint_conversion_mapping",
        "transformers.modeling_utils:PreTrainedModel.is_custom_code",
    ),
)

_bases: contextvars.ContextVar[Mapping[str, str] | None] = contextvars.ContextVar("nrl_bases_of_models", default=None)


def base_of(model: Any) -> str | None:
    """Return the name of the class whose rules apply to a model, None if those of its own class do.

    Args:
        model: A ``PreTrainedModel``, or a part of one.
    """
    from transformers import conversion_mapping

    kind, model_type = type(model), getattr(getattr(model, "config", None), "model_type", None)
    native = [c.__name__ for c in kind.__mro__ if c.__module__.startswith("transformers.models.")]
    # A class built on the common base of a family is a new model.
    if not native or kind.__module__.startswith("transformers.") or native[0].endswith("PreTrainedModel"):
        return None
    registered = getattr(conversion_mapping, "USER_REGISTERED_MAPPINGS", None)
    if registered is None:  # Before 5.13.0 they are not recorded.
        there = conversion_mapping._checkpoint_conversion_mapping_cache or ()
        registered = set(there).difference(qwen_vl_rules.shipped_rules())
    if not registered.isdisjoint({kind.__name__, model_type}):
        return None
    lookup = conversion_mapping.get_checkpoint_conversion_mapping
    rules = lookup(native[0]) or lookup(model_type) or ()
    # A checkpoint of the model with a head has a prefix that the model without one lacks.
    prefixes = {"", "" if hasattr(model, model.base_model_prefix) else f"{model.base_model_prefix}."}
    for name, _ in itertools.chain(model.named_parameters(), model.named_buffers()):
        for rule, prefix in itertools.product(rules, prefixes):
            if rule.rename_source_key(prefix + name)[0] not in {prefix + name, name}:
                return None
    return native[0] if rules else None


def check_asked_by_name(ask: Callable[..., Any]) -> str | None:
    """Check that rules are looked up by the name of the model's class, and not by those of its bases.

    Args:
        ask: A function of transformers that collects the rules of a model.

    Returns:
        None if they are, otherwise the difference.
    """
    missing = mismatch(ask, parameters="model", attributes="get_checkpoint_conversion_mapping __name__")
    return missing or (None if mismatch(ask, attributes="__mro__") else "looks along the bases")


def by_base(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that collects rules with each class replaced by its base, see :func:`base_of`.

    Args:
        ask: A function of transformers that collects the rules of a model.
    """

    def ask_by_base(model: Any, *args: Any, **kwargs: Any) -> Any:
        found = {m: base for m in model.modules() if hasattr(m, "base_model_prefix") and (base := base_of(m))}
        token = _bases.set({type(part).__name__: base for part, base in found.items()})
        for part in found:
            part.__dict__["is_custom_code"] = lambda: False
        try:
            return ask(model, *args, **kwargs)
        finally:
            _bases.reset(token)
            for part in found:
                part.__dict__.pop("is_custom_code", None)

    return ask_by_base


for _ask in ("get_model_conversion_mapping", "extract_weight_conversions_for_model"):
    patch.fix(f"transformers.conversion_mapping:{_ask}", guard=check_asked_by_name)(by_base)


@patch.fix(
    "transformers.conversion_mapping:get_checkpoint_conversion_mapping", guard=qwen_vl_rules.check_lookup_signature
)
def for_base(lookup: Callable[..., Any]) -> Callable[..., Any]:
    """Build a lookup that returns the rules of the base, as other patches have changed them.

    Args:
        lookup: transformers' ``get_checkpoint_conversion_mapping``.
    """

    def lookup_for_base(model_type: str) -> Any:
        from transformers import conversion_mapping

        rules, base = lookup(model_type), (_bases.get() or {}).get(model_type)
        if rules is None and base not in (None, model_type):
            return conversion_mapping.get_checkpoint_conversion_mapping(base)
        return rules

    return lookup_for_base


@patch.probe
def subclass_is_not_loaded() -> Observation:
    """Load a tiny checkpoint in the hub's layout into a subclass of the class that it is made of."""
    with quiet(), TemporaryDirectory() as hub:
        model = qwen_vl_rules.tiny_model()
        expected = qwen_vl_rules.save_sharded(model, hub, files=2)
        mine: Any = type("Mine", (type(model),), {})
        vision, text = qwen_vl_rules.count_lost(mine.from_pretrained(hub).state_dict(), expected)
    return Observation(bool(vision or text), {"vision_lost": vision, "text_lost": text})
