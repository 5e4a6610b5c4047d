"""Tiny models whose loss is a mean that another function, or another module, computes; and batches for them."""

import torch
import transformers

from nrl_patches.patches._shared import accumulation

TOKENS = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
UNDROPPED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IMAGE = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)
PATCHES = torch.linspace(-1, 1, 4 * 14).view(1, 4, 14)
PATCHES[..., :2] = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2]])  # Row and column, from 1 on.


def of_xlm(prefix):
    sizes = {"n_words": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "pad_index": 0, "max_position_embeddings": 32}
    config = getattr(transformers, f"{prefix}Config")(**sizes, dropout=0.0, attention_dropout=0.0)
    return getattr(transformers, f"{prefix}WithLMHeadModel")(config)


def xlm():
    return of_xlm("XLM")


def flaubert():
    return of_xlm("Flaubert")


def of_prophetnet(kind, **more):
    sides = ("encoder", "decoder")
    names = (("ffn_dim", 16), ("attention_heads", 2))
    sizes = {f"num_{side}_layers": 1 for side in sides} | {
        f"{'num_' if name == 'attention_heads' else ''}{side}_{name}": n for side in sides for name, n in names
    }
    dropouts = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    known = {"ngram": 2, "num_buckets": 8, "relative_max_distance": 16, "max_position_embeddings": 64}
    config = transformers.ProphetNetConfig(
        **TOKENS, hidden_size=16, decoder_start_token_id=1, **sizes, **dropouts, **known, **more
    )
    return getattr(transformers, f"ProphetNetFor{kind}")(config)


def prophetnet():
    return of_prophetnet("ConditionalGeneration")


def prophetnet_smoothed():
    return of_prophetnet("ConditionalGeneration", eps=0.1)


def prophetnet_decoder():
    return of_prophetnet("CausalLM")


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=16, dim=16, hidden_dim=16, n_layers=1, n_heads=2, dropout=0.0, attention_dropout=0.0
    )
    return transformers.DistilBertForMaskedLM(config)


def deberta_classifier():
    return transformers.DebertaForSequenceClassification(
        transformers.DebertaConfig(vocab_size=16, **ENCODER, **UNDROPPED, num_labels=3, pooler_dropout=0.0)
    )


def deberta_v2_classifier():
    return transformers.DebertaV2ForSequenceClassification(
        transformers.DebertaV2Config(vocab_size=16, **ENCODER, **UNDROPPED, num_labels=3, pooler_dropout=0.0)
    )


def blip_text():
    return {**TOKENS, **ENCODER, **UNDROPPED, "encoder_hidden_size": 16, "projection_dim": 16, "is_decoder": True}


def blip():
    vision = {**ENCODER, "image_size": 8, "patch_size": 4, "attention_dropout": 0.0}
    return transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=blip_text(), vision_config=vision, projection_dim=16)
    )


def blip_decoder():
    return transformers.models.blip.modeling_blip_text.BlipTextLMHeadModel(transformers.BlipTextConfig(**blip_text()))


def qwen2_audio():
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    audio |= {"num_mel_bins": 8, "max_source_positions": 8}
    config = transformers.Qwen2AudioConfig(
        text_config={"model_type": "qwen2", **accumulation.TEXT},
        audio_config={"model_type": "qwen2_audio_encoder", **audio},
        audio_token_index=15,
    )
    return transformers.Qwen2AudioForConditionalGeneration(config)


def pix2struct_text():
    sizes = {"vocab_size": 16, "hidden_size": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return {**sizes, "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0} | {
        "initializer_range": 0.02
    }


def pix2struct():
    vision = {"hidden_size": 16, "patch_embed_hidden_size": 12, "d_ff": 16, "d_kv": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "dropout_rate": 0.0, "attention_dropout": 0.0, "seq_len": 4}
    return transformers.Pix2StructForConditionalGeneration(
        transformers.Pix2StructConfig(text_config=pix2struct_text(), vision_config=vision)
    )


def pix2struct_decoder():
    return transformers.Pix2StructTextModel(transformers.Pix2StructTextConfig(**pix2struct_text(), is_decoder=True))


MODELS = (
    xlm,
    flaubert,
    prophetnet,
    prophetnet_smoothed,
    prophetnet_decoder,
    distilbert,
    deberta_classifier,
    deberta_v2_classifier,
    blip,
    blip_decoder,
    qwen2_audio,
    pix2struct,
    pix2struct_decoder,
)


def collated(name, batch):
    """Make a batch of text that of a model."""
    rows = len(batch["input_ids"])
    if name == "blip":
        batch["pixel_values"] = IMAGE.repeat(rows, 1, 1, 1)
    if name == "pix2struct":
        batch = {"labels": batch["labels"], "flattened_patches": PATCHES.repeat(rows, 1, 1)}
    return batch
