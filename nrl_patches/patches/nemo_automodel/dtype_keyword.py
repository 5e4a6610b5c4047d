"""A dtype requested as `dtype=`, Hugging Face's newer name, is ignored or rejected.

Problem: `from_pretrained` and `from_config` (_transformers/auto_model.py) know `torch_dtype` only. `dtype` only reaches
    the model's config, and the model is built and restored without it.
Hit by: `NeMoAutoModelForCausalLM.from_pretrained(..., dtype=torch.float32, force_hf=True)` and
    `from_config(config, dtype=torch.float32)`: the weights are bfloat16, the config says float32, and AdamW's updates
    vanish. A string, `dtype="float32"`, raises TypeError for models that Automodel implements itself.
Fix: `dtype` replaces `torch_dtype` unless it is None, as in upstream's fix.
Remove when: no supported release is older than nemo-automodel 0.7.0.

NeMoAutoModelBiEncoder and NeMoAutoModelCrossEncoder, which the fix also touches, respect `dtype` without it.
"""

import inspect
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch

patch = Patch(
    __name__,
    affected="nemo-automodel>=0.3.0,<0.7.0",
    upstream=("https://github.com/NVIDIA-NeMo/Automodel/pull/2379",),
    opt_out="NRL_DISABLE_AUTOMODEL_DTYPE_KEYWORD_PATCH",
)


def check_dtype_unknown(load: Callable[..., Any]) -> str | None:
    """Check that the loader does not read ``dtype``; this decides for builds between releases.

    Args:
        load: ``from_pretrained`` or ``from_config`` of Automodel's base class.

    Returns:
        None if it does not, otherwise the difference.
    """
    if "dtype" in getattr(inspect.unwrap(load), "__code__", mismatch.__code__).co_consts:
        return "reads dtype, as it does since the fix"
    return mismatch(load, parameters="torch_dtype kwargs", attributes="_build_model")


def by_newer_name(load: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loader that takes either name.

    Args:
        load: ``from_pretrained`` or ``from_config``, which reads ``torch_dtype`` only.
    """

    def load_by_either_name(*args: Any, **kwargs: Any) -> Any:
        import torch

        if kwargs.get("dtype") is None:
            kwargs.pop("dtype", None)
        # transformers accepts or refuses anything else, such as one dtype per part of the model: under the name
        # `torch_dtype`, 0.6.0 would silently load bfloat16.
        elif isinstance(kwargs["dtype"], (str, torch.dtype)):
            kwargs["torch_dtype"] = kwargs.pop("dtype")
        return load(*args, **kwargs)

    return load_by_either_name


for _method in ("from_pretrained", "from_config"):
    patch.fix(f"nemo_automodel._transformers.auto_model:_BaseNeMoAutoModelClass.{_method}", guard=check_dtype_unknown)(
        by_newer_name
    )


@patch.probe
def float32_is_ignored() -> Observation:
    """Request a model in float32 by the newer name, and record the dtype that it is built with; needs no device."""
    import torch
    from nemo_automodel._transformers import auto_model
    from transformers import LlamaConfig

    if not hasattr(auto_model._BaseNeMoAutoModelClass, "_build_model"):
        return Observation(False, {"absent": "_build_model"})  # 0.2.0, which always respects the newer name.

    class Asked(auto_model.NeMoAutoModelForCausalLM):  # type: ignore[misc]
        @classmethod
        def _build_model(cls, *_args: Any, torch_dtype: Any, **_kwargs: Any) -> Any:
            return torch_dtype

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    built_with = Asked.from_config(LlamaConfig(**sizes, vocab_size=16), dtype=torch.float32)
    return Observation(built_with != torch.float32, {"asked_for": "float32", "built_with": str(built_with)})
