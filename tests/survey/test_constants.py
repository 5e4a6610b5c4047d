"""The walk over vLLM's model classes: what it finds in a small release, and that real classes hold what it says."""

from pathlib import Path

import pytest
from packaging.version import Version
from releases import FOLDER, build, results, run_on
from survey import constants

HERE = Path(__file__).parent
SMALL = HERE / "small"


@pytest.fixture(scope="module")
def found():
    return {(t.owner, t.name): (t.kind, skipped) for t, skipped in constants.tensors_of(SMALL / "vllm-1.0").items()}


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        ("Tower", "normalizer", ("buffer", False)),
        ("Tower", "table", ("buffer", False)),
        ("Tower", "clamp", ("buffer", True)),
        ("Tower", "ids", ("buffer of integers", False)),
        ("Tower", "rope", ("non-persistent buffer", False)),
        ("Tower", "scratch", ("non-persistent buffer", False)),
        ("Tower", "scale", ("parameter", False)),
        ("Tower", "positions.weight", ("constant parameter", False)),
        ("Tower", "norm.running_var", ("statistics", False)),
        ("Tower", "encoder", ("module of transformers", False)),
    ],
)
def test_a_tensor_that_a_constructor_fills_is_found_with_its_kind(found, owner, name, expected):
    assert found[owner, name] == expected


def test_weights_that_wait_for_a_checkpoint_and_other_files_are_not_listed(found):
    assert not {"weight", "absent", "later"} & {name for _, name in found}
    assert {owner for owner, _ in found} == {"Tower"}


def test_a_row_says_in_which_releases_and_whether_a_checkpoint_has_the_tensor(capsys):
    folders = ["--vllm", str(SMALL / "vllm-1.0"), str(SMALL / "vllm-1.1")]
    assert constants.main([*folders, "--transformers", str(SMALL / "transformers")]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "models/small_mm Tower.normalizer | buffer | 1.0 to 1.1 | no" in rows
    assert "models/small_mm Tower.table | buffer | 1.0 | yes" in rows
    assert "models/small_mm Tower.clamp | buffer | 1.0 | skipped by load_weights" in rows
    assert "models/small_mm Tower.norm.running_var | statistics | 1.0 | yes" in rows
    assert "models/other Tower.normalizer | buffer | 1.1 | not in transformers" in rows
    assert not [row for row in rows if "rope" in row or "ids" in row]


def test_ranges_have_a_gap_where_a_release_lacks_the_tensor():
    order = [Version(v) for v in ("1.0", "1.1", "1.2", "1.3")]
    assert constants.folded([order[0], order[2], order[3]], order) == "1.0, 1.2 to 1.3"


@pytest.mark.xdist_group("vllm==0.33.0")
def test_real_classes_hold_what_the_walk_says_and_dummy_load_spares_it_with_the_patch():
    seen = results(run_on("vllm==0.33.0", HERE / "real_classes.py"))
    assert seen["status"] == "applied"
    classes = seen["classes"]
    assert {name for name, told in classes.items() if told["file"]} == {
        "GraniteSpeechConformerConvModule",
        "ConvModule",
    }
    assert {name: told["on"] for name, told in classes.items()} == {name: [] for name in classes}
    walked = constants.tensors_of(Path(build("vllm==0.33.0", FOLDER)[0]))
    for name, told in classes.items():
        filled = [constant for constant in told["constants"] if "num_batches" not in constant]
        assert told["off"] == filled != []
        if told["file"]:
            assert filled == sorted(
                t.name for t in walked if (t.file, t.owner) == (told["file"], name) and t.kind == "statistics"
            )
