"""What batches that are not text without types do, bit by bit, without the patches and with.

python token_types_unchanged.py gemma3 gemma4 paligemma
"""

import json
import sys
from functools import partial
from types import SimpleNamespace

import torch
from patches.told import by_side

from nrl_patches.patches._shared import token_types

TOKENS = torch.randint(3, 58, (1, 10), generator=torch.Generator().manual_seed(1))
IMAGE = TOKENS.index_fill(1, torch.arange(2, 6), token_types.IMAGE_TOKEN)
VIDEO = TOKENS.index_fill(1, torch.arange(2, 6), 61)
PIXELS = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(2))
ONES = torch.ones_like(TOKENS)


def ran(family, *, base=False, train=True, embedded=False, **batch):
    """Return the loss, or the sum of the hidden states, exactly."""
    model = getattr(token_types, family)().train(train)
    # The tower of Gemma 4 is left out; what comes out of one is enough.
    if family == "gemma4":
        features = SimpleNamespace(pooler_output=PIXELS.flatten()[: 4 * 16].view(4, 16))
        model.model.get_image_features = model.model.get_video_features = lambda *_, **__: features
    if embedded:
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    if base:
        return model.model(**batch).last_hidden_state.sum().item().hex()
    loss = model(**batch).loss
    loss.backward()
    return [loss.item().hex(), sum(p.grad.sum() for p in model.parameters() if p.grad is not None).item().hex()]


def cases(families):
    for family in families:
        key = "mm_token_type_ids" if family == "gemma4" else "token_type_ids"
        image = {"input_ids": IMAGE, "labels": TOKENS, "pixel_values": PIXELS}
        types = {key: (IMAGE == token_types.IMAGE_TOKEN).long()}
        text = {"input_ids": TOKENS, "labels": TOKENS}
        yield f"{family}: image with types", partial(ran, family, **image, **types)
        yield f"{family}: image with types, evaluation", partial(ran, family, train=False, **image, **types)
        yield f"{family}: text with types", partial(ran, family, **text, **{key: ONES * 0})
        yield f"{family}: text with types of ones", partial(ran, family, **text, **{key: ONES})
        yield f"{family}: refused, image", partial(ran, family, **image)
        yield f"{family}: refused, embeddings", partial(ran, family, embedded=True, **text)
        if family == "gemma4":
            video = {"input_ids": VIDEO, "labels": TOKENS, "pixel_values_videos": PIXELS}
            yield f"{family}: refused, video", partial(ran, family, **video)
        if family == "paligemma":
            yield f"{family}: refused, queries of ColPali", partial(ran, family, base=True, input_ids=TOKENS)
            yield f"{family}: evaluation", partial(ran, family, base=True, train=False, input_ids=TOKENS)
        else:
            yield f"{family}: evaluation", partial(ran, family, train=False, **text)
        yield f"{family}: repaired", partial(ran, family, **text)


if __name__ == "__main__":
    print(json.dumps(by_side(partial(cases, sys.argv[1:]))))
