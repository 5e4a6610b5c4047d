"""A dtype asked for as `dtype=`, Hugging Face's newer name, is ignored or refused.

Problem: `from_pretrained` and `from_config` (_transformers/auto_model.py) know `torch_dtype` only. What is given as
    `dtype` beside it ends in the model's config, and the model is built and restored as if nobody had asked.
Hit by: `NeMoAutoModelForCausalLM.from_pretrained(..., dtype=torch.float32, force_hf=True)` and
    `from_config(config, dtype=torch.float32)`: the weights are bfloat16, the config says float32, and AdamW's updates
    vanish. A string, `dtype="float32"`, raises TypeError where Automodel has an implementation of its own.
Fix: `dtype` takes the place of `torch_dtype` unless it is None, as it does since the fix.
Remove when: no supported release is older than nemo-automodel 0.7.0.

The third door of the release with the fix, NeMoAutoModelBiEncoder and -CrossEncoder, heeds `dtype` before it too.
"""

import inspect
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, objection_unless

patch = Patch(
    __name__,
    affected="nemo-automodel>=0.3.0,<0.7.0",
    upstream=("https://github.com/NVIDIA-NeMo/Automodel/pull/2379",),
    opt_out="NRL_DISABLE_AUTOMODEL_DTYPE_KEYWORD_PATCH",
)


def objection_unless_unknown(load: Callable[..., Any]) -> str | None:
    """Guard: the code has no word for ``dtype``; decides builds between the releases."""
    if "dtype" in getattr(inspect.unwrap(load), "__code__", objection_unless.__code__).co_consts:
        return "reads dtype, as it does since the fix"
    return objection_unless(load, parameters="torch_dtype kwargs", attributes="_build_model")


def by_newer_name(load: Callable[..., Any]) -> Callable[..., Any]:
    """Build the loader that takes either name."""

    def load_by_either_name(*args: Any, **kwargs: Any) -> Any:
        import torch

        if kwargs.get("dtype") is None:
            kwargs.pop("dtype", None)
        # Anything else, such as one dtype for each part of the model, stays with transformers, which takes or refuses
        # it: as `torch_dtype`, 0.6.0 would silently load bfloat16.
        elif isinstance(kwargs["dtype"], (str, torch.dtype)):
            kwargs["torch_dtype"] = kwargs.pop("dtype")
        return load(*args, **kwargs)

    return load_by_either_name


for _door in ("from_pretrained", "from_config"):
    patch.fix(
        f"nemo_automodel._transformers.auto_model:_BaseNeMoAutoModelClass.{_door}", guard=objection_unless_unknown
    )(by_newer_name)


@patch.probe
def float32_is_not_heard() -> Observation:
    """Ask for a model in float32 by the newer name, and look what it is built with; needs no device."""
    import torch
    from nemo_automodel._transformers import auto_model
    from transformers import LlamaConfig

    if not hasattr(auto_model._BaseNeMoAutoModelClass, "_build_model"):
        return Observation(False, {"absent": "_build_model"})  # 0.2.0, where the newer name wins on every way.

    class Asked(auto_model.NeMoAutoModelForCausalLM):  # type: ignore[misc]
        @classmethod
        def _build_model(cls, *_args: Any, torch_dtype: Any, **_kwargs: Any) -> Any:
            return torch_dtype

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    built_with = Asked.from_config(LlamaConfig(**sizes, vocab_size=16), dtype=torch.float32)
    return Observation(built_with != torch.float32, {"asked_for": "float32", "built_with": str(built_with)})
