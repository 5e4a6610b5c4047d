"""Load tiny models as dummies, refit them from the complete checkpoint, compare every tensor with a load from disk.

    python load_and_refit.py FAMILY...

Prints, per family, how many tensors there are and, per side and number of batches, those that differ.
"""

import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import tiny

import nrl_patches


def main():
    tiny.prepare()
    report = {}
    for family in sys.argv[1:]:
        folder = tiny.make(family, Path(tempfile.mkdtemp()) / family)
        config = tiny.vllm_config(folder, "auto")
        if not report:
            tiny.start_world(config)
        expected = tiny.load(config)
        report[family] = {"tensors": len(tiny.tensors(expected))}
        applied = [patch for patch, status in nrl_patches.status().items() if status.state == "applied"]
        for side in ("off", "on"):
            for count in (1, 3):
                with nrl_patches.undo(*applied) if side == "off" else nullcontext():
                    model = tiny.load(tiny.vllm_config(folder, "dummy"))
                filled = tiny.differences(model, expected)
                for batch in tiny.batches(folder, count):
                    model.load_weights(iter(batch))
                report[family][f"{side}, {count}"] = tiny.differences(model, expected)
                report[family][f"{side} filled"] = len(filled)
    report["applied"] = applied
    print(json.dumps(report))


if __name__ == "__main__":
    main()
