"""Gradients under reentrant checkpointing and without, exactly, without the patches and with.

python recorded_outputs.py
"""

import gc
import json
import weakref
from functools import partial

import torch
import transformers
from patches.told import by_side
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe

from nrl_patches.patches._shared import accumulation, router_losses

EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "router_aux_loss_coef": 0.5,
}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}

NLLB = {
    "vocab_size": 16,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_experts": 4,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "moe_token_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
ENCODER_DECODERS = {"SwitchTransformers": router_losses.SWITCH, "NllbMoe": NLLB}

ROWS = accumulation.rows()
BATCH = {name: column for name, column in accumulation.collate(ROWS).items() if "type" not in name}


def build(family, *, recorded=True):
    config = getattr(transformers, f"{family}Config")
    text = accumulation.TEXT | {"num_hidden_layers": 2} | EXPERTS
    kind = "ForCausalLM"
    if family == "Qwen3VLMoe":
        kind = "ForConditionalGeneration"
        special = {"image_token_id": 12, "video_token_id": 13, "vision_start_token_id": 14, "vision_end_token_id": 15}
        made = config(text_config=text, vision_config=VISION | {"deepstack_visual_indexes": [0]}, **special)
    else:
        made = config(**text, output_router_logits=recorded)
    return accumulation.seeded(lambda: getattr(transformers, f"{family}{kind}")(made)).train()


def checkpointed(model, how):
    if how is not None:
        model.gradient_checkpointing_enable({"use_reentrant": how == "reentrant"})
    return model


def gradient(model, **more):
    loss = model(**BATCH, **more).loss
    loss.backward()
    weights = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return torch.cat([loss.detach().view(1), *weights])


def gap(family):
    expected, found = (gradient(checkpointed(build(family), how)) for how in (None, "reentrant"))
    return ((found - expected).norm() / expected.norm()).item()


def gap_of_a_model_inside():
    """Where the model has no loss of its own, the caller makes one of what is recorded."""
    found = []
    for how in (None, "reentrant"):
        model = checkpointed(build("Qwen3VLMoe"), how)
        out = model(**BATCH, output_router_logits=True)
        (out.loss + sum(logits.square().mean() for logits in out.router_logits)).backward()
        found.append(torch.cat([w.grad.flatten() for w in model.model.language_model.layers.parameters()]))
    return ((found[1] - found[0]).norm() / found[0].norm()).item()


def encoder_decoder(family):
    config = getattr(transformers, f"{family}Config")(**ENCODER_DECODERS[family])
    return accumulation.seeded(lambda: getattr(transformers, f"{family}Model")(config)).train()


def gradient_of_both_routers(model):
    """Of a loss of the caller's own: with labels NLLB-MoE of 4.57.1 takes other outputs for the router's."""
    tokens = BATCH["input_ids"]
    out = model(input_ids=tokens, decoder_input_ids=tokens, use_cache=False, output_router_logits=True)
    leaves = tree_leaves((out.encoder_router_logits, out.decoder_router_logits))
    logits = [leaf for leaf in leaves if torch.is_tensor(leaf) and leaf.is_floating_point()]
    assert len(logits) == 2
    (out.last_hidden_state[..., 0].mean() + 100 * sum(each.square().mean() for each in logits)).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def gap_of_both_routers(family):
    expected, found = (gradient_of_both_routers(checkpointed(encoder_decoder(family), h)) for h in (None, "reentrant"))
    return ((found - expected).norm() / expected.norm()).item()


def exactly(how, **options):
    return gradient(checkpointed(build("Mixtral", **options), how)).double().sum().item().hex()


def left(*, backward):
    """How many of the recorded tensors outlive the step, without a run of the garbage collector."""
    model = checkpointed(build("Mixtral"), "reentrant")
    gc.collect()
    gc.disable()
    try:
        out = model(**BATCH, output_hidden_states=True)
        seen = [weakref.ref(tensor) for tensor in (*out.router_logits, *out.hidden_states)]
        if backward:
            out.loss.backward()
        del out
        return [tensor() is None for tensor in seen].count(False)
    finally:
        gc.enable()


def by_another_function(build, gradient):
    model = build()

    def another(function, *args):
        return checkpoint(function, *args, use_reentrant=True)

    another.__qualname__ += f"_of_{type(model).__name__}"  # A name is warned of once.
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=another)
    return gradient(model).double().sum().item().hex()


def wrapped(build, gradient, implementation=CheckpointImpl.REENTRANT):
    model = build()
    layers = model.model.layers
    for at, layer in enumerate(layers):
        layers[at] = checkpoint_wrapper(layer, checkpoint_impl=implementation)
    return gradient(model, use_cache=False).double().sum().item().hex()


def without_gradients():
    """What is recorded under `no_grad`, in training mode, as of a reference model: nothing is cut off."""
    with torch.no_grad():
        return build("Mixtral")(**BATCH).loss.item().hex()


def cases():
    for family in ("Mixtral", "Qwen3Moe", "GptOss"):
        yield f"{family}: gap", partial(gap, family)
    if "router_logits" in modeling_qwen3_vl_moe.Qwen3VLMoeCausalLMOutputWithPast.__dataclass_fields__:
        yield "a model inside: gap", gap_of_a_model_inside
    for family in ENCODER_DECODERS:
        yield f"{family}: gap", partial(gap_of_both_routers, family)
    for how in (None, "non-reentrant", "reentrant"):
        yield f"nothing recorded, {how}", partial(exactly, how, recorded=False)
    for how in (None, "non-reentrant"):
        yield f"recorded, {how}", partial(exactly, how)
    yield "left of a step", partial(left, backward=True)
    yield "left of a forward", partial(left, backward=False)
    yield "by another function", partial(by_another_function, partial(build, "Mixtral"), gradient)
    yield "wrapped", partial(wrapped, partial(build, "Mixtral"), gradient)
    plain = CheckpointImpl.NO_REENTRANT
    yield "wrapped, non-reentrant", partial(wrapped, partial(build, "Mixtral"), gradient, plain)
    yield "wrapped, nothing recorded", partial(wrapped, partial(build, "Mixtral", recorded=False), gradient)
    yield "without gradients", without_gradients
    two = partial(encoder_decoder, "SwitchTransformers")
    yield "by another function, both routers", partial(by_another_function, two, gradient_of_both_routers)


if __name__ == "__main__":
    print(json.dumps(by_side(cases)))
