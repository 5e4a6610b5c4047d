"""An explicit request for float32 is cast back to the checkpoint's bfloat16.

Problem: `_restore_loaded_model_dtype` (_transformers/model_init.py) gives every loaded tensor the dtype that it has in
    the file, whatever dtype was requested.
Hit by: `NeMoAutoModelForCausalLM.from_pretrained(..., torch_dtype=torch.float32)` of a model that Hugging Face
    implements. AdamW's updates are smaller than half an ULP of bfloat16, and the policy does not learn.
Fix: `_init_model` notes the requested dtype, and the restore respects it. Float32 or wider is kept. "auto" is restored
    to the file, as before. Under a 16-bit request, tensors that the file holds in float32 are restored, as before;
    float16 and bfloat16 are not converted into each other, which would lose bits.
Remove when: no supported release is older than nemo-automodel 0.5.0.

Replacing the function by one that does nothing, as NeMo RL does, would also keep float32, but under "auto" and bfloat16
it leaves in bfloat16 what the file keeps in float32, such as the A_log, D and dt_bias of Nemotron-H.
"""

import contextlib
import contextvars
import inspect
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="nemo-automodel>=0.4.0,<0.5.0",
    upstream=("https://github.com/NVIDIA-NeMo/Automodel/pull/2419",),
    opt_out="NRL_DISABLE_AUTOMODEL_DTYPE_PATCH",
)

_requested: contextvars.ContextVar[Any] = contextvars.ContextVar("nrl_requested_dtype", default=None)


@patch.fix(
    "nemo_automodel._transformers.model_init:_init_model",
    guard=lambda init: mismatch(init, parameters="torch_dtype kwargs"),
)
def note_request(init: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loader that notes which dtype was requested while it runs; None stands for the file's own.

    Args:
        init: Automodel's ``_init_model``.
    """
    signature = inspect.signature(init)

    def init_noting(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # The original raises a better message.
            return init(*args, **kwargs)
        # Hugging Face's newer name takes precedence, as there.
        token = _requested.set(_as_dtype(given.get("kwargs", {}).get("dtype") or given["torch_dtype"]))
        try:
            return init(*args, **kwargs)
        finally:
            _requested.reset(token)

    return init_noting


def _as_dtype(requested: Any) -> Any:
    from nemo_automodel.shared.utils import dtype_from_str

    if requested in (None, "auto") or isinstance(requested, dict):  # A dict has one per part of the model.
        return None
    with contextlib.suppress(KeyError, AttributeError):  # Automodel itself rejects what it cannot read.
        return dtype_from_str(requested)
    return None


def check_request_ignored(restore: Callable[..., Any]) -> str | None:
    """Check that the function does not get the requested dtype; this decides for builds between releases.

    Args:
        restore: Automodel's ``_restore_loaded_model_dtype``.

    Returns:
        None if it does not, otherwise the difference.
    """
    if mismatch(restore, parameters="requested_dtype") is None:
        return "takes requested_dtype, as it does since the fix"
    return mismatch(restore, parameters="model hf_config load_kwargs", attributes="_get_checkpoint_tensor_dtypes")


@patch.fix(
    "nemo_automodel._transformers.model_init:_restore_loaded_model_dtype",
    guard=check_request_ignored,
)
def restore_unless_requested(restore: Callable[..., Any]) -> Callable[..., Any]:
    """Build a restore that keeps the requested dtype.

    Args:
        restore: Automodel's ``_restore_loaded_model_dtype``, which casts each tensor to its dtype in the file.
    """

    def restore_except_requested(model: Any, *args: Any, **kwargs: Any) -> None:
        requested = _requested.get()
        if requested is None or not requested.is_floating_point:
            restore(model, *args, **kwargs)
        elif requested.itemsize < 4:  # noqa: PLR2004 - bytes of a float32
            # By reference: a cast to the other 16 bits and back is not the identity.
            loaded = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
            restore(model, *args, **kwargs)
            for tensor, data in loaded:
                if tensor.dtype != data.dtype == requested and tensor.dtype.itemsize == requested.itemsize:
                    tensor.data = data

    return restore_except_requested


@patch.probe
def float32_is_narrowed() -> Observation:
    """Load a tiny bfloat16 checkpoint in float32, by the name that ``from_pretrained`` calls; needs no device."""
    import torch
    from nemo_automodel._transformers import auto_model, model_init
    from transformers import LlamaConfig, LlamaForCausalLM

    if not hasattr(model_init, "_restore_loaded_model_dtype"):
        return Observation(
            False, {"absent": "_restore_loaded_model_dtype"}
        )  # 0.3.0, which cannot load this way at all.
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=16, tie_word_embeddings=False)
    with quiet(), TemporaryDirectory() as directory, torch.random.fork_rng():
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
        loader = auto_model.NeMoAutoModelForCausalLM
        _, model = auto_model._init_model(loader, directory, "eager", torch.float32, None, True)
    narrowed = sum(weight.dtype != torch.float32 for weight in model.parameters())
    return Observation(bool(narrowed), {"parameters_narrowed": narrowed, "parameters": len([*model.parameters()])})
