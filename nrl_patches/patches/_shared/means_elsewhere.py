"""Models whose loss is a mean that another function or module computes, which the source of their ``forward`` hides."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from nrl_patches.patches._shared import loss_sources, token_counts

SHIFTED: Mapping[str, bool] = {
    "blip.modeling_blip:BlipForConditionalGeneration": True,
    "blip.modeling_blip_text:BlipTextLMHeadModel": True,
    "deberta.modeling_deberta:DebertaForSequenceClassification": False,
    "deberta_v2.modeling_deberta_v2:DebertaV2ForSequenceClassification": False,
    "distilbert.modeling_distilbert:DistilBertForMaskedLM": False,
    "flaubert.modeling_flaubert:FlaubertWithLMHeadModel": False,
    "pix2struct.modeling_pix2struct:Pix2StructForConditionalGeneration": False,
    "pix2struct.modeling_pix2struct:Pix2StructTextModel": False,
    "prophetnet.modeling_prophetnet:ProphetNetForCausalLM": False,
    "prophetnet.modeling_prophetnet:ProphetNetForConditionalGeneration": False,
    "qwen2_audio.modeling_qwen2_audio:Qwen2AudioForConditionalGeneration": True,
    "xlm.modeling_xlm:XLMWithLMHeadModel": False,
}
"""Whether no token predicts the first label of a row, by their place below ``transformers.models``.

Each was measured: nobody can tell in general whether another function takes a mean, and a sum must not be weighed.
"""


def drops_number(model: Any) -> bool:
    """Tell whether a model takes the number of tokens, and returns a mean loss all the same.

    Args:
        model: The model, unwrapped.

    Returns:
        False where nobody can tell, as of a loss function of the user's.
    """
    return loss_sources.drops_number(model) or _shifted(token_counts.forward_of(model)) is not None


def shifts_labels(model: Any) -> bool:
    """Tell whether no token predicts the first label of a row, in a model that drops the number.

    Args:
        model: The model, unwrapped.

    Returns:
        False for a model whose labels are those of the tokens beside them, or of rows.
    """
    shifted = _shifted(token_counts.forward_of(model))
    return loss_sources.shifts_labels(model) if shifted is None else shifted


@functools.cache
def _shifted(forward: Callable[..., Any] | None) -> bool | None:
    """Return the entry of a ``forward`` that takes any keyword argument, None if it has none or divides by itself."""
    inner: Any = inspect.unwrap(forward) if forward is not None else None
    place = f"{getattr(inner, '__module__', '')}:{getattr(inner, '__qualname__', '')}"
    name = place.removeprefix("transformers.models.").removesuffix(".forward")
    if name == place or name not in SHIFTED:
        return None
    try:
        source = inspect.getsource(inner)
    except (OSError, TypeError):  # No source, as of a model that was compiled to bytecode.
        return None
    takes = inspect.Parameter.VAR_KEYWORD in {p.kind for p in inspect.signature(inner).parameters.values()}
    return SHIFTED[name] if takes and not re.search(r"num_items_in_batch|\bself\.loss_function\b", source) else None
