"""An explicit request for float32 is cast back to the checkpoint's bfloat16.

Problem: `_restore_loaded_model_dtype` (_transformers/model_init.py) gives every loaded tensor the dtype that it has in
    the file, whatever dtype was asked for.
Hit by: `NeMoAutoModelForCausalLM.from_pretrained(..., torch_dtype=torch.float32)` of a model that Hugging Face
    implements. AdamW's updates are smaller than half of bfloat16's last digit, and the policy does not learn.
Fix: `_init_model` notes what was asked for, and the restoring heeds it. Float32 or wider is kept. "auto" is restored to
    the file, as before. Under a 16-bit request tensors that the file holds in float32 are restored, as before; float16
    and bfloat16 are not exchanged for one another, which would drop bits and widen nothing.
Remove when: no supported release is older than nemo-automodel 0.5.0.

Replacing the function by one that does nothing, as NeMo-RL does, would also keep float32, but under "auto" and bfloat16
it leaves in bfloat16 what the file keeps in float32, such as the A_log, D and dt_bias of Nemotron-H.
"""

import contextlib
import contextvars
import inspect
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch, objection_unless
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
    guard=lambda init: objection_unless(init, parameters="torch_dtype kwargs"),
)
def note_request(init: Callable[..., Any]) -> Callable[..., Any]:
    """Build the loader that notes which dtype was asked for while it runs; None stands for the file's own."""
    signature = inspect.signature(init)

    def init_noting(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # The original says better what is wrong with the call.
            return init(*args, **kwargs)
        # Hugging Face's newer name wins, as it does there.
        token = _requested.set(_as_dtype(given.get("kwargs", {}).get("dtype") or given["torch_dtype"]))
        try:
            return init(*args, **kwargs)
        finally:
            _requested.reset(token)

    return init_noting


def _as_dtype(asked: Any) -> Any:
    from nemo_automodel.shared.utils import dtype_from_str

    if asked in (None, "auto") or isinstance(asked, dict):  # One for each part of the model: nothing to compare with.
        return None
    with contextlib.suppress(KeyError, AttributeError):  # What Automodel cannot read is refused by whoever uses it.
        return dtype_from_str(asked)
    return None


def objection_unless_request_ignored(restore: Callable[..., Any]) -> str | None:
    """Guard: the function is not told what was asked for; decides builds between the releases."""
    if objection_unless(restore, parameters="requested_dtype") is None:
        return "takes requested_dtype, as it does since the fix"
    return objection_unless(
        restore, parameters="model hf_config load_kwargs", attributes="_get_checkpoint_tensor_dtypes"
    )


@patch.fix(
    "nemo_automodel._transformers.model_init:_restore_loaded_model_dtype",
    guard=objection_unless_request_ignored,
)
def restore_unless_requested(restore: Callable[..., Any]) -> Callable[..., Any]:
    """Build the restoring that leaves alone what was asked for."""

    def restore_heeding(model: Any, *args: Any, **kwargs: Any) -> None:
        asked = _requested.get()
        if asked is None or not asked.is_floating_point:
            restore(model, *args, **kwargs)
        elif asked.itemsize < 4:  # noqa: PLR2004 - bytes of a float32
            # By reference: a cast to the other 16 bits and back is not the identity.
            loaded = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
            restore(model, *args, **kwargs)
            for tensor, data in loaded:
                if tensor.dtype != data.dtype == asked and tensor.dtype.itemsize == asked.itemsize:
                    tensor.data = data

    return restore_heeding


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
