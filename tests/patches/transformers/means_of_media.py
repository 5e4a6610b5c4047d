"""Tiny models of pictures and sound whose loss is a mean that another function, or another module, computes."""

from functools import partial

import torch
import transformers

from nrl_patches.patches._shared import accumulation

LABELS = 3
SIDE = 32
PICTURE = torch.linspace(-1, 1, 3 * SIDE * SIDE).view(3, SIDE, SIDE)
SOUND = torch.linspace(0, 120, 1280).sin()
FRAMES = 160

WIDTH = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
UNDROPPED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUIET = {
    f"{name}_dropout": 0.0
    for name in ("hidden", "activation", "attention", "feat_proj", "feat_quantizer", "final", "conformer_conv")
} | {"layerdrop": 0.0}
CONVOLUTIONS = {"conv_dim": (16, 16), "conv_stride": (4, 2), "conv_kernel": (4, 2), "num_conv_pos_embeddings": 4}
HEARD = {"vocab_size": 16, "pad_token_id": 0, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False} | {
    "mask_time_prob": 0.0,
    "feat_extract_norm": "layer",
    "squeeze_factor": 1,
}
SPEAKERS = {"tdnn_dim": (16, 16), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}

RECOGNIZERS = (
    *("Data2VecAudio", "Hubert", "SEW", "SEWD", "UniSpeech", "UniSpeechSat", "Wav2Vec2", "Wav2Vec2Bert"),
    *("Wav2Vec2Conformer", "WavLM"),
)
"""What CTC trains; those of spectrograms are built apart."""

LISTENERS = ("Data2VecAudio", "UniSpeechSat", "Wav2Vec2", "Wav2Vec2Bert", "Wav2Vec2Conformer", "WavLM")
"""What tells speakers apart."""


