"""Constants that a model computes in its constructor are overwritten by `load_format="dummy"`.

Problem: `DummyModelLoader.load_weights` (model_executor/model_loader/dummy_loader.py) fills parameters and persistent
    buffers alike with small random numbers. A checkpoint has to carry the parameters; it need not carry the
    buffers, and constants are in no checkpoint. What the fill wrote over them stays.
Hit by: RL rollouts that start with dummy weights and receive the real ones by a refit. Gemma, Gemma 2 and Gemma 3 on
    0.9.1 (`normalizer` reads -0.0009 instead of the square root of the hidden size): garbage is generated. Qwen2-VL and
    Qwen2.5-VL on 0.28.0 to 0.32.0, more families on 0.32.0 (`visual.input_norm`): every image is scrambled. No error.
Fix: persistent buffers that hold a value count as non-persistent while the loader fills. Parameters are filled as
    before, bit for bit, and no weight is read. Buffers that a checkpoint does carry keep the constructor's value until
    the refit writes them.
Remove when: the loader itself leaves such buffers alone in every supported release. 0.9.2 and 0.33.0 only repaired the
    models named above, one by one; the loader of 0.33.0, the newest that was measured, still overwrites.

You no longer need to force `load_format="auto"` for these constants: for Gemma, Gemma 2 and Gemma 3 from vLLM 0.9.2 on
without any patch, on older releases with this patch or the one for releases before 0.9.1; for Qwen2-VL and Qwen2.5-VL
with this patch on 0.28.0 to 0.32.0, without it on others; for other models that register constants as persistent
buffers with this patch.

Not covered: buffers that share memory with a parameter (tied heads, Mamba's `conv_weights`) are filled through it;
layers that are quantised while they are loaded; what `process_weights_after_loading` sets afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import dummy_load

if TYPE_CHECKING:
    import torch

patch = Patch(
    __name__,
    affected="vllm>=0.9.1,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/19788",
        "https://github.com/vllm-project/vllm/pull/50411",
    ),
    opt_out="NRL_DISABLE_VLLM_DUMMY_LOAD_CONSTANTS_PATCH",
    relies_on=(
        "vllm.model_executor.model_loader.weight_utils:initialize_dummy_weights",
        "vllm.model_executor.model_loader.weight_utils:initialize_single_dummy_weight",
    ),
    victims={
        "Gemma, Gemma 2, Gemma 3 (normalizer)": "vllm>=0.9.1,<0.9.2",
        "Qwen2-VL, Qwen2.5-VL (input_norm)": "vllm>=0.28.0,<0.33.0",
        "Qwen3-VL and others (input_norm)": "vllm>=0.32.0,<0.33.0",
    },
)


def skips_non_persistent_buffers(load_weights: Callable[..., Any]) -> str | None:
    """Check that the fill leaves out non-persistent buffers, in one of the two ways that releases have.

    Args:
        load_weights: The ``load_weights`` of vLLM's dummy loader.

    Returns:
        None if it does, otherwise the difference.
    """
    # Up to 0.29.0 the callee takes the tensors of a state dict; later releases ask each module which buffers to skip.
    if mismatch(load_weights, parameters="self model", attributes="initialize_dummy_weights") is None:
        return None
    return mismatch(load_weights, parameters="self model", attributes="_non_persistent_buffers_set")


@patch.fix(
    "vllm.model_executor.model_loader.dummy_loader:DummyModelLoader.load_weights", guard=skips_non_persistent_buffers
)
def keep_constants(load_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Build a dummy load that leaves constants alone.

    Args:
        load_weights: The ``load_weights`` of vLLM's dummy loader.
    """

    def load_weights_but_constants(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        with dummy_load.hidden_constants(model):
            return load_weights(self, model, *args, **kwargs)

    return load_weights_but_constants


@patch.probe
def dummy_load_overwrites_a_constant() -> Observation:
    """Send a tiny module through the real loader; no model, no process group, no compiled operator."""
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    loader = DummyModelLoader(LoadConfig(load_format="dummy"))
    if not hasattr(loader, "load_weights"):  # 0.9.0: the module is there, but load_model does it all.
        return Observation(present=False, evidence={"absent": "DummyModelLoader.load_weights"})
    return dummy_load.observe(lambda model: loader.load_weights(model, dummy_load.UNQUANTIZED))
