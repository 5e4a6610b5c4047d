"""The loss of a router trains nothing under reentrant checkpointing, nor does one of attentions.

Problem: the logits of routers, and attentions, are recorded when a module inside a layer has returned them. Reentrant
    checkpointing runs the layer without gradients there, and gives them to what the layer itself returns.
Hit by: `output_router_logits=True` and `gradient_checkpointing_enable({"use_reentrant": True})`, which up to 4.57.6 is
    the default, that of the Trainer too, and which nemo-automodel up to 0.5.0 and others choose: Mixtral, Qwen3-MoE,
    gpt-oss, ERNIE 4.5 and MiniMax, from 4.57.0 on Qwen3-Next, from 5.0.0 on Qwen2-MoE, OLMoE and Jamba, and more with
    each release. Up to 4.57.6 Switch Transformers and NLLB-MoE too, whose layers return the logits, but in a tuple of
    their own; in Switch Transformers up to then the loss is on by default. The loss is right, the gates have no
    gradient of it, and nothing is said.
Fix: the checkpointed function returns what is recorded in it too, and what the layer returns in a tuple inside of its
    own. Nothing changes where there is neither.
Remove when: upstream records outside of the checkpoint, or refuses; no release so far does.

Another function than torch's own that checkpoints without gradients, such as one that offloads, is told of by a
warning, and so is torch's `checkpoint_wrapper` around a layer. Not reached are Switch Transformers up to 4.52.4, whose
stack checkpoints.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import accumulation, recorded_outputs, router_losses
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=4.53.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/39120",
        "https://github.com/huggingface/transformers/pull/43765",
    ),
    opt_out="NRL_DISABLE_RECORDED_OUTPUTS_REENTRANT_CHECKPOINTING_PATCH",
    relies_on=(
        "transformers.modeling_layers:GradientCheckpointingLayer",
        "transformers.utils.output_capturing:install_output_capuring_hook",
    ),
)

HOOKS = "transformers.utils.output_capturing"
"""Where transformers 5.2.0 and newer have the hooks that record."""

ROUNDING = 1e-4


def guard(call: Any) -> str | None:
    """Return what is unlike the layers that the fix was written for; from 5.23.0 on they have torch's ``__call__``.

    Args:
        call: ``GradientCheckpointingLayer.__call__``.
    """
    utils = sys.modules["transformers.utils.generic"]
    # 4.53 records nothing: each layer returns all.
    if not hasattr(sys.modules.get(HOOKS, utils), "OutputRecorder") and hasattr(utils, "check_model_inputs"):
        return "records outputs in no way that is known"
    if HOOKS in sys.modules and not hasattr(sys.modules[HOOKS], "_active_collector"):
        return "has no _active_collector"
    if call.__module__ != "torch.nn.modules.module":
        return mismatch(call, parameters="self args kwargs", attributes="_gradient_checkpointing_func training")
    layer = sys.modules["transformers.modeling_layers"].GradientCheckpointingLayer
    inside = [code for code in layer.__init_subclass__.__code__.co_consts if hasattr(code, "co_names")]
    used = {name for code in inside for name in code.co_names}
    return None if "_gradient_checkpointing_func" in used else "checkpoints neither in __call__ nor in forward"


@patch.fix("transformers.modeling_layers:GradientCheckpointingLayer.__call__", guard=guard)
def return_what_is_recorded(call: Callable[..., Any]) -> Callable[..., Any]:
    """Build a call that takes what is recorded out of the checkpoint.

    Args:
        call: That of layers which may be checkpointed.
    """
    torch, by_torch = sys.modules["torch"], sys.modules["torch.utils.checkpoint"]
    checkpoint, function = by_torch.checkpoint, by_torch.CheckpointFunction
    active = sys.modules[HOOKS]._active_collector if HOOKS in sys.modules else None

    def call_and_record(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            in_vain = self.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
            return (call_in_vain if in_vain else call)(self, *args, **kwargs)
        given = self._gradient_checkpointing_func
        if getattr(given, "func", None) is checkpoint and given.keywords.get("use_reentrant") is False:
            return call(self, *args, **kwargs)
        if not torch.compiler.is_compiling():
            return record(self, *args, **kwargs)
        if recorded_outputs.may_record(self, active):
            return record_uncompiled(self, *args, **kwargs)
        return call(self, *args, **kwargs)

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = self._gradient_checkpointing_func
        recording = recorded_outputs.by_forwards(self) if active is None else recorded_outputs.by_hooks(active)
        if recording is None and kwargs.get("output_router_logits"):  # The layer itself returns them, up to 4.57.6.
            recording = recorded_outputs.NOTHING
        if recording is None:
            return call(self, *args, **kwargs)
        # What others have in place of torch's may take one output to be all that there is.
        if getattr(given, "func", given) is not checkpoint or by_torch.CheckpointFunction is not function:
            output = call(self, *args, **kwargs)
            inside = recorded_outputs.tuples_inside(output)
            recorded_outputs.warn_if_cut_off(given, output, (recording.added(), inside))
            return output
        through = functools.partial(recorded_outputs.checkpointed, given, recording)
        with recorded_outputs.replacing(vars(self), "_gradient_checkpointing_func", through):
            return call(self, *args, **kwargs)

    call_in_vain = functools.partial(recorded_outputs.call_in_vain, call, active)
    record_uncompiled = torch._disable_dynamo(record, recursive=False)
    return call_and_record


@patch.probe
def gates_depend_on_checkpointing() -> Observation:
    """Compare the gradients of gates with and without reentrant checkpointing."""
    import torch

    def gradient(build: Callable[[], Any], *, checkpointed: bool) -> torch.Tensor:
        model = accumulation.seeded(build).train()
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": True})
        batch = accumulation.collate(accumulation.rows())
        model(**{name: column for name, column in batch.items() if "type" not in name}).loss.backward()
        gates = [w for name, w in model.named_parameters() if ".gate." in name or ".router." in name]
        return torch.cat([weight.grad.flatten() for weight in gates])

    errors = {}
    with quiet():
        for name, build in router_losses.tiny_models().items():
            expected, found = gradient(build, checkpointed=False), gradient(build, checkpointed=True)
            errors[name] = ((found - expected).norm() / expected.norm()).item()
    return Observation(max(errors.values()) > ROUNDING, errors)
