"""Models whose loss is a mean that another function or module computes, which the source of their ``forward`` hides."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from nrl_patches.patches._shared import loss_sources, token_counts
from nrl_patches.patches._shared.wrapped import inside

SHIFTED: Mapping[str, tuple[bool, str]] = {
    "blip.modeling_blip:BlipForConditionalGeneration": (True, "text_decoder"),
    "blip.modeling_blip_text:BlipTextLMHeadModel": (True, ""),
    "deberta.modeling_deberta:DebertaForSequenceClassification": (False, ""),
    "deberta_v2.modeling_deberta_v2:DebertaV2ForSequenceClassification": (False, ""),
    "distilbert.modeling_distilbert:DistilBertForMaskedLM": (False, "mlm_loss_fct"),
    "flaubert.modeling_flaubert:FlaubertWithLMHeadModel": (False, "pred_layer"),
    "pix2struct.modeling_pix2struct:Pix2StructForConditionalGeneration": (False, "decoder"),
    "pix2struct.modeling_pix2struct:Pix2StructTextModel": (False, ""),
    "prophetnet.modeling_prophetnet:ProphetNetForCausalLM": (False, "_compute_loss"),
    "prophetnet.modeling_prophetnet:ProphetNetForConditionalGeneration": (False, "_compute_loss"),
    "qwen2_audio.modeling_qwen2_audio:Qwen2AudioForConditionalGeneration": (True, ""),
    "xlm.modeling_xlm:XLMWithLMHeadModel": (False, "pred_layer"),
}
"""By their place below ``transformers.models``, whether no token predicts the first label of a row, and the attribute
that computes the loss, if ``forward`` itself does not.

Each was measured: nobody can tell in general whether another function takes a mean, and a sum must not be weighed.
"""


def drops_number(model: Any) -> bool:
    """Tell whether a model takes the number of tokens, and returns a mean loss all the same.

    Args:
        model: The model, unwrapped.

    Returns:
        False where nobody can tell, as of a loss function of the user's.
    """
    return loss_sources.drops_number(model) or _shifted(model) is not None


def shifts_labels(model: Any) -> bool:
    """Tell whether no token predicts the first label of a row, in a model that drops the number.

    Args:
        model: The model, unwrapped.

    Returns:
        False for a model whose labels are those of the tokens beside them, or of rows.
    """
    shifted = _shifted(model)
    return loss_sources.shifts_labels(model) if shifted is None else shifted


def _shifted(model: Any) -> bool | None:
    """Return whether a model shifts its labels, None if it is not listed or has a loss of the user's."""
    shifted, attribute = _listed(token_counts.forward_of(model)) or (None, "")
    return shifted if not attribute or _is_upstreams(getattr(model, attribute, None)) else None


def _is_upstreams(loss: Any) -> bool:
    """Whether a module or method is transformers' own, or torch's, and takes the mean."""
    loss = inside(loss)
    function = token_counts.forward_of(loss) if hasattr(loss, "forward") else loss
    own = (getattr(function, "__module__", None) or "").startswith(("transformers.models.", "torch.nn.modules."))
    return own and getattr(loss, "reduction", "mean") == "mean"


@functools.cache
def _listed(forward: Callable[..., Any] | None) -> tuple[bool, str] | None:
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
