"""Compiled graphs that are read from the cache raise "shape '[94189090409502, …]' is invalid for input of size".

Problem: AOT autograd's cache pickles how an output is a view of another tensor, one `ViewMeta` for each view.
    `_unsafe_view_ViewMeta::to_serializable_tuple` (ATen/FunctionalizeFallbackKernel.h) returns a reference to a vector
    that is gone by then: what is pickled as the shape is freed memory. Shapes are static; those with symbols are not
    pickled at all since pytorch/pytorch#174334.
Hit by: `torch.compile` by Inductor of a graph that returns a view of what a matrix product of three or more dimensions
    has made (a head or a projection without bias, then a slice), in the second process that compiles it: the first one
    saves the graph, the second raises RuntimeError, or crashes. Gemma 3 with labels does on transformers 5.5.4.
Advice: set `TORCHINDUCTOR_AUTOGRAD_CACHE=0`, which leaves Inductor's own cache on. `TORCHINDUCTOR_CACHE_DIR` of a job's
    own, or `TORCHINDUCTOR_FORCE_DISABLE_CACHES=1`, which leaves nothing on, help too.
Remove when: no supported torch returns that reference.

Seen with torch 2.13.0: of two runs that share a cache the second one, a hit, raises in `gen_alias_from_base`
(_functorch/_aot_autograd/functional_utils.py). The first two numbers are what the allocator writes into freed memory,
the others are right. A patch would have to leave such views out where they are pickled, and distrust what others have.
"""

from __future__ import annotations

import subprocess
import sys

from nrl_patches import Defect, Observation

defect = Defect(
    __name__,
    affected="torch>=2.13.0,<=2.13.0",
    upstream=(
        "https://github.com/pytorch/pytorch/issues/174299",
        "https://github.com/pytorch/pytorch/pull/174334",
        "https://github.com/pytorch/pytorch/pull/143712",
    ),
    advice="Set TORCHINDUCTOR_AUTOGRAD_CACHE=0 where a compiled graph is invalid for input of some size.",
    relies_on=("torch._functorch._aot_autograd.functional_utils:ViewMetaSequence",),
)

_IN_A_CHILD = """
import pickle
import torch
from torch._C import _functionalization

rows = torch._to_functional_tensor(torch.ones(6, 4))
torch._enable_functionalization(reapply_views=True)
viewed = torch.ops.aten._unsafe_view(rows, [3, 2, 4])
torch._disable_functionalization()
views = pickle.loads(pickle.dumps(_functionalization.get_view_meta_sequence(viewed)))
print("shape", *_functionalization.apply_view_meta_sequence(torch.ones(6, 4), views).shape)
"""


@defect.probe
def a_pickled_view_has_lost_its_shape() -> Observation:
    """Pickle a view, load it and apply it, in a child because that may crash."""
    done = subprocess.run(  # noqa: S603 - this interpreter, and the lines above
        [sys.executable, "-c", _IN_A_CHILD], capture_output=True, text=True, timeout=50, check=False
    )
    said = (done.stdout + done.stderr).strip().rpartition("\n")[2]
    if done.returncode >= 0 and "shape" not in said:
        raise RuntimeError(said)
    return Observation(said != "shape 3 2 4", {"exit_code": done.returncode, "said": said[:120]})