def still(model):
    """Take the statistics of no batch, as those of a large one are others than those of its parts; and drop nothing."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval().train = lambda _=True, module=module: module
        elif isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def of_sound(kind, head, **more):
    known = {**WIDTH, **QUIET, **CONVOLUTIONS, **HEARD, **SPEAKERS, "num_labels": LABELS, **more}
    if kind == "Wav2Vec2Bert":
        known |= {"feature_projection_input_dim": 8, "conv_depthwise_kernel_size": 3}
    if kind == "Wav2Vec2Conformer":
        known |= {"conv_depthwise_kernel_size": 3}
    if kind == "SEWD":
        known |= {"max_position_embeddings": 64, "position_buckets": 8, **UNDROPPED}
    if kind == "Data2VecAudio":
        known |= {"num_conv_pos_embeddings": 1, "conv_pos_kernel_size": 3}
    model = getattr(transformers, f"{kind}For{head}")(getattr(transformers, f"{kind}Config")(**known))
    return still(model)


def of_spectrograms(kind, **more):
    encoder = {**WIDTH, "num_mel_bins": 8, "num_key_value_heads": 2, "max_position_embeddings": 256, "layerdrop": 0.0}
    encoder |= {"subsampling_conv_channels": 8, "conv_kernel_size": 3, "convolution_bias": True} | dict.fromkeys(
        ("dropout", "dropout_positions", "activation_dropout", "attention_dropout"), 0.0
    )
    config = getattr(transformers, f"{kind}CTCConfig")(
        vocab_size=16, pad_token_id=0, encoder_config=encoder, ctc_loss_reduction="mean", **more
    )
    return still(getattr(transformers, f"{kind}ForCTC")(config))


def of_pictures(kind, **sizes):
    config = getattr(transformers, f"{kind}Config")(num_labels=LABELS, semantic_loss_ignore_index=255, **sizes)
    return still(getattr(transformers, f"{kind}ForSemanticSegmentation")(config))


SEEN = {**WIDTH, **UNDROPPED, "image_size": SIDE, "patch_size": 8}

SEGMENTERS = {
    "beit": ("Beit", {**SEEN, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]}),
    "data2vec_vision": (
        "Data2VecVision",
        {**SEEN, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
    ),
    "dpt": (
        "DPT",
        {**SEEN, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16}
        | {"neck_hidden_sizes": [8, 8, 16, 16], "semantic_classifier_dropout": 0.0},
    ),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.1, "depth_divisible_by": 8, "min_depth": 8}),
    "mobilevit": (
        "MobileViT",
        {"hidden_sizes": [12, 16, 20], "neck_hidden_sizes": [8, 8, 16, 16, 32, 32, 32], "aspp_out_channels": 16},
    ),
    "mobilevitv2": (
        "MobileViTV2",
        {"width_multiplier": 0.25, "base_attn_unit_dims": [16, 24, 32], "n_attn_blocks": [1, 1, 1]}
        | {"aspp_out_channels": 16, "output_stride": 16},
    ),
    "segformer": (
        "Segformer",
        {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
        | {"drop_path_rate": 0.0},
    ),
}


def named(name, build, *args, **kwargs):
    built = partial(build, *args, **kwargs)
    built.__name__ = name
    return built


def tipsv2_dpt():
    vision = {**WIDTH, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8, "num_register_tokens": 1}
    vision |= {"out_indices": [1, 2, 3, 4], "use_swiglu_ffn": False, "reshape_hidden_states": False, "mlp_ratio": 1}
    config = transformers.Tipsv2DptConfig(
        backbone_config=transformers.Tipsv2VisionConfig(**vision, apply_layernorm=True),
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        reassemble_factors=[4, 2, 1, 0.5],
        num_labels=LABELS,
    )
    return still(transformers.Tipsv2DptForSemanticSegmentation(config))


def of_music(prefix):
    decoder = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    decoder |= {"num_codebooks": 4, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    encoder = {"vocab_size": 16, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = getattr(transformers, f"{prefix}Config")(
        text_encoder=transformers.T5Config(**encoder, dropout_rate=0.0).to_dict(),
        audio_encoder=transformers.EncodecConfig(hidden_size=16, num_filters=4, codebook_size=16).to_dict(),
        decoder={**decoder, "pad_token_id": 0, "bos_token_id": 0, "decoder_start_token_id": 0},
    )
    config.decoder.decoder_start_token_id = 0
    return still(getattr(transformers, f"{prefix}ForConditionalGeneration")(config))


def of_images(kind, **more):
    known = {**WIDTH, **UNDROPPED, "image_size": SIDE, "patch_size": 8, "num_labels": LABELS, **more}
    config = getattr(transformers, f"{kind}Config")(**known)
    return still(getattr(transformers, f"{kind}ForImageClassification")(config))


def zamba2_regression():
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "layers_block_type": ["mamba"], "head_dim": 8}
    state = {"mamba_d_state": 4, "n_mamba_heads": 2, "mamba_headdim": 16, "mamba_ngroups": 1, "chunk_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16, "num_mem_blocks": 1}
    config = transformers.Zamba2Config(**sizes, **state, **heads, pad_token_id=0, use_mem_rope=False, num_labels=1)
    return still(transformers.Zamba2ForSequenceClassification(config))


CLASSIFIERS = {
    **{
        f"{kind.lower()}_regression": named(f"{kind.lower()}_regression", of_images, kind, num_labels=1)
        for kind in ("DeiT", "Dinov2", "IJepa", "ViT", "ViTMSN")
    },
    "vit_classes": named("vit_classes", of_images, "ViT"),
    "vit_several": named("vit_several", of_images, "ViT", problem_type="multi_label_classification"),
}

MODELS = (
    *CLASSIFIERS.values(),
    zamba2_regression,
    *(named(f"{kind.lower()}_ctc", of_sound, kind, "CTC", ctc_loss_reduction="mean") for kind in RECOGNIZERS),
    *(named(f"{kind.lower()}_ctc", of_spectrograms, kind) for kind in ("Lasr", "Parakeet")),
    *(named(f"{kind.lower()}_xvector", of_sound, kind, "XVector") for kind in LISTENERS),
    *(named(name, of_pictures, kind, **sizes) for name, (kind, sizes) in SEGMENTERS.items()),
    tipsv2_dpt,
    named("musicgen", of_music, "Musicgen"),
    named("musicgen_melody", of_music, "MusicgenMelody"),
    named("wav2vec2_sum", of_sound, "Wav2Vec2", "CTC", ctc_loss_reduction="sum"),
)


def collated(name, batch):
    """Make a batch of text one of pictures or of sound, of as many rows."""
    lengths = batch["attention_mask"].sum(-1)
    scale = 1 + lengths / max(accumulation.LENGTHS)
    if name in SEGMENTERS or name == "tipsv2_dpt":
        rows = torch.arange(SIDE * SIDE).view(SIDE, SIDE) // 100
        return {
            "pixel_values": scale.view(-1, 1, 1, 1) * PICTURE,
            "labels": torch.stack([(rows + length) % LABELS for length in lengths]),
        }
    if name == "zamba2_regression":
        return {**batch, "labels": lengths / 10}
    if name in CLASSIFIERS:
        labels = lengths % LABELS if name == "vit_classes" else lengths / 10
        labels = torch.stack([lengths % 2] * LABELS, dim=-1).float() if name == "vit_several" else labels
        return {"pixel_values": scale.view(-1, 1, 1, 1) * PICTURE, "labels": labels}
    if name.startswith("musicgen"):
        labels = torch.stack([batch["labels"]] * 4, dim=-1)
        texts = {key: batch[key][:, : min(accumulation.LENGTHS)] for key in ("input_ids", "attention_mask")}
        return {**texts, "labels": labels}
    heard = SOUND * scale[:, None]
    key = "input_values"
    if name.startswith(("wav2vec2bert", "lasr", "parakeet")):
        key, heard = "input_features", heard.view(len(lengths), FRAMES, 8)
    labels = lengths % LABELS if name.endswith("_xvector") else batch["labels"]
    batch = {key: heard, "labels": labels}
    if name.startswith(("lasr", "parakeet")):
        batch["attention_mask"] = torch.ones(heard.shape[:2], dtype=torch.long)
        batch["labels"] = labels.masked_fill(labels == -100, 0)
    return batch
