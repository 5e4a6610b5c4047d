"""Bamba, Granite 4 and Jamba forget their state with every token that they decode.

Problem: `HybridMambaAttentionDynamicCache` (models/bamba, models/granitemoehybrid and models/jamba) is a `Cache` whose
    list of layers stays empty, as it keeps its states elsewhere, so its length is 0. `forward` asks whether it is true
    before it notes that there is a state; it never does, and the Mamba layers begin anew with each token (without
    kernels, of Jamba's the convolutions do).
Hit by: `generate`, and whoever decodes with a cache, with kernels (read) or without. Every token but the first is
    garbage: logits are off by as much as they are large. Nothing is said.
Fix: `forward` asks whether there is a cache.
Remove when: every supported transformers is 4.55.3 or newer, in which these classes are no `Cache`.

Falcon-H1 and Zamba ask the same of caches whose length is that of their list of keys, and are right.
"""

import ast

from nrl_patches import Observation, Patch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import state_space_models
from nrl_patches.patches._shared.quiet import quiet

MODELS = {"Bamba": "bamba", "GraniteMoeHybrid": "granitemoehybrid", "Jamba": "jamba"}
"""By the prefix of their classes, the packages of the models."""

TOLERANCE = 1e-3
"""How far the logits of a token are off at most, relatively; 2e-6 was seen of right ones, 0.6 of wrong ones."""

patch = Patch(
    __name__,
    affected="transformers>=4.54.0,<4.55.3",
    upstream=(
        "https://github.com/huggingface/transformers/pull/40203",
        "https://github.com/huggingface/transformers/pull/39797",
    ),
    opt_out="NRL_DISABLE_HYBRID_CACHE_IS_FALSY_PATCH",
)

OLD = "past_key_values and not past_key_values.has_previous_state"
NEW = "past_key_values is not None and not past_key_values.has_previous_state"


def ask_for_a_cache(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite a forward so that a cache without layers is one too.

    By its syntax, since another patch may have changed how the function is written.

    Args:
        function: Upstream's.

    Returns:
        The same with another condition.

    Raises:
        MismatchError: It does not have the condition in one place.
    """
    old, new = (ast.parse(text, mode="eval").body for text in (OLD, NEW))
    ifs = [node for node in ast.walk(function) if isinstance(node, ast.If) and ast.dump(node.test) == ast.dump(old)]
    if len(ifs) != 1:
        raise MismatchError(f"`if {OLD}` once", f"it {len(ifs)} times")
    ifs[0].test = new
    return function


for prefix, package in MODELS.items():
    patch.rewrite(f"transformers.models.{package}.modeling_{package}:{prefix}Model.forward", ask_for_a_cache)


@patch.probe
def decoded_tokens_forget_the_prompt() -> Observation:
    """Generate a few tokens greedily; compare their logits with those of one forward pass without a cache."""
    import torch
    import transformers

    prompt = torch.arange(7).view(1, -1) * 5 % 13 + 3
    gaps = {}
    with quiet(), torch.no_grad():
        for prefix in MODELS:
            if not hasattr(transformers, f"{prefix}ForCausalLM"):
                continue
            # With a single group, as several are decoded wrongly before 4.52.0 for another reason.
            model = state_space_models.tiny_model(prefix, mamba_n_groups=1, eos_token_id=None)
            options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
            found = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, **options)
            whole = model(found.sequences[:, :-1], use_cache=False).logits[:, prompt.shape[1] - 1 :]
            gap = (torch.stack(found.logits, 1) - whole).abs().max() / whole.abs().max()
            gaps[prefix] = round(gap.item(), 4)
    return Observation(any(not gap < TOLERANCE for gap in gaps.values()), gaps)
