"""Every way by which an EAGLE-3 draft gets its weights; a way returns 0 where its output head is the right one."""

import copy
from functools import partial

import torch

from nrl_patches.patches._shared import eagle_draft
from nrl_patches.patches._shared.dummy_load import UNQUANTIZED


def filled(draft):
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(draft, UNQUANTIZED)


def stream(*, head=True):
    rows = eagle_draft.DRAFT_VOCABULARY
    yield "d2t", torch.arange(rows)
    if head:
        yield "lm_head.weight", torch.full((rows, eagle_draft.HIDDEN), 3.0)


def proposed(load, *, own, change=lambda draft: draft, refit=False, **options):
    """Give the proposer a draft, and compare whose head it then has, and what a refit writes into it."""
    with eagle_draft.one_rank():
        model = eagle_draft.target()
        torch.nn.init.constant_(model.lm_head.weight, 7.0)
        config, draft = eagle_draft.draft(**options)
        draft = change(draft)
        load(draft)
        eagle_draft.propose(config, draft, model)
        wrong = (draft.lm_head is not model.lm_head) != own
        if refit:
            draft.load_weights(stream())
            wrong |= bool((draft.lm_head.weight[: eagle_draft.DRAFT_VOCABULARY] != 3.0).any())
            wrong |= bool((model.lm_head.weight != 7.0).any())
        return wrong


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "dummy load", partial(proposed, filled, own=True)
    yield "dummy load and refit", partial(proposed, filled, own=True, refit=True)
    yield "from a checkpoint with a head", partial(proposed, lambda d: d.load_weights(stream()), own=True)
    yield "from a checkpoint without one", partial(proposed, lambda d: d.load_weights(stream(head=False)), own=False)
    yield "dummy load, the whole vocabulary", partial(proposed, filled, own=False, rows=eagle_draft.VOCABULARY)
    yield "deepcopy", partial(proposed, lambda _: None, own=True, change=lambda d: copy.deepcopy(also_filled(d)))


def also_filled(draft):
    filled(draft)
    return draft
