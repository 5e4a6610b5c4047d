"""Packed rows of Granite 4, AFMoE and Evolla see each other in attention whatever they are given.

Problem: `GraniteMoeHybridModel.forward`, `AfmoeModel.forward` and `EvollaModel.forward` make their masks without
    `position_ids`, by which transformers tells the sequences of a packed row apart.
Hit by: packed rows in eager, sdpa and flex attention, with a mask or without. Wrong logits and gradients, no error.
Fix: the argument that is missing is put among those of the masks.
Remove when: these models pass it; no release so far does.

With a mask of ones or a cache it takes `packing_under_mask` too, and for the Mamba layers of Granite 4
`mamba_packed_state`; for Granite 4 up to 4.57.6 `hybrid_masks_without_position_ids`. Evolla there is not repaired.
"""

import ast

from nrl_patches import Observation, Patch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import packing, state_space_models
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.0.0,<=5.24.0",
    upstream=("https://github.com/huggingface/transformers/pull/39997",),
    opt_out="NRL_DISABLE_MASKS_WITHOUT_POSITION_IDS_PATCH",
)

MASKS = {"create_causal_mask", "create_sliding_window_causal_mask"}


def pass_positions(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite a forward so that it makes its masks with `position_ids`.

    Args:
        function: Upstream's.

    Returns:
        The same with one more argument for the masks.

    Raises:
        MismatchError: It makes none, or gives them positions.
    """
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) in MASKS]
    kept = [n for n in ast.walk(function) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "mask_kwargs"]
    mappings = [n.value for n in kept if isinstance(n.value, ast.Dict)]
    given = [ast.unparse(node) for node in (*calls, *mappings)]
    if not calls or any("position_ids" in text for text in given):
        raise MismatchError("masks that are made without position_ids", "; ".join(given) or "no masks")
    for mapping in mappings:
        mapping.keys.append(ast.Constant("position_ids"))
        mapping.values.append(ast.Name("position_ids", ast.Load()))
    for call in calls if not mappings else ():
        call.keywords.append(ast.keyword("position_ids", ast.Name("position_ids", ast.Load())))
    return function


patch.rewrite(
    "transformers.models.granitemoehybrid.modeling_granitemoehybrid:GraniteMoeHybridModel.forward", pass_positions
)
patch.rewrite("transformers.models.afmoe.modeling_afmoe:AfmoeModel.forward", pass_positions)
patch.rewrite("transformers.models.evolla.modeling_evolla:EvollaModel.forward", pass_positions)


@patch.probe
def packed_rows_see_each_other() -> Observation:
    """Compare the logits of packed sequences with those of each alone; of Granite 4 without its Mamba layers."""
    import transformers

    if not hasattr(transformers, "AfmoeForCausalLM"):
        # Granite 4 then made its masks by itself, without the function that reads positions.
        return Observation(present=False, evidence={"absent": "AfmoeForCausalLM"})
    with quiet():
        granite = state_space_models.tiny_model("GraniteMoeHybrid", layer_types=["attention"] * 2)
        afmoe = packing.tiny_model(
            "Afmoe",
            "eager",
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=3,
            num_dense_layers=2,
            num_experts=2,
            num_experts_per_tok=1,
        )
        evidence = {type(model).__name__: packing.leak(model, use_cache=False) for model in (granite, afmoe)}
    return Observation(max(evidence.values()) > packing.ROUNDING, evidence)
