"""What becomes of a model's forward that makes a mask by itself, of one that has it made, and of another one."""

import ast
import textwrap

import pytest

from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared.own_masks import keep_apart

MADE = "causal_mask = self._update_causal_mask(attention_mask, inputs_embeds, cache_position)"


def rewritten(*lines):
    text = "\n".join(
        ["def forward(self, attention_mask, position_ids, past_key_values):", *lines, "return causal_mask"]
    )
    (function,) = ast.parse(textwrap.indent(text, "    ").strip()).body
    return ast.unparse(keep_apart(function))


def test_the_mask_that_is_made_is_closed_between_sequences_by_the_positions_that_were_given():
    lines = rewritten('"""It."""', "position_ids = position_ids or default", MADE).splitlines()
    given, defaulted, made, closed = (
        next(at for at, line in enumerate(lines) if text in line)
        for text in ("_given_positions = position_ids", "or default", "self._update_causal_mask(", "_own_masks.apart(")
    )
    assert given < defaulted < made < closed
    assert "apart(self, causal_mask, attention_mask, inputs_embeds, _given_positions, past_key_values)" in lines[closed]


def test_a_mask_that_the_library_makes_is_left_to_it():
    assert "_own_masks" not in rewritten("causal_mask = create_causal_mask(config=self.config)")


@pytest.mark.parametrize("lines", [(), (MADE, MADE), ("if attention_mask:", f"    {MADE}")])
def test_another_forward_is_no_match(lines):
    with pytest.raises(MismatchError, match="once"):
        rewritten(*lines)
