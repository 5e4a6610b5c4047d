"""Tiny models whose loss is a mean that another function, or another module, computes; and batches for them."""

from functools import partial

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


def blip_answers():
    vision = {**ENCODER, "image_size": 8, "patch_size": 4, "attention_dropout": 0.0}
    return transformers.BlipForQuestionAnswering(
        transformers.BlipConfig(text_config=blip_text(), vision_config=vision, projection_dim=16)
    )


def of_blip_2(text, prefix="Blip2", image="image_token_index"):
    vision = {**ENCODER, "image_size": 8, "patch_size": 4, "attention_dropout": 0.0}
    queries = {**ENCODER, **UNDROPPED, "encoder_hidden_size": 16, "vocab_size": 16}
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision, qformer_config=queries, text_config=text, num_query_tokens=2, **{image: 16}
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    for weight in model.language_model.parameters():  # Some releases leave them as the memory was.
        torch.nn.init.normal_(weight, std=0.1)
    return model


def blip_2():
    sizes = {"vocab_size": 17, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "opt", **sizes, "dropout": 0.0, "word_embed_proj_dim": 16, "max_position_embeddings": 64}
    return of_blip_2({**text, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})


def of_t5():
    sizes = {"vocab_size": 17, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return {"model_type": "t5", **sizes, "dropout_rate": 0.0, "decoder_start_token_id": 0}


def blip_2_t5():
    return of_blip_2(of_t5())


def instructblip_t5():
    return of_blip_2(of_t5(), "InstructBlip")


def instructblipvideo_t5():
    return of_blip_2(of_t5(), "InstructBlipVideo", "video_token_index")


def of_luke(head):
    config = transformers.LukeConfig(
        vocab_size=16, entity_vocab_size=8, entity_emb_size=8, **ENCODER, **UNDROPPED, pad_token_id=0, num_labels=3
    )
    return getattr(transformers, f"LukeFor{head}")(config)


def luke():
    return of_luke("MaskedLM")


def luke_entity_classifier():
    return of_luke("EntityClassification")


def luke_pair_classifier():
    return of_luke("EntityPairClassification")


def luke_spans():
    return of_luke("EntitySpanClassification")


def lxmert_classifier():
    sizes = {name: size for name, size in ENCODER.items() if name != "num_hidden_layers"}
    layers = {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 8, "num_qa_labels": 3}
    return transformers.LxmertForQuestionAnswering(
        transformers.LxmertConfig(vocab_size=16, **sizes, **layers, **UNDROPPED)
    )


def vilt():
    config = transformers.ViltConfig(vocab_size=16, **ENCODER, image_size=8, patch_size=4, num_labels=3)
    return transformers.ViltForQuestionAnswering(config)


def of_visual_bert(head):
    config = transformers.VisualBertConfig(
        vocab_size=16, **ENCODER, **UNDROPPED, visual_embedding_dim=8, num_labels=3, pad_token_id=0
    )
    return getattr(transformers, f"VisualBertFor{head}")(config)


def visual_bert():
    return of_visual_bert("QuestionAnswering")


def visual_bert_regions():
    return of_visual_bert("RegionToPhraseAlignment")


def gemma3_classifier():
    vision = {**ENCODER, "image_size": 8, "patch_size": 4}
    text = {**accumulation.TEXT, "attention_dropout": 0.0, "num_hidden_layers": 1}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=15, num_labels=3
    )
    return transformers.Gemma3ForSequenceClassification(config)


def cohere_compass_classifier():
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    config = transformers.CohereCompassTextConfig(**accumulation.TEXT, num_labels=3, rope_parameters=rope)
    return transformers.CohereCompassTextForSequenceClassification(config)


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
    blip_answers,
    blip_2,
    blip_2_t5,
    instructblip_t5,
    instructblipvideo_t5,
    luke,
    luke_entity_classifier,
    luke_pair_classifier,
    luke_spans,
    lxmert_classifier,
    vilt,
    visual_bert,
    visual_bert_regions,
    gemma3_classifier,
    cohere_compass_classifier,
)


