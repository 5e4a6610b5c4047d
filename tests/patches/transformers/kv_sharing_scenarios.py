"""Everything that is done to a model with KV-shared layers, in one process on one release.

    python kv_sharing_scenarios.py FAMILY WEIGHTS OUT

Writes a dict of tensors to OUT, by scenario. Makes WEIGHTS if it does not exist, else loads it: a release that carries
upstream's fix has fewer parameters, so it goes first.
"""

import contextlib
import sys
from pathlib import Path

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import DynamicCache

import nrl_patches
from nrl_patches.patches.transformers import _kv_sharing

TOKENS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(1))
PADDING = torch.ones_like(TOKENS).index_fill(1, torch.arange(5), 0)
PADDING[0] = 1
PACKED = torch.cat([torch.arange(10), torch.arange(14)]).view(1, -1)


def build(family, weights, **changes):
    model = _kv_sharing.tiny_model(family, **changes)
    if weights.exists():
        missing, unexpected = model.load_state_dict(torch.load(weights), strict=False)
        own = ("k_proj", "v_proj", "k_norm", "v_norm")
        assert not unexpected, unexpected
        assert all(name.split(".")[-2] in own for name in missing), missing
    else:
        torch.save(model.state_dict(), weights)
    return model


def gradients(model, *batches, **kwargs):
    model.train()
    model.zero_grad()
    loss = sum(model(batch, labels=batch, **kwargs).loss for batch in (batches or (TOKENS,)))
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    return {"loss": loss.detach(), **grads}


@contextlib.contextmanager
def checkpointing(model, *, reentrant=False):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    yield
    model.gradient_checkpointing_disable()


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=True)


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

    def checkpointed(*batches, **kwargs):
        with checkpointing(model()):
            return gradients(model(), *batches, **kwargs)

    def wrapped():
        module = build(family, weights)
        for index, layer in enumerate(module.model.layers):
            module.model.layers[index] = checkpoint_wrapper(layer)
        grads = gradients(module, use_cache=False)
        return {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in grads.items()}

    yield "checkpoint/nocache", lambda: checkpointed(use_cache=False)
    yield "checkpoint/cache", lambda: checkpointed(use_cache=True)
    yield "checkpoint/two_forwards", lambda: checkpointed(TOKENS, TOKENS.flip(1), use_cache=False)
    yield "checkpoint/wrapper", wrapped

    def generated():
        return model().generate(TOKENS[:1], max_new_tokens=24, do_sample=False, use_cache=True)

    yield "generate", generated

    def multimodal():
        from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4VisionConfig

        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
        vision = Gemma4VisionConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
        text = _kv_sharing.tiny_model(family).config
        whole = Gemma4ForConditionalGeneration(Gemma4Config(text_config=text, vision_config=vision)).eval()
        with torch.no_grad():
            return whole(TOKENS, use_cache=True).logits - whole(TOKENS, use_cache=False).logits

    if family == "gemma4":  # The vision tower of Gemma 3n needs timm.
        yield "multimodal", multimodal

    def compiled_logits(use_cache):
        with torch.no_grad():
            return compiled(model())(TOKENS, use_cache=use_cache).logits

    yield "compiled/logits/nocache", lambda: compiled_logits(use_cache=False)
    yield "compiled/logits/cache", lambda: compiled_logits(use_cache=True)

    def compiled_gradients():
        module = model()
        return gradients_of(compiled(module), module)

    def gradients_of(function, module):
        module.train()
        module.zero_grad()
        loss = function(TOKENS, labels=TOKENS, use_cache=False).loss
        loss.backward()
        grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        module.zero_grad()
        module.eval()
        return {"loss": loss.detach(), **grads}

    yield "compiled/grad", compiled_gradients

    def compiled_checkpoint():
        with checkpointing(model()):
            return compiled_gradients()

    yield "compiled/checkpoint", compiled_checkpoint


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
