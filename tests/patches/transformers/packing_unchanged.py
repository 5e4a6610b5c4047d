"""What a model returns for rows of which none is packed, bit by bit, without the patch and with."""

import hashlib
import inspect
import itertools
import json
from functools import partial

import torch
import transformers
from patches.told import by_side

from nrl_patches.patches._shared.packing import tiny_model

TOKENS = torch.randint(3, 64, (3, 8), generator=torch.Generator().manual_seed(1))
ONES = torch.ones_like(TOKENS)
LEFT = torch.tensor([[1] * 8, [0] * 3 + [1] * 5, [0] * 7 + [1]])
RIGHT = LEFT.flip(1)
HOLES = torch.tensor([[1] * 8, [1, 1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1, 1, 0]])
POSITIONS = torch.arange(8).expand(3, -1)

PACKED = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]).expand(3, -1)


def counted(mask, fill):
    """The positions of ``generate``: those of the real tokens count up from 0."""
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, fill)


ROWS = {
    "no mask": (None, None),
    "no mask, positions of one row": (None, POSITIONS[:1]),
    "ones": (ONES, None),
    "ones, positions": (ONES, POSITIONS),
    "ones, one position throughout": (ONES, torch.zeros_like(ONES)),
    "ones, positions that leap": (ONES, POSITIONS + 50 * (POSITIONS > 3)),
    "ones, positions that start late": (ONES, POSITIONS + 7),
    "ones, positions that stay": (ONES, POSITIONS.clamp(max=4)),
    "ones, two ends of one beginning": (ONES, torch.tensor([0, 1, 2, 3, 4, 2, 3, 4]).expand(3, -1)),
    "padded left": (LEFT, None),
    "padded left, 1 at padding": (LEFT, counted(LEFT, 1)),
    "padded left, 0 at padding": (LEFT, counted(LEFT, 0)),
    "padded left, -1 at padding": (LEFT, counted(LEFT, -1)),
    "padded right": (RIGHT, None),
    "padded right, 1 at padding": (RIGHT, counted(RIGHT, 1)),
    "padded right, 0 at padding": (RIGHT, counted(RIGHT, 0)),
    "holes": (HOLES, None),
    "holes, 1 at padding": (HOLES, counted(HOLES, 1)),
    "holes, 0 at padding": (HOLES, counted(HOLES, 0)),
    "padding alone": (torch.zeros_like(ONES), torch.ones_like(ONES)),
}
"""Mask and positions."""


def digest(*tensors):
    assert all(tensor is not None for tensor in tensors)
    whole = b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(whole).hexdigest()[:16]


def model(attention="sdpa"):
    """One with a layer of each kind, so with both masks."""
    layers = ["sliding_attention", "full_attention"]
    return tiny_model("Gemma3Text", attention, of="Gemma3", sliding_window=3, layer_types=layers)


def forward(attention, mask, positions, *, use_cache):
    found = model(attention)(input_ids=TOKENS, attention_mask=mask, position_ids=positions, use_cache=use_cache)
    return digest(found.logits)


def generated(attention, mask, **how):
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model(attention).generate(TOKENS, attention_mask=mask, **(settings | how))
    return digest(found.sequences, *(found.logits or ()))


def assisted():
    assistant = tiny_model(
        "Gemma3Text", of="Gemma3", sliding_window=3, num_hidden_layers=1, layer_types=["full_attention"]
    )
    return digest(model().generate(TOKENS[:1], assistant_model=assistant, max_new_tokens=4, do_sample=False))


def continued(second):
    """A second forward on what the first has left in the cache, with positions that go on or restart."""
    gemma = model()
    first = gemma(input_ids=TOKENS[:, :4], attention_mask=LEFT[:, :4], use_cache=True)
    positions = counted(LEFT, 1)[:, 4:] if second == "goes on" else torch.tensor([[0, 1, 0, 1]]).expand(3, -1)
    name = "cache" if "cache" in inspect.signature(gemma.model.forward).parameters else "past_key_values"
    cache = {name: first.past_key_values}
    found = gemma(input_ids=TOKENS[:, 4:], attention_mask=LEFT, position_ids=positions, use_cache=True, **cache)
    return digest(found.logits)


def compiled(mask, positions):
    """Nobody can know of values that are being traced whether they are of packed rows."""
    torch._dynamo.reset()
    gemma = torch.compile(model(), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        return digest(gemma(input_ids=TOKENS, attention_mask=mask, position_ids=positions, use_cache=True).logits)


def exported(mask, positions):
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model()

        def forward(self, tokens, mask, positions):
            given = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
            return self.model(input_ids=tokens, **given).logits

    with torch.no_grad():
        program = torch.export.export(Logits(), (TOKENS, ONES, POSITIONS.contiguous()), strict=False)
        return digest(program.module()(TOKENS, mask, positions))


def graphs(values):
    """How many graphs are made for some rows, one after the other."""
    torch._dynamo.reset()
    made = []
    backend = lambda graph, _: made.append(graph) or graph.forward  # noqa: E731
    gemma = torch.compile(model(), backend=backend, fullgraph=True)
    with torch.no_grad():
        for mask, positions in values:
            gemma(input_ids=TOKENS, attention_mask=mask, position_ids=positions.contiguous(), use_cache=False)
    return len(made)


def without_values(*, mask):
    """On the device that has none, as for an estimate of memory."""
    tokens = TOKENS.to("meta")
    given = {"attention_mask": torch.ones_like(tokens)} if mask else {}
    return list(model("eager").to("meta")(input_ids=tokens, use_cache=True, **given).logits.shape)


def prepared_by_hand():
    mask = torch.ones(3, 1, 8, 8).tril()
    mask = torch.zeros_like(mask).masked_fill(mask == 0, torch.finfo(torch.float32).min)
    return digest(tiny_model()(input_ids=TOKENS, attention_mask=mask, position_ids=PACKED).logits)


def cases():
    for attention, use_cache, (label, (mask, positions)) in itertools.product(
        ("eager", "sdpa"), (False, True), ROWS.items()
    ):
        yield (
            f"{attention}, use_cache={use_cache}, {label}",
            partial(forward, attention, mask, positions, use_cache=use_cache),
        )
    for attention, mask in itertools.product(("eager", "sdpa"), (ONES, LEFT)):
        padded = ", padded" if mask is LEFT else ""
        for label, how in {
            "": {},
            "no cache": {"use_cache": False},
            "static cache": {"cache_implementation": "static", "disable_compile": True},
            "beams": {"num_beams": 2},
            "chunked prefill": {"prefill_chunk_size": 3},
        }.items():
            yield f"generate, {attention}{padded}, {label}", partial(generated, attention, mask, **how)
    yield "generate, assisted", assisted
    for second in ("goes on", "restarts"):
        yield f"a filled cache, {second}", partial(continued, second)
    yield "a mask of four dimensions", prepared_by_hand
    yield "compiled", partial(compiled, *ROWS["holes, 0 at padding"])
    yield "exported", partial(exported, *ROWS["padded left, 1 at padding"])
    yield "graphs", partial(graphs, [(ONES, POSITIONS), (ONES, PACKED), (LEFT, counted(LEFT, 1))])
    for mask in (False, True):
        yield f"on meta, {'a mask' if mask else 'no mask'}", partial(without_values, mask=mask)
    yield "packed", partial(forward, "sdpa", ONES, PACKED, use_cache=False)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    print(json.dumps(by_side(cases)))
