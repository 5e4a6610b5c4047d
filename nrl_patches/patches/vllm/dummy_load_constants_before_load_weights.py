"""Constants are overwritten by `load_format="dummy"`, in releases whose dummy loader has no `load_weights`.

Problem: the defect of `vllm.dummy_load_constants` in older code: `DummyModelLoader.load_model` (loader.py, in 0.9.0
    dummy_loader.py, of model_executor/model_loader) calls `initialize_dummy_weights`, which fills persistent buffers
    too.
Hit by: Gemma, Gemma 2 and, from 0.8.0 on, Gemma 3 that start with dummy weights and receive the real ones by a refit.
    `normalizer` reads -0.0009 instead of the square root of the hidden size; garbage is generated, no error.
Fix: as there: persistent buffers that hold a value count as non-persistent while the function fills.
Remove when: no supported release is older than vLLM 0.9.1.

Older releases have the defect too (observed in 0.6.0 to 0.6.1.post2). The range begins with the oldest release that
this project measures, see `FLOORS` in `nrl_patches/engine/affected.py`.

You no longer need to force `load_format="auto"` for Gemma: on these releases with this patch, from vLLM 0.9.2 on
without any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import dummy_load

if TYPE_CHECKING:
    import torch

patch = Patch(
    __name__,
    affected="vllm>=0.6.3,<0.9.1",
    upstream=("https://github.com/vllm-project/vllm/pull/19788",),
    opt_out="NRL_DISABLE_VLLM_DUMMY_LOAD_CONSTANTS_PATCH",
    victims={
        "Gemma, Gemma 2 (normalizer)": "vllm>=0.6.3,<0.9.1",
        "Gemma 3 (normalizer)": "vllm>=0.8.0,<0.9.1",
    },
)


@patch.fix(
    "vllm.model_executor.model_loader.weight_utils:initialize_dummy_weights",
    guard=lambda fill: mismatch(fill, parameters="model", attributes="state_dict"),
)
def keep_constants(fill: Callable[..., Any]) -> Callable[..., Any]:
    """Build a fill that leaves constants alone.

    Args:
        fill: vLLM's ``initialize_dummy_weights``.
    """

    def fill_but_constants(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        with dummy_load.hidden_constants(model):
            return fill(model, *args, **kwargs)

    return fill_but_constants


@patch.probe
def dummy_load_overwrites_a_constant() -> Observation:
    """Send a tiny module through the function that the loader's module holds."""
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    loader = get_model_loader(LoadConfig(load_format="dummy"))
    if hasattr(loader, "load_weights"):
        return Observation(present=False, evidence={"replaced by": "DummyModelLoader.load_weights"})
    return dummy_load.observe(sys.modules[type(loader).__module__].initialize_dummy_weights)
