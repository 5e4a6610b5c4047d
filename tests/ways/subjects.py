"""Which ways to use the target of each patch are gone, on which releases, and why not the others.

The rule is that with a patch applied every way to use its target behaves as in the release that carries the fix, and
that nothing which worked unpatched stops working or starts to be wrong in silence. ``RULE`` is its list of ways.
"""

from collections.abc import Mapping
from dataclasses import dataclass

RULE = (
    "call by position and by keyword",
    "eager",
    "compile, backend eager",
    "compile, backend aot_eager",
    "compile, backend inductor",
    "compile, fullgraph",
    "no checkpointing",
    "checkpointing, non-reentrant",
    "checkpointing, reentrant",
    "checkpointing, torch's wrapper, non-reentrant",
    "checkpointing, torch's wrapper, reentrant",
    "DDP",
    "DDP, find_unused_parameters",
    "FSDP2",
    "LoRA",
    "Trainer",
    "autocast",
    "deepcopy",
    "pickle",
    "subclass",
)
"""Calls, copies, pickles and subclasses of the replaced callables themselves are tried for all: ``structure.py``."""


@dataclass(frozen=True)
class Subject:
    """What some patches are about.

    Attributes:
        name: Its name.
        patches: The ids of the patches, with wildcards.
        module: The module beside this one whose function ``ways`` yields its ways.
        arguments: What that is called with.
        environments: Where they are gone, each with the options of ``ways`` there, which spare some the slow ones.
        fixed: The release that carries the fix, None if no release does.
        covers: Names of ways, with wildcards, by the way of the rule that they are.
        leaves_out: Why not, by way of the rule.
    """

    name: str
    patches: tuple[str, ...]
    module: str
    environments: Mapping[str, Mapping[str, object]]
    covers: Mapping[str, str]
    leaves_out: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    fixed: str | None = None


def transformers(**compiles):
    """Return environments by release, given as ``v5_5_0="some"``."""
    return {
        f"transformers=={release[1:].replace('_', '.')}": {"compiles": which} for release, which in compiles.items()
    }


KV_SHARING = {
    "call by position and by keyword": "called by position",
    "eager": "checkpointing none",
    "compile, backend eager": "compile eager, *",
    "compile, backend aot_eager": "compile aot_eager, *",
    "compile, backend inductor": "compile inductor, *",
    "compile, fullgraph": "compile aot_eager fullgraph, *",
    "no checkpointing": "* checkpointing none",
    "checkpointing, non-reentrant": "checkpointing enabled non-reentrant",
    "checkpointing, reentrant": "checkpointing enabled reentrant",
    "checkpointing, torch's wrapper, non-reentrant": "checkpointing wrapped non-reentrant",
    "checkpointing, torch's wrapper, reentrant": "checkpointing wrapped reentrant",
    "DDP": "DDP, *",
    "DDP, find_unused_parameters": "DDP find_unused_parameters, *",
    "FSDP2": "FSDP2, *",
    "LoRA": "LoRA, *",
    "Trainer": "Trainer, *",
    "autocast": "autocast, *",
    "deepcopy": "deepcopy",
    "pickle": "pickle",
    "subclass": "subclass",
}

SUBJECTS = (
    Subject(
        "KV sharing in Gemma 4",
        patches=("transformers.gemma4_kv_sharing_*",),
        module="kv_sharing",
        arguments=("gemma4",),
        environments=transformers(v5_5_0="nothing", v5_5_1="all", v5_5_2="nothing", v5_8_1="some", v5_23_0="some"),
        fixed="transformers==5.9.0",
        covers=KV_SHARING,
        leaves_out={},
    ),
    Subject(
        "KV sharing in Gemma 3n",
        patches=("transformers.gemma3n_kv_sharing_*",),
        module="kv_sharing",
        arguments=("gemma3n",),
        environments=transformers(
            v4_53_0="nothing",
            v4_55_4="some",
            v4_56_0="nothing",
            v5_5_4="some",
            v5_6_0="nothing",
            v5_8_1="all",
            v5_23_0="some",
        ),
        fixed="transformers==5.9.0",
        covers=KV_SHARING,
        leaves_out={},
    ),
)
