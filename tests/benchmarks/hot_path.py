"""What a patched forward costs beside the unpatched one, in one process: ratios of interleaved blocks.

    python tests/benchmarks/hot_path.py FAMILY [BLOCKS]

Run it on a release that a KV-sharing patch is for. The forward uses a cache, so both sides compute the same.
"""

import statistics
import sys
import time

import torch

import nrl_patches
from nrl_patches.patches._shared import kv_sharing


def main() -> None:
    """Print the median ratio of patched to unpatched blocks, and that of unpatched to unpatched for comparison."""
    family = sys.argv[1]
    blocks = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    model = kv_sharing.tiny_model(family).eval()
    tokens = torch.arange(1, 17).view(1, -1)

    def block() -> float:
        with torch.no_grad():
            for _ in range(3):  # A switch empties the interpreter's caches of class attributes.
                model(tokens, use_cache=True)
            start = time.perf_counter()
            for _ in range(20):
                model(tokens, use_cache=True)
        return time.perf_counter() - start

    patched, control = [], []
    for _ in range(blocks):
        with nrl_patches.undo():
            unpatched = block()
        with nrl_patches.undo():
            control.append(block() / unpatched)
        patched.append(block() / unpatched)
    applied = [status.id for status in nrl_patches.status().values() if status.state == "applied"]
    print(f"torch {torch.__version__}, applied: {', '.join(applied) or 'nothing'}")
    print(f"patched / unpatched    {statistics.median(patched):.4f}")
    print(f"unpatched / unpatched  {statistics.median(control):.4f}")


if __name__ == "__main__":
    main()
