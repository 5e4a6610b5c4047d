"""What the mixers of Jamba can be told."""

from __future__ import annotations

import inspect


def is_masked() -> bool:
    """Return whether they are given a mask, in place of which they can be handed sequences; from 4.45.0 on."""
    from transformers.models.jamba.modeling_jamba import JambaMambaMixer

    return "attention_mask" in inspect.signature(JambaMambaMixer.forward).parameters
