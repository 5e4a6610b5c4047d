"""Everything that is done to a model with KV-shared layers, in one process on one release.

    python kv_sharing_scenarios.py FAMILY WEIGHTS OUT

Writes a dict of tensors to OUT, by scenario. Makes WEIGHTS if it does not exist, else loads it: a release that carries
upstream's fix has fewer parameters, so it goes first.
"""

import contextlib
import functools
import inspect
import sys
import tempfile
from pathlib import Path

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from transformers import DynamicCache

import nrl_patches
from nrl_patches.patches._shared import kv_sharing

TOKENS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(1))
PADDING = torch.ones_like(TOKENS).index_fill(1, torch.arange(5), 0)
PADDING[0] = 1
PACKED = torch.cat([torch.arange(10), torch.arange(14)]).view(1, -1)


def build(family, weights, **changes):
    model = kv_sharing.tiny_model(family, **changes)
    if weights.exists():
        missing, unexpected = model.load_state_dict(torch.load(weights), strict=False)
        own = ("k_proj", "v_proj", "k_norm", "v_norm")
        assert not unexpected, unexpected
        assert all(name.split(".")[-2] in own for name in missing), missing
    else:
        torch.save(model.state_dict(), weights)
    return model


def gradients(model, *batches, backwards=1, **kwargs):
    model.train()
    model.zero_grad()
    loss = sum(model(batch, labels=batch, **kwargs).loss for batch in (batches or (TOKENS,)))
    for left in reversed(range(backwards)):
        loss.backward(retain_graph=left > 0)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    return {"loss": loss.detach(), **grads}


@contextlib.contextmanager
def checkpointing(model, *, reentrant=False):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    yield
    model.gradient_checkpointing_disable()


