"""Accumulated batches are one large batch where losses were added up; whatever else divides a loss is as it was."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

SCRIPT = Path(__file__).parent / "added_up.py"

EXACT = ("bert", "bart", "bart_decoder", "classifier", "t5")

ELSEWHERE = (
    *("blip", "blip_answers", "blip_2_t5", "blip_decoder", "cohere_compass_classifier", "deberta_classifier"),
    *("deberta_v2_classifier", "distilbert", "flaubert", "gemma3_classifier", "instructblip_t5"),
    *("instructblipvideo_t5", "luke", "luke_entity_classifier", "luke_pair_classifier", "luke_spans"),
    *("lxmert_classifier", "pix2struct", "pix2struct_decoder", "prophetnet", "prophetnet_decoder"),
    *("prophetnet_smoothed", "qwen2_audio", "vilt", "visual_bert", "visual_bert_regions", "xlm"),
)
"""Models whose mean another function or module takes."""

SEGMENTERS = (
    *("beit", "data2vec_vision", "dpt", "mobilenet_v2", "mobilevit", "mobilevitv2", "segformer", "tipsv2_dpt"),
)
"""Of pictures; their mean is one of pixels."""

LISTENERS = (
    *("data2vecaudio_xvector", "musicgen", "musicgen_melody", "unispeechsat_xvector", "wav2vec2_xvector"),
    *("wav2vec2bert_xvector", "wav2vec2conformer_xvector", "wavlm_xvector"),
)
"""Of sound."""

CLASSIFIERS = (
    *("deit_regression", "dinov2_regression", "ijepa_regression", "vit_regression", "vit_several"),
    *("vitmsn_regression", "zamba2_regression"),
)
"""Of what transformers' loss for classifiers takes a mean of, though it is given the number."""

RECOGNIZERS = tuple(
    f"{kind}_ctc"
    for kind in (
        *("data2vecaudio", "hubert", "lasr", "parakeet", "sew", "sewd", "unispeech", "unispeechsat", "wav2vec2"),
        *("wav2vec2bert", "wav2vec2conformer", "wavlm"),
    )
)
"""Of speech, by CTC; their mean is one of rows."""

PADDED = 1e-3
"""Of ProphetNet's gradient: what it computes for a token depends on the padding behind it, if ever so little."""

LARGE = 1e-4
"""Of the gradient of a loss of 30, which rounding changes more."""

each = pytest.mark.parametrize(
    "release",
    [
        pytest.param("transformers==5.16.1", marks=pytest.mark.xdist_group("transformers==5.16.1")),
        pytest.param(
            "peft==0.21.2 & transformers==5.24.0", marks=pytest.mark.xdist_group("peft==0.21.2 & transformers==5.24.0")
        ),
    ],
)


@functools.cache
def gone(release):
    media = (*SEGMENTERS, *LISTENERS, *RECOGNIZERS, *CLASSIFIERS, "wav2vec2_sum", "vit_classes")
    return results(run_on(release, SCRIPT, *EXACT, *ELSEWHERE, *media, "llama", "qwen3_moe"))


def gaps(release, model):
    """How far accumulated batches are from one large batch without the patches, and with."""
    found = gone(release)
    return found["off"][f"{model}: gap"]["returns"], found["on"][f"{model}: gap"]["returns"]


@each
@pytest.mark.parametrize("model", EXACT)
def test_accumulated_batches_are_one_large_batch(release, model):
    off, on = gaps(release, model)
    assert off > 2
    assert on < 1e-5


@each
@pytest.mark.parametrize("model", ELSEWHERE)
def test_they_are_where_another_function_computes_the_loss(release, model):
    off, on = gaps(release, model)
    assert off > 2
    assert on < (PADDED if model.startswith("prophetnet") else 1e-5)


@each
@pytest.mark.parametrize("model", [*SEGMENTERS, *LISTENERS, *RECOGNIZERS, *CLASSIFIERS])
def test_they_are_where_the_mean_is_one_of_pixels_or_rows(release, model):
    off, on = gaps(release, model)
    assert off > 2
    assert on < LARGE


@each
@pytest.mark.parametrize("model", ["wav2vec2_sum", "vit_classes"])
def test_who_is_right_is_let_alone(release, model):
    off, on = gaps(release, model)
    assert off == on < LARGE


@each
def test_the_loss_of_a_router_is_near_that_of_one_large_batch(release):
    off, on = gaps(release, "qwen3_moe")
    assert off > 0.5
    assert on < 0.05


@pytest.mark.xdist_group("transformers==4.57.6")
def test_a_router_is_seen_through_what_another_patch_adds():
    found = results(run_on("transformers==4.57.6", SCRIPT, "jamba"))
    assert found["off"]["jamba: gap"]["returns"] > 0.1
    assert found["on"]["jamba: gap"]["returns"] < 0.05


@pytest.mark.xdist_group("transformers==4.52.4")
def test_labels_that_are_not_counted_make_a_mean_of_the_batches():
    found = results(run_on("transformers==4.52.4", SCRIPT, "answers"))
    assert found["off"]["answers: gap"]["returns"] > 2
    assert found["on"]["answers: gap"]["returns"] < 1e-5
    same = [case for case in found["off"] if case.startswith("answers: ") and not case.endswith(": gap")]
    assert len(same) == 2
    assert all("returns" in found["on"][case] and found["on"][case] == found["off"][case] for case in same)


@each
def test_who_divides_by_tokens_is_let_alone(release):
    off, on = gaps(release, "llama")
    assert off == on < 1e-5


@each
def test_all_else_is_as_it_was_bit_by_bit(release):
    found = gone(release)
    same = {case for case in found["off"] if not case.endswith(": gap")}
    assert len(same) == 19
    assert {case: found["on"][case] for case in same} == {case: found["off"][case] for case in same}
