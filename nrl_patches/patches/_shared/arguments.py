"""The arguments of a call that is handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_argument(
    names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with another value of one of them; each stays by position or by keyword.

    From 5.23.0 on transformers checkpoints a layer inside its forward, and reentrant checkpointing follows gradients
    only through what is given by position.

    Args:
        names: The names of the parameters in order, as far as they may be given by position.
        args: What is given by position.
        kwargs: What is given by keyword.
        name: The parameter.
        value: Its value.
    """
    at = names.index(name) if name in names else len(args)
    if name in kwargs or at >= len(args):
        return args, {**kwargs, name: value}
    return (*args[:at], value, *args[at + 1 :]), dict(kwargs)