def scenarios(family, weights):  # noqa: C901, PLR0915 - one long list is easier to read than its parts
    """Yield name, thunk; a thunk returns a tensor or a dict of tensors."""
    models = {}

    def model(attention="sdpa", **changes):
        key = (attention, *sorted(changes))
        if key not in models:
            models[key] = build(family, weights, attn_implementation=attention, **changes).eval()
        return models[key]

    def logits(attention, training, **kwargs):
        with torch.no_grad():
            return model(attention).train(training)(**kwargs).logits

    for attention in ("eager", "sdpa"):
        for training in (False, True):
            mode = f"{attention}/{'train' if training else 'eval'}"
            for label, use_cache in (("cache", {"use_cache": True}), ("nocache", {"use_cache": False}), ("unset", {})):
                call = {"input_ids": TOKENS, **use_cache}
                yield f"logits/{mode}/{label}", lambda a=attention, t=training, c=call: logits(a, t, **c)
                padded = {**call, "attention_mask": PADDING}
                yield f"logits/{mode}/{label}/padded", lambda a=attention, t=training, c=padded: logits(a, t, **c)
            packed = {"input_ids": TOKENS[:1], "position_ids": PACKED, "use_cache": False}
            yield f"logits/{mode}/packed", lambda a=attention, t=training, c=packed: logits(a, t, **c)
        for label, use_cache in (("cache", {"use_cache": True}), ("nocache", {"use_cache": False}), ("unset", {})):
            yield f"grad/{attention}/{label}", lambda a=attention, c=use_cache: gradients(model(a), **c)
        yield f"grad/{attention}/given", lambda a=attention: gradients(model(a), past_key_values=DynamicCache())
        yield (
            f"grad/{attention}/padded",
            lambda a=attention: gradients(model(a), attention_mask=PADDING, use_cache=False),
        )
        yield (
            f"grad/{attention}/two_forwards",
            lambda a=attention: gradients(model(a), TOKENS, TOKENS.flip(1), use_cache=False),
        )

    yield "grad/sdpa/two_backwards", lambda: gradients(model(), use_cache=False, backwards=2)

    def checkpointed(*batches, **kwargs):
        with checkpointing(model()):
            return gradients(model(), *batches, **kwargs)

    def default():
        model().gradient_checkpointing_enable()
        try:
            return gradients(model(), use_cache=False)
        finally:
            model().gradient_checkpointing_disable()

    def wrapped(*batches, reentrant=(), again=range(6), **kwargs):
        module = build(family, weights)
        for index, layer in enumerate(module.model.layers):
            kind = CheckpointImpl.REENTRANT if index in reentrant else CheckpointImpl.NO_REENTRANT
            if index in reentrant or index in again:
                module.model.layers[index] = checkpoint_wrapper(layer, checkpoint_impl=kind)
        grads = gradients(module, *batches, use_cache=False, **kwargs)
        return {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in grads.items()}

    yield "checkpoint/nocache", lambda: checkpointed(use_cache=False)
    yield "checkpoint/default", default
    yield "checkpoint/cache", lambda: checkpointed(use_cache=True)
    yield "checkpoint/two_forwards", lambda: checkpointed(TOKENS, TOKENS.flip(1), use_cache=False)
    yield "checkpoint/wrapper", wrapped

    def reentrant(*batches, **kwargs):
        with checkpointing(model(), reentrant=True):
            return gradients(model(), *batches, use_cache=False, **kwargs)

    two = (TOKENS, TOKENS.flip(1))
    yield "reentrant/enabled", reentrant
    yield "reentrant/two_forwards", lambda: reentrant(*two)
    yield "reentrant/two_backwards", lambda: reentrant(backwards=2)
    yield "reentrant/wrapper", lambda: wrapped(reentrant=range(6))
    yield "reentrant/donors", lambda: wrapped(reentrant=range(4), again=())
    yield "reentrant/readers", lambda: wrapped(reentrant=(4, 5), again=())
    yield "reentrant/one_reader", lambda: wrapped(reentrant=(5,), again=())
    yield "reentrant/donors_only_not", lambda: wrapped(reentrant=(4, 5), again=range(4))
    yield "reentrant/readers_only_not", lambda: wrapped(reentrant=range(4), again=(4, 5))
    yield "reentrant/readers/two_backwards", lambda: wrapped(reentrant=(4, 5), again=(), backwards=2)

    def by_position(call):
        """Have layers that pass all to their attention by position, as an override of a layer may."""
        attentions = [layer.self_attn for layer in model().model.layers]

        def forward(attention, *args, **kwargs):
            names = [p.name for p in inspect.signature(type(attention).forward).parameters.values()][1:]
            given = names[: 1 + max(names.index(name) for name in kwargs.keys() & set(names))]
            return type(attention).forward(attention, *args, *(kwargs.pop(name, None) for name in given), **kwargs)

        for attention in attentions:
            attention.forward = functools.partial(forward, attention)
        try:
            return call()
        finally:
            for attention in attentions:
                del attention.forward

    yield "by_position/logits", lambda: by_position(lambda: logits("sdpa", training=False, input_ids=TOKENS))
    yield "by_position/grad/nocache", lambda: by_position(lambda: gradients(model(), use_cache=False))
    yield "by_position/checkpoint", lambda: by_position(lambda: checkpointed(use_cache=False))

    def generated():
        return model().generate(TOKENS[:1], max_new_tokens=24, do_sample=False, use_cache=True)

    yield "generate", generated

    def multimodal():
        from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4VisionConfig

        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
        vision = Gemma4VisionConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
        text = kv_sharing.tiny_model(family).config
        whole = Gemma4ForConditionalGeneration(Gemma4Config(text_config=text, vision_config=vision)).eval()
        with torch.no_grad():
            return whole(TOKENS, use_cache=True).logits - whole(TOKENS, use_cache=False).logits

    if family == "gemma4":  # The vision tower of Gemma 3n needs timm.
        yield "multimodal", multimodal

    def loaded():
        """Load what the hub has: a checkpoint in which the shared layers have projections that nobody uses."""
        module, width = model(), model().config.head_dim
        states = {name: state.clone() for name, state in module.state_dict().items()}
        idle = {"k_proj.weight": (width, 32), "v_proj.weight": (width, 32), "k_norm.weight": (width,)}
        states |= {f"model.layers.5.self_attn.{name}": torch.ones(shape) for name, shape in idle.items()}
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder, state_dict=states)
            again, said = type(module).from_pretrained(folder, output_loading_info=True)
        kept = all(torch.equal(again.state_dict()[n], state) for n, state in module.state_dict().items())
        with torch.no_grad():
            logits = again.eval()(TOKENS, use_cache=False).logits
        said = {kind: torch.tensor(float(len(said[kind]))) for kind in ("missing_keys", "unexpected_keys")}
        return (
            said
            | {"kept": torch.tensor(float(kept)), "parameters": torch.tensor(float(len(again.state_dict())))}
            | {"logits": logits}
        )

    yield "loaded", loaded


def outcome(thunk):
    """Return a dict of tensors, or the exception as text: which scenarios raise is part of the result."""
    try:
        result = thunk()
    except Exception as error:  # noqa: BLE001 - whatever a release raises
        return f"{type(error).__name__}: {error}"[:400]
    return result if isinstance(result, dict) else {"value": result}


def main():
    family, weights, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.manual_seed(0)
    found = {}
    for name, thunk in scenarios(family, weights):
        found[name] = outcome(thunk)
    found["status"] = {patch_id: str(status.state) for patch_id, status in nrl_patches.status().items()}
    torch.save(found, out)


if __name__ == "__main__":
    main()
