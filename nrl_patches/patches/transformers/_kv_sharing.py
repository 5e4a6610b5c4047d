"""What the patches of the KV-shared layers have in common: the carrier of the shared states, and a tiny model.

In models with ``num_kv_shared_layers > 0`` the last layers have no keys and values of their own: each reads those of
the last layer before them that has the same attention type, its donor. The carrier takes them there. It is made by the
text model's forward, handed down among the keyword arguments through whatever wraps the layers, and gone when the
forward returns, so that models, threads and steps cannot meet in it.
"""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation, objection_unless

if TYPE_CHECKING:
    import torch

CARRIER = "nrl_kv_sharing"
"""The keyword argument that no release knows, so that it travels untouched from the text model to the attention."""


class SharedStates:
    """Keys and values of the donor layers, each ``(batch, kv_heads, length, head_dim)``, by the donor's index.

    No mapping on purpose: FSDP2 and accelerate copy mappings on the way to a layer, and a copy shares nothing.
    """

    def __init__(self) -> None:
        self.states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __getitem__(self, donor: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.states[donor]

    def __setitem__(self, donor: int, states: tuple[torch.Tensor, torch.Tensor]) -> None:
        import torch

        # Inside a checkpointed layer dynamo refuses to write to what was made outside of it, for fear of the second
        # write that the recomputation makes in eager mode. Here both writes carry the same values.
        if torch.compiler.is_compiling():
            allow = getattr(torch._dynamo.utils, "_disable_side_effect_safety_checks_for_current_subtracer", _call)
            allow(_store, self.states, donor, states)
        else:
            self.states[donor] = states


class CacheView:
    """What the attention of a release before the fix takes for its cache: the real one, if any, and the carrier.

    Args:
        cache: The cache of the caller; None in training, under ``use_cache=False`` and in checkpointed layers.
        shared_layers: The carrier, under the name that the attention looks for.
    """

    def __init__(self, cache: Any, shared_layers: SharedStates) -> None:
        self.cache = cache
        self.shared_layers = shared_layers

    def update(self, keys: torch.Tensor, values: torch.Tensor, *where: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to the real cache and return all of it; without one, return what came in."""
        return (keys, values) if self.cache is None else self.cache.update(keys, values, *where)


def hand_down_states(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a text model's forward that gives its layers a carrier."""

    def forward_with_carrier(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.config.num_kv_shared_layers > 0 and CARRIER not in kwargs:
            kwargs[CARRIER] = SharedStates()
        return forward(self, *args, **kwargs)

    return forward_with_carrier


def hand_down_mapping(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a text model's forward that passes the states itself, where it takes and returns them as a mapping."""

    def forward_with_mapping(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.config.num_kv_shared_layers > 0 and "shared_kv_states" not in kwargs:
            kwargs["shared_kv_states"] = UserDict()
        return forward(self, *args, **kwargs)

    return forward_with_mapping


def read_through_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build an attention's forward that finds the carrier where it looks for its cache."""

    def forward_with_view(self: Any, *args: Any, **kwargs: Any) -> Any:
        carrier = kwargs.pop(CARRIER, None)
        if carrier is not None:
            kwargs["past_key_values"] = CacheView(kwargs.get("past_key_values"), carrier)
        return forward(self, *args, **kwargs)

    return forward_with_view


def read_from_argument(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build an attention's forward that takes the carrier for the mapping that it expects as an argument."""

    def forward_with_argument(self: Any, *args: Any, **kwargs: Any) -> Any:
        carrier = kwargs.pop(CARRIER, None)
        if carrier is not None:
            kwargs["shared_kv_states"] = carrier
        return forward(self, *args, **kwargs)

    return forward_with_argument


def objection_unless_plain_dict(forward: Callable[..., Any]) -> str | None:
    """Guard: the text model makes the mapping itself, and no ``UserDict`` as upstream does since the fix."""
    missing = objection_unless(forward, parameters="self use_cache kwargs")
    if missing is None and objection_unless(forward, attributes="UserDict") is None:
        return "hands the states down in a UserDict, which FSDP2 leaves alone"
    return missing


def takes_mapping(forward: Callable[..., Any]) -> bool:
    """Whether the text model accepts ``shared_kv_states`` among its keyword arguments (5.8.0 and later)."""
    return "shared_kv_states" in inspect.unwrap(forward).__code__.co_consts


def before_shared_layers() -> bool:
    """Whether Gemma 3n's attention picks the shared states from the donor's layer of the cache (up to 4.55.4)."""
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAttention

    return "past_key_value" in inspect.signature(Gemma3nTextAttention.forward).parameters


def tiny_model(family: str, **changes: Any) -> Any:
    """Return a text model with six layers of which the last two are shared, random weights, on the CPU.

    Args:
        family: ``gemma4`` or ``gemma3n``.
        changes: Fields of the configuration that differ.
    """
    import torch

    fields: dict[str, Any] = {
        "vocab_size": 64,
        "vocab_size_per_layer_input": 64,
        "hidden_size": 32,
        "hidden_size_per_layer_input": 8,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "sliding_window": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": 0,
    }
    if family == "gemma4":
        from transformers import Gemma4ForCausalLM as Model
        from transformers import Gemma4TextConfig as Config

        fields["global_head_dim"] = 16
    else:
        from transformers import Gemma3nForCausalLM as Model
        from transformers import Gemma3nTextConfig as Config

        fields |= {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 6}
    model = Model(Config(**(fields | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # In the order of the names: releases differ in which projections the shared layers have and where.
        for _, weight in sorted(model.named_parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1 + (1.0 if weight.dim() == 1 else 0.0))
    return model


def observe_missing_cache(family: str) -> Observation:
    """Compare the logits of a model with and without a cache: they are the same function."""
    import torch

    model = tiny_model(family).eval()
    tokens = torch.arange(1, 17).view(1, -1)
    with torch.no_grad():
        cached = model(tokens, use_cache=True).logits
        plain = model(tokens, use_cache=False).logits
    gap, scale = (cached - plain).abs().max().item(), cached.abs().max().item()
    return Observation(gap > 1e-5 * scale, {"logit_gap": gap, "logit_scale": scale})


def observe_fsdp2(family: str) -> Observation:
    """Run a model whose layers are sharded by FSDP2, on one gloo rank: its hooks rebuild plain dicts there too."""
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = tiny_model(family)
        mesh = init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model(torch.arange(1, 17).view(1, -1), use_cache=False)
    except KeyError as error:
        return Observation(True, {"KeyError": str(error)})
    finally:
        distributed.destroy_process_group()
    return Observation(False)


def _store(states: dict[Any, Any], donor: Any, pair: Any) -> None:
    states[donor] = pair


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
