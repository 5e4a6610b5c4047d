"""The configuration of Qwen3-Omni's talker refuses its parts if they are configurations already.

Problem: `Qwen3OmniMoeTalkerConfig.__post_init__` (models/qwen3_omni_moe/configuration_qwen3_omni_moe.py) unpacks
    `text_config` and `code_predictor_config` with `**`, as if they were dictionaries. Of all configurations of these
    releases that have parts it is the only one.
Hit by: who makes it of such objects, as Megatron-Bridge does from its saved form and hydra from `_target_`: TypeError,
    argument after ** must be a mapping.
Fix: a part that is a configuration is kept as it is.
Remove when: no supported release is older than transformers 5.20.0.
"""

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch

patch = Patch(
    __name__,
    affected="transformers>=5.4.0,<5.20.0",
    upstream=(
        "https://github.com/NVIDIA-NeMo/Megatron-Bridge/issues/4616",
        "https://github.com/NVIDIA-NeMo/RL/pull/3021",
    ),
    opt_out="NRL_DISABLE_QWEN3_OMNI_TALKER_CONFIG_PATCH",
)

PARTS = ("code_predictor_config", "text_config")


@patch.fix(
    "transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe:Qwen3OmniMoeTalkerConfig.__post_init__",
    guard=lambda post_init: mismatch(post_init, parameters="self kwargs", attributes=" ".join(PARTS)),
)
def keep_parts(post_init: Callable[..., None]) -> Callable[..., None]:
    """Build a method that makes configurations of dictionaries only.

    Args:
        post_init: The method that runs after the fields have been set.
    """
    from transformers import PretrainedConfig

    def post_init_of_what_is_missing(self: Any, **kwargs: Any) -> None:
        given = {name: vars(self)[name] for name in PARTS if isinstance(vars(self).get(name), PretrainedConfig)}
        # Of a dictionary a configuration is made, which the given one then replaces.
        vars(self).update({name: part.to_dict() for name, part in given.items()})
        try:
            post_init(self, **kwargs)
        finally:
            vars(self).update(given)

    return post_init_of_what_is_missing


@patch.probe
def parts_are_refused() -> Observation:
    """Make the configuration of configurations."""
    try:
        from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as qwen

        parts = {
            "code_predictor_config": qwen.Qwen3OmniMoeTalkerCodePredictorConfig(),
            "text_config": qwen.Qwen3OmniMoeTalkerTextConfig(),
        }
    except (ImportError, AttributeError) as error:  # Of 5.0.0 the parts cannot be made at all.
        return Observation(False, {type(error).__name__: str(error)})
    try:
        made = qwen.Qwen3OmniMoeTalkerConfig(**parts)
    except TypeError as error:
        return Observation(True, {"TypeError": str(error).rpartition(".")[2]})
    return Observation(False, {"kept": all(getattr(made, name) is part for name, part in parts.items())})
