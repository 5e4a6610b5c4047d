"""A strict dataclass refuses an integer where a float is declared, and so do the configurations of transformers.

Problem: `_validate_simple_type` (dataclasses.py) asks for `isinstance(value, float)`, which no `int` is, though PEP 484
    lets one stand wherever `float` is declared, and neither YAML nor JSON tells `0` from `0.0`.
Hit by: whoever builds, loads or changes a configuration of transformers 5.4.0 or newer, which are strict, with an
    integer in a field that declares a float only: `MixtralConfig(router_aux_loss_coef=0)`, or a config.json with
    `"rms_norm_eps": 1`, raises `StrictDataclassFieldValidationError`. transformers before 5.4.0 takes it.
Fix: an `int` that is no `bool` is valid for `float`, wherever `float` is declared: in a union, in a container. Nothing
    is converted: the field keeps the integer, as where transformers declares `float | int`, and as in 4.x.
Remove when: huggingface_hub accepts integers for floats, or no configuration of transformers declares a float only.

huggingface_hub refuses on purpose, as its tests say. transformers does not: it widens its declarations field by field,
as users report them. In 5.24.0 still 1906 of the 3083 fields that declare a float, in 709 configurations, refuse 1.
"""

from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Any

from nrl_patches import Observation, Patch, mismatch

patch = Patch(
    __name__,
    affected="huggingface-hub>=0.31.4,<=2.4.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45019",
        "https://github.com/huggingface/transformers/pull/45007",
        "https://github.com/huggingface/huggingface_hub/pull/3992",
    ),
    opt_out="NRL_DISABLE_STRICT_INT_FOR_FLOAT_PATCH",
    relies_on=(
        "huggingface_hub.dataclasses:_create_type_validator",
        "huggingface_hub.dataclasses:type_validator",
    ),
)


@patch.fix(
    "huggingface_hub.dataclasses:_validate_simple_type",
    guard=lambda validate: mismatch(validate, parameters="name value expected_type", attributes="isinstance TypeError"),
)
def accept_integers(validate: Callable[..., None]) -> Callable[..., None]:
    """Build a validator for which integers are valid floats.

    Args:
        validate: huggingface_hub's ``_validate_simple_type``.
    """

    def validate_simple_type(name: str, value: Any, expected_type: type) -> None:
        # A boolean is an `int` too, and no number to whoever wrote it.
        if not (expected_type is float and isinstance(value, int) and not isinstance(value, bool)):
            validate(name, value, expected_type)

    return validate_simple_type


@patch.probe
def an_integer_is_refused() -> Observation:
    """Assign an integer to a field that declares a float."""
    from huggingface_hub.dataclasses import strict
    from huggingface_hub.errors import StrictDataclassFieldValidationError

    config: Any = strict(make_dataclass("Config", [("coefficient", float)]))(coefficient=0.5)
    try:
        config.coefficient = 0
    except StrictDataclassFieldValidationError as error:
        return Observation(True, {"error": str(error.__cause__)})
    return Observation(False, {"coefficient": config.coefficient})
