"""An EAGLE-3 draft with a vocabulary of its own loses its output head under `load_format="dummy"`.

Problem: vLLM gives a draft the target's `lm_head` unless the draft's `has_own_lm_head` is true. Only the draft's
    `load_weights` sets that, when it meets such a tensor, and a dummy load does not call it. The draft's head is then
    replaced although it has another size (`draft_vocab_size`).
Hit by: RL rollouts with speculative decoding that start with dummy weights and receive the real ones by a refit. Until
    the refit the first rows of the target's head are taken for the draft's tokens, which costs acceptance; the refit
    raises an AssertionError without a text.
Fix: after a dummy load, a draft whose `draft_vocab_size` is not its `vocab_size` says that its head is its own. Loads
    from disk are left alone. This holds for every draft model and for both model runners.
Remove when: a dummy load keeps such a head in every supported release; 0.33.0, the newest that was measured, does not.

Not covered: a draft with a head of its own and the full vocabulary. A dummy load cannot know of that head; the draft
shares the target's, and a refit writes the draft's over it. `speculative_config={"draft_load_config": {"load_format":
"auto"}}` (from 0.17.0 on) loads the draft from disk instead. NeMo RL rewrites llama_eagle3.py on disk
(`_patch_vllm_llama_eagle3_own_lm_head`), which also holds for loads from disk and for that one model; both go together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import dummy_load, eagle_draft

if TYPE_CHECKING:
    import torch

patch = Patch(
    __name__,
    affected="vllm>=0.11.1,<=0.33.0",
    upstream=("https://github.com/vllm-project/vllm/pull/28549",),
    opt_out="NRL_DISABLE_VLLM_EAGLE3_OWN_LM_HEAD_PATCH",
    relies_on=("vllm.model_executor.models.interfaces:SupportsEagleBase",),
)


@patch.fix(
    "vllm.model_executor.model_loader.dummy_loader:DummyModelLoader.load_weights",
    guard=lambda load_weights: (
        "is abstract"  # What a loader inherits that fills by another name.
        if getattr(load_weights, "__isabstractmethod__", False)
        else mismatch(load_weights, parameters="self model")
    ),
)
def say_whose_head_it_is(load_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Build a dummy load that tells a draft of its own head.

    Args:
        load_weights: The ``load_weights`` of vLLM's dummy loader.
    """

    def load_weights_of_draft(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        loaded = load_weights(self, model, *args, **kwargs)
        config = getattr(model, "config", None)
        rows = getattr(config, "draft_vocab_size", None)
        other = rows is not None and rows != getattr(config, "vocab_size", rows)
        # Some drafts have no such flag, and some say themselves that it is true.
        if other and getattr(model, "has_own_lm_head", None) is False:
            model.has_own_lm_head = True
        return loaded

    return load_weights_of_draft


@patch.probe
def dummy_load_loses_the_head_of_a_draft() -> Observation:
    """Fill a real draft by the real loader, and let the real proposer decide; its decoder is an embedding alone."""
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    loader = DummyModelLoader(LoadConfig(load_format="dummy"))
    if not hasattr(loader, "load_weights"):  # Up to 0.9.0.
        return Observation(present=False, evidence={"absent": "DummyModelLoader.load_weights"})
    with eagle_draft.one_rank():
        model = eagle_draft.target()
        config, draft = eagle_draft.draft()
        loader.load_weights(draft, dummy_load.UNQUANTIZED)
        eagle_draft.propose(config, draft, model)
        rows = draft.lm_head.weight.shape[0]
        return Observation(draft.lm_head is model.lm_head, {"rows": rows, "own_rows": eagle_draft.DRAFT_VOCABULARY})
