"""Load a tiny Gemma 3 from disk, reload some of its tensors layerwise, compare every tensor with the load from disk.

    python reload_partial.py

The reload is what ``reload_weights`` of vLLM's GPU worker does: initialise, the model's own ``load_weights``, finalise.
Prints, per side and stream, the tensors that differ. As every stream sends what was loaded, none should.
"""

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import tiny
import torch

import nrl_patches
from nrl_patches.patches._shared import layerwise_reload

STREAMS = {
    "all": lambda name: True,  # noqa: ARG005 - each is called with a name
    "queries, of queries, keys and values": lambda name: "layers.0" in name and "q_proj" in name,
    "gates, of gates and ups": lambda name: "gate_proj" in name,
    "norms": lambda name: "norm" in name,
}


def main():
    from vllm.model_executor.model_loader import reload

    tiny.prepare()
    folder = tiny.make("gemma3", Path(tempfile.mkdtemp()) / "gemma3")
    config = tiny.vllm_config(folder, "auto")
    tiny.start_world(config)
    expected = tiny.load(config)
    (weights,) = tiny.batches(folder, 1)
    report = {"tensors": len(tiny.tensors(expected))}
    applied = [patch for patch, status in nrl_patches.status().items() if status.state == "applied"]
    for side in ("off", "on"):
        for stream, takes in STREAMS.items():
            with nrl_patches.undo(*applied) if side == "off" else nullcontext():
                model = tiny.load(tiny.vllm_config(folder, "auto"))
                sent = [(name, weight) for name, weight in weights if takes(name)]
                with layerwise_reload.visible_garbage(), torch.no_grad():
                    for _ in range(2):
                        reload.initialize_layerwise_reload(model)
                        model.load_weights(iter(sent))
                        reload.finalize_layerwise_reload(model, config.model_config)
            report[f"{side}, {stream}"] = sorted(tiny.differences(model, expected))
    print(json.dumps(report | {"applied": applied}))


if __name__ == "__main__":
    main()