def with_images(batch):
    return batch | {"pixel_values": IMAGE.repeat(len(batch["labels"]), 1, 1, 1)}


def with_answers(batch):
    """What it answers is what it reads, and no label can be left out."""
    return with_images(cut(batch) | {"labels": cut(batch)["input_ids"]})


def with_places(batch):
    seen = torch.full((len(batch["labels"]), 2), 16)
    ids = torch.cat([seen, batch["input_ids"]], dim=-1)
    mask = torch.cat([torch.ones_like(seen), batch["attention_mask"]], dim=-1)
    return with_images(batch | {"input_ids": ids, "attention_mask": mask})


def asked(batch, images=1):
    rows = len(batch["labels"])
    ids = torch.tensor([[16] * 2 * images + [3]]).repeat(rows, 1)
    batch = with_images({"input_ids": ids, "labels": batch["labels"]})
    return batch | {"qformer_input_ids": torch.full((rows, 2), 3)}


def asked_of_images(batch):
    batch = asked(batch, images=4)
    return batch | {"pixel_values": batch["pixel_values"][:, None].repeat(1, 4, 1, 1, 1)}


def asked_without_query(batch):
    return {name: value for name, value in asked(batch).items() if name != "qformer_input_ids"}


def with_patches(batch):
    return {"labels": batch["labels"], "flattened_patches": PATCHES.repeat(len(batch["labels"]), 1, 1)}


def with_entities(batch, count=1):
    rows = len(batch["labels"])
    entities = torch.ones(rows, count, dtype=torch.long)
    places = torch.arange(count)[:, None].expand(rows, count, 2).clone()
    known = {"entity_ids": entities, "entity_attention_mask": entities.clone(), "entity_position_ids": places}
    return batch | known | {"labels": classes(batch)}


def with_spans(batch):
    batch = with_entities(batch)
    ends = torch.ones_like(batch["entity_ids"])
    spans = {"entity_start_positions": ends, "entity_end_positions": ends.clone()}
    return batch | spans | {"labels": batch["labels"][:, None]}


def with_features(batch):
    rows = len(batch["labels"])
    features = {"visual_feats": torch.ones(rows, 2, 8), "visual_pos": torch.ones(rows, 2, 4)}
    return batch | features | {"labels": classes(batch)}


def with_odds(batch):
    return batch | {"labels": one_hot(classes(batch), 3)}


def with_regions(batch):
    batch, rows = cut(batch), len(batch["labels"])
    regions = torch.tensor([[[0.5], [-1.0]]]).expand(rows, 2, 8)
    odds = one_hot(classes(batch) % 2, 2)[:, None].expand(rows, 5, 2).clone()
    phrases = {"region_to_phrase_position": torch.zeros(rows, 5, dtype=torch.long), "labels": odds}
    return batch | phrases | {"visual_embeds": regions.clone(), "visual_attention_mask": torch.ones(rows, 2)}


def with_embeds(batch):
    rows = len(batch["labels"])
    return with_odds(batch) | {"visual_embeds": torch.ones(rows, 2, 8), "visual_attention_mask": torch.ones(rows, 2)}


def cut(batch):
    """Leave as many tokens as each row has."""
    return {name: value[:, : min(accumulation.LENGTHS)] for name, value in batch.items()}


def classes(batch):
    return batch["input_ids"].sum(-1) % 3


def one_hot(labels, count):
    return torch.nn.functional.one_hot(labels, count).float()


BATCHES = {
    "blip": with_images,
    "blip_answers": with_answers,
    "blip_2": with_places,
    "blip_2_t5": asked_without_query,
    "instructblip_t5": asked,
    "instructblipvideo_t5": asked_of_images,
    "luke_entity_classifier": with_entities,
    "luke_pair_classifier": partial(with_entities, count=2),
    "luke_spans": with_spans,
    "lxmert_classifier": with_features,
    "pix2struct": with_patches,
    "vilt": lambda batch: with_images(with_odds(batch)),
    "visual_bert": with_embeds,
    "visual_bert_regions": with_regions,
}


def collated(name, batch):
    """Make a batch of text that of a model."""
    return BATCHES.get(name, dict)(batch)
