"""Gradients of accumulated batches and of one large batch, exactly, without the patches and with.

python added_up.py bert llama t5 …
"""

import json
import sys
import tempfile
from functools import partial

import torch
import transformers
from patches.told import by_side
from patches.transformers import means_elsewhere, means_of_media
from patches.transformers.means_elsewhere import distilbert, prophetnet

from nrl_patches.patches._shared import accumulation, state_space_models, uncounted

LABELS = 3

MEDIA = {build.__name__: means_of_media.collated for build in means_of_media.MODELS}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**accumulation.TEXT))


def bert():
    sizes = {name: accumulation.TEXT[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**sizes, **dropouts, num_hidden_layers=1, num_attention_heads=2, num_labels=LABELS)
    return transformers.BertForSequenceClassification(config)


def bart_decoder():
    return transformers.BartForCausalLM(bart_config(is_decoder=True))


def bart():
    return transformers.BartForConditionalGeneration(bart_config())


def bart_config(**more):
    sides = ("encoder", "decoder")
    sizes = {
        f"{side}_{name}": n for side in sides for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    }
    dropouts = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return transformers.BartConfig(vocab_size=16, d_model=16, **sizes, **dropouts, **tokens, **more)


def t5():
    sizes = {"vocab_size": 16, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def qwen3_moe(coefficient=0.5):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "output_router_logits": True}
    config = transformers.Qwen3MoeConfig(**accumulation.TEXT, **experts, router_aux_loss_coef=coefficient)
    return transformers.Qwen3MoeForCausalLM(config)


def jamba():
    """Its ``forward`` is one that another patch is put around, up to 5.16.1."""
    experts = {"output_router_logits": True, "router_aux_loss_coef": 0.5, "num_experts": 4, "num_experts_per_tok": 2}
    return state_space_models.tiny_model("Jamba", "sdpa", **experts, expert_layer_period=1, expert_layer_offset=0)


def answers():
    return uncounted.tiny_answerer()


def classifier():
    return transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**accumulation.TEXT, num_labels=LABELS))


def classifier_with_own_loss():
    """What a user's loss function is a mean of, and whether it is one, nobody knows."""
    model = classifier()
    model.loss_function = lambda labels, pooled_logits, **_: torch.nn.functional.cross_entropy(pooled_logits, labels)
    return model


def distilbert_with_a_sum():
    """Accumulated sums are that of one large batch, and no mean."""
    model = distilbert()
    model.mlm_loss_fct = torch.nn.CrossEntropyLoss(reduction="sum")
    return model


def prophetnet_with_own_loss():
    model = prophetnet()

    class OwnLoss(type(model)):
        __module__ = type(model).__module__  # transformers reads the source of the module that a class is from.

        def _compute_loss(self, logits, *_):
            return logits.flatten(0, 1).logsumexp(-1).sum()

    OwnLoss._compute_loss.__module__ = __name__
    model.__class__ = OwnLoss
    return model


def bert_that_denies():
    model = bert()
    model.accepts_loss_kwargs = False
    return model


def collate(build, rows):
    if build.__name__ == "answers":
        return uncounted.with_answers(rows)
    batch = accumulation.collate(rows)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    if build.__name__.startswith(("bert", "classifier")) or build.__name__.endswith("_classifier"):
        batch["labels"] = torch.tensor([len(row) % LABELS for row in rows])
    if build.__name__ == "pretrained_bert":
        batch["next_sentence_label"] = torch.tensor([len(row) % 2 for row in rows])
    name = build.__name__
    return MEDIA[name](name, batch) if name in MEDIA else means_elsewhere.collated(name, batch)


def update(build, *, accumulated=True, arguments=None, smoothing=0.0, said=None, **trainer):
    """Return the gradient of all weights after one update, by a Trainer with some options."""
    rows = len(accumulation.LENGTHS)
    batch, steps = (1, rows) if accumulated else (rows, 1)
    model = accumulation.seeded(build)
    before = [weight.detach().clone() for weight in model.parameters()]
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            label_smoothing_factor=smoothing,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **arguments or {},
        )
        collator = partial(collate, build)
        training = transformers.Trainer(
            model, settings, collator, accumulation.rows(), eval_dataset=accumulation.rows(), **trainer
        )
        training.loss_is_scaled_for_ga = said
        training.train()
    return torch.cat([(old - new.detach()).flatten() for old, new in zip(before, model.parameters(), strict=True)])


def gap(build):
    """How far the gradient of accumulated batches is from that of one large batch."""
    one = update(build, accumulated=False)
    return ((update(build) - one).norm() / one.norm()).item()


def exactly(build, **options):
    return update(build, **options).sum().item().hex()


def evaluated(build):
    """The loss of an evaluation by a Trainer that would accumulate."""
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder, gradient_accumulation_steps=4, remove_unused_columns=False, report_to=[], use_cpu=True
        )
        training = transformers.Trainer(accumulation.seeded(build), settings, partial(collate, build))
        return training.evaluate(accumulation.rows())["eval_loss"].hex()


def own_loss(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def loss_of_answers(outputs, labels, num_items_in_batch=None):  # noqa: ARG001 - as the Trainer calls it
    return outputs.start_logits.logsumexp(-1).sum()


def flat_loss(outputs, labels, num_items_in_batch=None):  # noqa: ARG001 - as the Trainer calls it
    """Some loss of speech, and no CTC."""
    return outputs.logits.logsumexp(-1).sum() / num_items_in_batch


def cases(names):
    elsewhere = {build.__name__: build for build in (*means_elsewhere.MODELS, *means_of_media.MODELS)}
    for name in names:
        yield f"{name}: gap", partial(gap, globals().get(name) or elsewhere[name])
    yield "llama: exactly", partial(exactly, llama)
    yield "bert: one batch", partial(exactly, bert, accumulated=False)
    yield "bert: compute_loss_func", partial(exactly, bert, compute_loss_func=own_loss)
    yield "bert: label smoothing", partial(exactly, bert, smoothing=0.1)
    yield "bert: told that it is scaled", partial(exactly, bert, said=True)
    yield "bert: told that it is not", partial(exactly, bert, said=False)
    wav2vec2_ctc = elsewhere["wav2vec2_ctc"]
    yield "wav2vec2: evaluation", partial(evaluated, wav2vec2_ctc)
    yield "wav2vec2: one batch", partial(exactly, wav2vec2_ctc, accumulated=False)
    yield "wav2vec2: compute_loss_func", partial(exactly, wav2vec2_ctc, compute_loss_func=flat_loss)
    yield "wav2vec2: told that it is not", partial(exactly, wav2vec2_ctc, said=False)
    yield "bert: evaluation", partial(evaluated, bert)
    yield "answers: one batch", partial(exactly, answers, accumulated=False)
    yield "answers: compute_loss_func", partial(exactly, answers, compute_loss_func=loss_of_answers)
    yield "classifier: a loss function of its own", partial(exactly, classifier_with_own_loss)
    yield "distilbert: a sum", partial(exactly, distilbert_with_a_sum)
    yield "prophetnet: a loss of its own", partial(exactly, prophetnet_with_own_loss)
    yield "bert: denies", partial(exactly, bert_that_denies)
    yield "qwen3_moe: one batch", partial(exactly, qwen3_moe, accumulated=False)
    yield "qwen3_moe: no router's loss", partial(exactly, partial_named(qwen3_moe, 0.0))


def partial_named(build, *args):
    built = partial(build, *args)
    built.__name__ = build.__name__
    return built


if __name__ == "__main__":
    print(json.dumps(by_side(partial(cases, sys.argv[1:]))))
