"""Models whose loss is a mean that another function or module computes, which the source of their ``forward`` hides."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

from nrl_patches.patches._shared import loss_sources, token_counts
from nrl_patches.patches._shared.wrapped import inside
from nrl_patches.patches._shared.written import written

SHIFTED: Mapping[str, tuple[bool, str]] = {
    "beit.modeling_beit:BeitForSemanticSegmentation": (False, "compute_loss"),
    "blip.modeling_blip:BlipForConditionalGeneration": (True, "text_decoder"),
    "blip.modeling_blip:BlipForQuestionAnswering": (False, "text_decoder"),
    "blip.modeling_blip_text:BlipTextLMHeadModel": (True, ""),
    "blip_2.modeling_blip_2:Blip2ForConditionalGeneration": (True, ""),
    "cohere_compass.modeling_cohere_compass:CohereCompassTextForSequenceClassification": (False, "loss_function"),
    "data2vec.modeling_data2vec_audio:Data2VecAudioForXVector": (False, "objective"),
    "data2vec.modeling_data2vec_vision:Data2VecVisionForSemanticSegmentation": (False, "compute_loss"),
    "deberta.modeling_deberta:DebertaForSequenceClassification": (False, ""),
    "deberta_v2.modeling_deberta_v2:DebertaV2ForSequenceClassification": (False, ""),
    "distilbert.modeling_distilbert:DistilBertForMaskedLM": (False, "mlm_loss_fct"),
    "dpt.modeling_dpt:DPTForSemanticSegmentation": (False, ""),
    "flaubert.modeling_flaubert:FlaubertWithLMHeadModel": (False, "pred_layer"),
    "gemma3.modeling_gemma3:Gemma3ForSequenceClassification": (False, "loss_function"),
    "luke.modeling_luke:LukeForEntityClassification": (False, ""),
    "luke.modeling_luke:LukeForEntityPairClassification": (False, ""),
    "luke.modeling_luke:LukeForEntitySpanClassification": (False, ""),
    "luke.modeling_luke:LukeForMaskedLM": (False, "loss_fn"),
    "lxmert.modeling_lxmert:LxmertForQuestionAnswering": (False, "loss"),
    "mobilenet_v2.modeling_mobilenet_v2:MobileNetV2ForSemanticSegmentation": (False, ""),
    "mobilevit.modeling_mobilevit:MobileViTForSemanticSegmentation": (False, ""),
    "mobilevitv2.modeling_mobilevitv2:MobileViTV2ForSemanticSegmentation": (False, ""),
    "musicgen.modeling_musicgen:MusicgenForConditionalGeneration": (False, "decoder"),
    "musicgen_melody.modeling_musicgen_melody:MusicgenMelodyForConditionalGeneration": (False, "decoder"),
    "pix2struct.modeling_pix2struct:Pix2StructForConditionalGeneration": (False, "decoder"),
    "pix2struct.modeling_pix2struct:Pix2StructTextModel": (False, ""),
    "prophetnet.modeling_prophetnet:ProphetNetForCausalLM": (False, "_compute_loss"),
    "prophetnet.modeling_prophetnet:ProphetNetForConditionalGeneration": (False, "_compute_loss"),
    "qwen2_audio.modeling_qwen2_audio:Qwen2AudioForConditionalGeneration": (True, ""),
    "segformer.modeling_segformer:SegformerForSemanticSegmentation": (False, ""),
    "tipsv2_dpt.modeling_tipsv2_dpt:Tipsv2DptForSemanticSegmentation": (False, "loss_function"),
    "unispeech_sat.modeling_unispeech_sat:UniSpeechSatForXVector": (False, "objective"),
    "vilt.modeling_vilt:ViltForQuestionAnswering": (False, ""),
    "visual_bert.modeling_visual_bert:VisualBertForQuestionAnswering": (False, ""),
    "visual_bert.modeling_visual_bert:VisualBertForRegionToPhraseAlignment": (False, ""),
    "wav2vec2.modeling_wav2vec2:Wav2Vec2ForXVector": (False, "objective"),
    "wav2vec2_bert.modeling_wav2vec2_bert:Wav2Vec2BertForXVector": (False, "objective"),
    "wav2vec2_conformer.modeling_wav2vec2_conformer:Wav2Vec2ConformerForXVector": (False, "objective"),
    "wavlm.modeling_wavlm:WavLMForXVector": (False, "objective"),
    "xlm.modeling_xlm:XLMWithLMHeadModel": (False, "pred_layer"),
}
"""By their place below ``transformers.models``, whether no token predicts the first label of a row, and the attribute
that computes the loss, if ``forward`` itself does not.

