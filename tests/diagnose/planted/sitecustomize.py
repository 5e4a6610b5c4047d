"""Faults for vLLM, planted in the interpreter that finds this folder on its path.

- A sequence may be one token longer than ``max_model_len``.
- The logits of a step in which all requests are decoded are not those of prefill.
- The logits of requests whose prefix was cached are NaN.
- A refit in batches leaves one weight as it was.
"""

import wrapt

DROPPED = "model.layers.1.mlp.down_proj.weight"
seen = {"decode": False, "cached": False}


def look(wrapped, _instance, args, kwargs):
    output = args[0] if args else kwargs["scheduler_output"]
    new = output.scheduled_new_reqs
    if new:
        seen["cached"] = any(request.num_computed_tokens for request in new)
    counts = output.num_scheduled_tokens.values()
    seen["decode"] = not new and set(counts) == {1}
    return wrapped(*args, **kwargs)


def spoil(wrapped, _instance, args, kwargs):
    logits = args[0] if args else kwargs["logits"]
    if seen["cached"]:
        logits[:] = float("nan")
    elif seen["decode"]:
        logits[:, ::2] *= 1.5
    return wrapped(*args, **kwargs)


def lengthen(wrapped, instance, args, kwargs):
    instance.max_model_len += 1
    return wrapped(*args, **kwargs)


def drop(wrapped, _instance, args, kwargs):
    weights = list(args[0] if args else kwargs["weights"])
    if not any(name == "model.embed_tokens.weight" for name, _ in weights):
        weights = [(name, weight) for name, weight in weights if name != DROPPED]
    return wrapped(iter(weights))


for module, name, wrapper in (
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.execute_model", look),
    ("vllm.v1.sample.sampler", "Sampler.forward", spoil),
    ("vllm.engine.arg_utils", "EngineArgs.create_model_config", lengthen),
    ("vllm.model_executor.models.gemma3", "Gemma3ForCausalLM.load_weights", drop),
):
    wrapt.when_imported(module)(
        lambda found, name=name, wrapper=wrapper: wrapt.wrap_function_wrapper(found, name, wrapper)
    )
