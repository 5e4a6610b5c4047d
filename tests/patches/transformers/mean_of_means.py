"""Models that take no number of tokens: accumulated batches and one large batch, and what must stay as it is.

python mean_of_means.py t5 qwen3_vl_moe …
"""

import json
import sys
from functools import partial
from unittest import mock

import torch
import transformers
from patches.told import by_side
from patches.transformers import added_up

from nrl_patches.patches._shared import accumulation, models_without_number, qwen3_5

ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
DEEPSTACK = {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}


def masked_bert():
    return models_without_number.tiny_bert()


def qwen2_vl():
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    images = {"image_token_id": 14, "video_token_id": 15, "vision_start_token_id": 13}
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2VLConfig(**accumulation.TEXT, **images, rope_scaling=rope, vision_config=vision)
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen3_vl():
    text = accumulation.TEXT | {"rope_parameters": ROPE, "rope_scaling": ROPE}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=VISION | DEEPSTACK)
    return transformers.Qwen3VLForConditionalGeneration(config)


def qwen3_vl_moe():
    return models_without_number.tiny_qwen3_vl_moe()


def glm4v():
    return transformers.Glm4vForConditionalGeneration(glm4v_config(transformers.Glm4vConfig))


def glm4v_moe():
    sizes = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 0}
    config = glm4v_config(transformers.Glm4vMoeConfig, **sizes, n_group=1, topk_group=1)
    return transformers.Glm4vMoeForConditionalGeneration(config)


def glm4v_config(kind, **more):
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    vision = VISION | {"out_hidden_size": 16, "image_size": 28, "patch_size": 14}
    return kind(text_config=accumulation.TEXT | more | {"rope_parameters": rope}, vision_config=vision)


def dense_qwen3_5():
    return qwen3_5.tiny_model("qwen3_5")


def qwen3_5_moe():
    return qwen3_5.tiny_model("qwen3_5_moe")


def qwen3_vl_moe_with_router():
    model = models_without_number.tiny_qwen3_vl_moe()
    model.config.text_config.output_router_logits = True
    model.config.output_router_logits = True
    return model


def pretrained_bert():
    """A BERT with two losses, of which one is a mean over rows, as in its pretraining."""
    return transformers.BertForPreTraining(models_without_number.tiny_bert().config)


def pretrained_electra():
    """One whose loss leaves out what the mask does."""
    config = models_without_number.tiny_bert().config.to_dict()
    return transformers.ElectraForPreTraining(transformers.ElectraConfig(**config, embedding_size=16))


class OwnLoss(transformers.Trainer):
    """Divides by the number that it is handed, if it is, as transformers' documentation has it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: FBT002 - upstream's
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        summed = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss = summed / (labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def between_updates(build):
    """What a callback would be told that asks for the loss of a batch."""
    heard = []

    class Asking(transformers.Trainer):
        def get_batch_samples(self, *args, **kwargs):
            found = super().get_batch_samples(*args, **kwargs)
            heard.append(self.compute_loss(self.model.train(), dict(found[0][0])).item())
            return found

    of_trainer(build, Asking)
    return heard


def of_trainer(build, trainer):
    with mock.patch.object(transformers, "Trainer", trainer):
        return added_up.exactly(build)


def evaluated(build):
    """The mean of the rows' means, as ever."""
    heard = []

    class Evaluating(transformers.Trainer):
        def train(self):
            super().train()
            self.model.load_state_dict(accumulation.seeded(build).state_dict())
            heard.append(self.evaluate()["eval_loss"])

    of_trainer(build, Evaluating)
    return heard


def denying(build):
    def denied():
        model = build()
        model.accepts_loss_kwargs = False
        return model

    denied.__name__ = build.__name__
    return denied


BUILDS = (
    glm4v,
    glm4v_moe,
    dense_qwen3_5,
    masked_bert,
    qwen2_vl,
    qwen3_5_moe,
    qwen3_vl,
    qwen3_vl_moe,
    qwen3_vl_moe_with_router,
    pretrained_bert,
)


def cases(names):
    ours = {build.__name__: build for build in BUILDS}
    for name in names:
        build = ours.get(name) or getattr(added_up, name)
        yield f"{name}: gap", partial(added_up.gap, build)
    build = masked_bert if "bert" in models_without_number.builds() else qwen3_vl_moe
    yield "one batch", partial(added_up.exactly, build, accumulated=False)
    yield "the user's loss function", partial(added_up.exactly, build, compute_loss_func=flat_loss)
    yield "label smoothing", partial(added_up.exactly, build, smoothing=0.1)
    yield "told that it is scaled", partial(added_up.exactly, build, said=True)
    yield "a Trainer with a loss of its own", partial(of_trainer, build, OwnLoss)
    yield "a loss between two updates", partial(between_updates, build)
    yield "evaluation", partial(evaluated, build)
    yield "the user denies", partial(added_up.exactly, denying(build))
    if build is masked_bert:
        yield "two kinds of labels", partial(added_up.exactly, pretrained_bert)
        yield "labels of what is not padding", partial(added_up.exactly, pretrained_electra)


def flat_loss(outputs, labels, num_items_in_batch=None):
    summed = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return summed / num_items_in_batch


if __name__ == "__main__":
    print(json.dumps(by_side(partial(cases, sys.argv[1:]))))
