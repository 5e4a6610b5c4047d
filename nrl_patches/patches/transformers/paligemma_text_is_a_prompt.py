"""PaliGemma takes text for a prompt while it is trained, so that each token sees the next one.

Problem: without `token_type_ids`, which tell the prompt (0), seen in both directions, from the answer (1), or without
    `labels`, `forward` (models/paligemma/modeling_paligemma.py) takes the whole row for a prompt, in training too.
Hit by: fine-tuning and evaluating `PaliGemmaForConditionalGeneration` on text, and training by a loss of one's own,
    without labels, whatever the types are: a loss that is too low, and no error. Zeros, which trainers pass, do the
    same.
Fix: text that is trained on, or has labels, is all answer, whose mask is causal as in `GemmaForCausalLM`; and types
    that are given in training count without labels too, as in 5.0.0 and newer. For a prompt that is seen in both
    directions pass the types. Batches with images but no types, embeddings of the caller, generation, and evaluation
    without labels stay as they are.
Remove when: no supported release is older than transformers 5.0.0.

From 5.0.0 to 5.8.1 training raises instead, see transformers.paligemma_text_needs_token_type_ids; and from 5.9.0 on
text is seen so if it is not padded, see transformers.paligemma_text_sees_its_labels.
"""

from __future__ import annotations

import ast

from nrl_patches import Observation, Patch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import token_types
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=4.45.0,<5.0.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/40917",
        "https://github.com/huggingface/transformers/pull/30967",
    ),
    opt_out="NRL_DISABLE_TEXT_WITHOUT_TOKEN_TYPES_PATCH",
)


def train_on_answers(function: ast.FunctionDef) -> ast.FunctionDef:
    """Have text that is trained on, or has labels, all answer; and have types count in training without labels.

    Args:
        function: The syntax of ``forward``.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It does not choose the mask by its labels, nor hands them to a model that does, in one place.
    """
    function = token_types.answer_all(function)
    places = 0
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and ast.unparse(node) == _CHOICE:
            node.value = ast.parse(
                "token_type_ids is not None and (labels is not None or self.training)", mode="eval"
            ).body
            places += 1
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self.model":
            # From 4.52.0 on the inner model chooses, by whether it is given labels, and reads nothing of them.
            for keyword in node.keywords:
                if keyword.arg == "labels" and ast.unparse(keyword.value) == "labels":
                    told = "token_type_ids if labels is None and self.training else labels"
                    keyword.value = ast.parse(told, mode="eval").body
                    places += 1
    if places != 1:
        raise MismatchError(f"`{_CHOICE}`, or `self.model(…, labels=labels)`, once", f"{places} of them")
    return function


_CHOICE = "is_training = token_type_ids is not None and labels is not None"

patch.rewrite(
    "transformers.models.paligemma.modeling_paligemma:PaliGemmaForConditionalGeneration.forward", train_on_answers
)


@patch.probe
def earlier_tokens_see_the_last() -> Observation:
    """Change the last token of padded text that a tiny model is trained on, with labels and without."""
    import torch
    import transformers

    if not hasattr(transformers, "PaliGemmaForConditionalGeneration"):
        return Observation(False, {"absent": "PaliGemmaForConditionalGeneration"})
    changes = {}
    with quiet(), torch.no_grad():
        model, tokens = token_types.paligemma().train(), 3 + torch.arange(8)[None]
        mask = (torch.arange(8)[None] >= 2).long()  # noqa: PLR2004 - two tokens of padding
        other = tokens.clone()
        other[0, -1] = 40
        for name, labelled in (("with labels", True), ("without labels", False)):
            how = {"labels": tokens} if labelled else {}
            try:
                one, two = (model(input_ids=t, attention_mask=mask, **how).logits for t in (tokens, other))
            except ValueError as error:
                return Observation(False, {"ValueError": str(error)})
            changes[name] = round((one - two)[:, 2:-1].abs().max().item(), 4)
    return Observation(max(changes.values()) > token_types.ROUNDING, changes)
