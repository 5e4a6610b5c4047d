"""packed-vs-padded on models other than Gemma 3: of ordinary attention, and a hybrid."""

import pytest
from diagnose.running import build, findings, only, run


@pytest.mark.parametrize(
    ("size", "off", "patch"),
    [
        ("mistral", {"no mask": "ok", "a mask of ones": "fault"}, "transformers.packing_under_mask"),
        ("qwen3", {"no mask": "ok", "a mask of ones": "fault"}, "transformers.packing_under_mask"),
        ("qwen3-next", {"no mask": "fault", "a mask of ones": "fault"}, "transformers.qwen3_next_packed_state"),
    ],
)
def test_packed_sequences_of_other_families_are_apart_with_the_patches_alone(size, off, patch, tmp_path):
    model = build(tmp_path / "model", size=size)
    code, report, _ = run(model, tmp_path / "out", "--length", "97", *only("packed-vs-padded"))
    told = {
        state: {case.removeprefix("packed with ").split(",")[0]: found for (_, case), found in states.items()}
        for state, states in ((state, findings(report, state)) for state in ("off", "on"))
    }
    assert {name: found["verdict"] for name, found in told["off"].items()} == {"padded": "ok"} | off
    assert {found["verdict"] for found in told["on"].values()} == {"ok"}
    assert all(patch in found["applied"] for found in told["on"].values())
    assert code == 0
