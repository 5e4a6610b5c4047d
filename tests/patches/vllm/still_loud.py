"""What vLLM tells of a weight stream or a dummy load that is wrong, without the patches and with.

    python still_loud.py

The blocks are stand-ins, see ``ways/vllm_radio.py``. A stream returns what `load_weights` says it has loaded, a dummy
load what has stayed as it was.
"""

import itertools
import json
from functools import partial
from importlib.util import find_spec

import torch
from patches.told import by_side
from ways import vllm_dummy_load, vllm_radio

BLOCK = "radio_model.model.blocks.0."

STREAMS = {
    "right": lambda stream: stream,
    "without a weight": lambda stream: stream[1:],
    "with a weight more": lambda stream: [*stream, (f"{BLOCK}unknown", torch.ones(4))],
    "with a scale of a block more": lambda stream: [*stream, ("radio_model.model.blocks.7.ls1.gamma", torch.ones(4))],
    "with a scale of something else": lambda stream: [*stream, (f"{BLOCK}attn.ls1", torch.ones(4))],
    "with a scale of another shape": lambda stream: [*stream, (f"{BLOCK}ls1.gamma", torch.ones(3))],
    "with a weight of another shape": lambda stream: [(stream[0][0], torch.ones(3)), *stream[1:]],
    "with what is no tensor": lambda stream: [*stream, (f"{BLOCK}weight", None)],
    "with what is no pair": lambda stream: [*stream, BLOCK],
    "of another model": lambda stream: [(name.removeprefix("radio_model."), tensor) for name, tensor in stream],
}


def loaded(change, branches, carry):
    weights = change(list(vllm_radio.stream(branches, vllm_radio.NAMES[1])))
    return sorted(vllm_radio.tower().load_weights(carry(weights)))


def on_meta(model):
    """A weight that nobody has made."""
    model.weight = torch.nn.Parameter(torch.empty(2, device="meta"), requires_grad=False)


def uninitialised(model):
    """A buffer that nobody has written."""
    model.register_buffer("uninitialised", torch.full((2,), torch.nan))


def filled(change):
    model = vllm_dummy_load.leaf()
    change(model)
    before = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    vllm_dummy_load.fill(model)
    after = dict((*model.named_parameters(), *model.named_buffers()))
    return sorted(n for n, t in before.items() if not t.is_meta and torch.equal(t, after[n]))


def extra_config():
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    get_model_loader(LoadConfig(load_format="dummy", model_loader_extra_config={"concurrency": 1}))


def cases():
    yield "dummy load, on meta", partial(filled, on_meta)
    yield "dummy load, uninitialised", partial(filled, uninitialised)
    yield "dummy load, extra config", extra_config
    if find_spec("vllm.model_executor.models.radio") is not None:
        for (label, change), branches, carry in itertools.product(STREAMS.items(), ((), (1, 2)), (list, iter)):
            name = f"{label}, {'scales' if branches else 'none'}, {carry.__name__}"
            yield name, partial(loaded, change, branches, carry)


if __name__ == "__main__":
    vllm_dummy_load.fill(vllm_dummy_load.leaf())  # The first import of vLLM has a lot to say.
    print(json.dumps(by_side(cases)))