Each was measured: nobody can tell in general whether another function takes a mean, and a sum must not be weighed.
"""

SEEING = frozenset({
    "blip_2.modeling_blip_2:Blip2ForConditionalGeneration",
    "instructblip.modeling_instructblip:InstructBlipForConditionalGeneration",
    "instructblipvideo.modeling_instructblipvideo:InstructBlipVideoForConditionalGeneration",
})  # fmt: skip
"""What hands labels, and their number, to its language model, if that is an encoder and a decoder such as T5."""

DIVIDES = re.compile(r"num_items_in_batch|\bself\.loss_function\((?:[^()]|\([^()]*\))*\*\*")
"""What the source of a ``forward`` has that hands the number on, or divides by it."""


def drops_number(model: Any) -> bool:
    """Tell whether a model takes the number of tokens, and returns a mean loss all the same.

    Args:
        model: The model, unwrapped. Whether a classifier does may depend on labels, and is known after its first loss.

    Returns:
        False where nobody can tell, as of a loss function of the user's.
    """
    model = _whose_loss(model)
    return loss_sources.drops_number(model) or _shifted(model) is not None or _is_undivided_problem(model)


def shifts_labels(model: Any) -> bool:
    """Tell whether no token predicts the first label of a row, in a model that drops the number.

    Args:
        model: The model, unwrapped.

    Returns:
        False for a model whose labels are those of the tokens beside them, or of rows.
    """
    model = _whose_loss(model)
    shifted = _shifted(model)
    return loss_sources.shifts_labels(model) if shifted is None else shifted


def takes_mean_of_rows(model: Any) -> bool:
    """Tell whether a model takes the number of labels, and returns the mean of what CTC loses in each row.

    Args:
        model: The model, unwrapped.

    Returns:
        False for a model whose configuration asks for the sum, and for a loss function of the user's.
    """
    forward = token_counts.forward_of(model)
    if not _is_ctc(forward) or model.config.ctc_loss_reduction != "mean":
        return False
    loss = model.loss_function if "self.loss_function" in _source(forward) else None
    return loss is None or (_is_upstreams(loss) and "num_items_in_batch" not in _source(loss))


def _whose_loss(model: Any) -> Any:
    """Return the model that computes the loss: the language model of one that only hands it the labels."""
    hands = _place(token_counts.forward_of(model)) in SEEING and not model.config.use_decoder_only_language_model
    return inside(model.language_model) if hands else model


def _shifted(model: Any) -> bool | None:
    """Return whether a model shifts its labels, None if it is not listed or has a loss of the user's."""
    shifted, attribute = _listed(token_counts.forward_of(model)) or (None, "")
    return shifted if not attribute or _is_upstreams(getattr(model, attribute, None)) else None


def _is_upstreams(loss: Any) -> bool:
    """Whether a module or function is transformers' own, or torch's, and takes the mean."""
    loss = inside(loss)
    function = token_counts.forward_of(loss) if hasattr(loss, "forward") else loss
    places = ("transformers.models.", "transformers.loss.", "torch.nn.modules.")
    own = (getattr(function, "__module__", None) or "").startswith(places)
    return own and getattr(loss, "reduction", "mean") == "mean"


def _is_undivided_problem(model: Any) -> bool:
    """Whether a classifier hands the number to transformers' loss, which divides by it for classes alone."""
    forward = token_counts.forward_of(model)
    if not _place(forward).endswith("Classification") or not DIVIDES.search(_source(forward)):
        return False
    loss, problem = getattr(model, "loss_function", None), getattr(model.config, "problem_type", None)
    sums_up = "num_items_in_batch" in _source(loss) or "loss_fct = MSELoss()" not in _source(loss)
    return _is_upstreams(loss) and not sums_up and problem in {"regression", "multi_label_classification"}


@functools.cache
def _listed(forward: Any) -> tuple[bool, str] | None:
    """Return the entry of a ``forward`` that takes any keyword argument, None if it has none or divides by itself."""
    name = _place(forward)
    if name not in SHIFTED or not _takes_any(forward):
        return None
    _, attribute = SHIFTED[name]
    source = "".join(map(_source, _forwards(forward) if attribute == "loss_function" else [forward]))
    divides = DIVIDES.search(source) or (attribute != "loss_function" and "self.loss_function" in source)
    return SHIFTED[name] if source and not divides else None


@functools.cache
def _is_ctc(forward: Any) -> bool:
    """Whether a ``forward`` that takes any keyword argument computes CTC as its configuration says."""
    source = _source(forward) if _place(forward).endswith("ForCTC") else ""
    reduces = "reduction=self.config.ctc_loss_reduction" in source
    return reduces and "num_items_in_batch" not in source and _takes_any(forward)


def _place(forward: Any) -> str:
    """Return where below ``transformers.models`` the class of a ``forward`` is, empty if it is elsewhere."""
    inner: Any = inspect.unwrap(forward) if callable(forward) else None
    module, _, name = (getattr(inner, "__module__", None) or "").partition("transformers.models.")
    return "" if module or not name else f"{name}:{inner.__qualname__.removesuffix('.forward')}"


def _forwards(forward: Any) -> list[Any]:
    """Return a ``forward``, and those that its class would have without it."""
    inner: Any = inspect.unwrap(forward)
    owner = getattr(sys.modules[inner.__module__], inner.__qualname__.partition(".")[0])
    return [vars(base)["forward"] for base in owner.__mro__ if "forward" in vars(base)]


@functools.cache
def _source(function: Any) -> str:
    try:
        return inspect.getsource(written(function))
    except (OSError, TypeError):  # No source, as of a model that was compiled to bytecode.
        return ""


def _takes_any(forward: Any) -> bool:
    parameters = inspect.signature(inspect.unwrap(forward)).parameters.values()
    return inspect.Parameter.VAR_KEYWORD in {parameter.kind for parameter in parameters}
