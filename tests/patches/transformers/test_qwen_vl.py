"""The renaming rules of Qwen-VL checkpoints in transformers, on the real releases."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

HERE = Path(__file__).parent

MAPPING = "transformers.qwen_vl_checkpoint_mapping"
TOWER = "transformers.qwen_vl_base_model_visual"
SUBCLASS = "transformers.subclass_conversion_mapping"
FAMILIES = ("qwen2_vl", "qwen2_5_vl")
LAYOUTS = ("hub", "mixed", "modules")

BASES = ["Qwen2VLModel", "Qwen2_5_VLModel"]

AFFECTED = [
    # release, its patch, the names whose rules that changes
    ("5.5.4", MAPPING, sorted(FAMILIES)),
    ("5.12.1", MAPPING, BASES),
    ("5.13.0", TOWER, BASES),
    ("5.24.0", TOWER, BASES),
]


def cases(rows):
    return [pytest.param(*row, id=row[0], marks=pytest.mark.xdist_group(row[0])) for row in rows]


each_affected = pytest.mark.parametrize("version", cases(row[:1] for row in AFFECTED))


@functools.cache
def layouts(version, *, patched):
    # peft's own copies of the lookup are among those that must be reached, and its adapters must stay what they are.
    environment = f"transformers=={version} & peft==0.21.2"
    return results(run_on(environment, HERE / "qwen_vl_layouts.py", NRL_PATCHES=str(int(patched))))


def lost(found, layout, kind):
    return tuple(found[layout][kind])


@pytest.mark.parametrize(("version", "patch_id"), cases(row[:2] for row in AFFECTED))
def test_every_layout_loads_into_both_classes_bit_for_bit(version, patch_id):
    report = layouts(version, patched=True)
    assert report["status"][patch_id] == "applied"
    for family in FAMILIES:
        found = report[family]
        assert {lost(found, layout, kind) for layout in LAYOUTS for kind in ("head", "base")} == {(0, 0)}
        assert found["auto"]
        assert found["tied"] == [0, 0]
        assert found["read_again"] == {"fresh": [0, 0], "head": [0, 0], "base": [0, 0]}


@each_affected
def test_save_pretrained_writes_the_layout_of_the_hub(version):
    for family in FAMILIES:
        found = layouts(version, patched=True)[family]
        vision, text = found["of"]
        for writer in ("fresh", "head"):
            assert found["saved"][writer] == {"visual": vision, "model": text - 1, "lm_head": 1}
        # The class without a head writes what it wrote before.
        assert found["saved"]["base"] == layouts(version, patched=False)[family]["saved"]["base"]


@pytest.mark.xdist_group("5.5.4")
def test_unpatched_up_to_5_5_4_saving_mixes_the_layouts():
    for family in FAMILIES:
        found = layouts("5.5.4", patched=False)[family]
        vision, text = found["of"]
        for writer in ("fresh", "head"):
            assert found["saved"][writer] == {"model.visual": vision, "model": text - 1, "lm_head": 1}


@pytest.mark.xdist_group("5.12.1")
def test_unpatched_up_to_5_12_1_the_class_without_a_head_loses_the_text():
    for family in FAMILIES:
        found = layouts("5.12.1", patched=False)[family]
        text = found["of"][1] - 1
        assert [lost(found, layout, "base") for layout in LAYOUTS] == [(0, text), (0, text), (0, 0)]


@pytest.mark.parametrize("version", cases([("5.13.0",), ("5.24.0",)]))
def test_unpatched_from_5_13_0_on_the_class_without_a_head_loses_the_tower(version):
    for family in FAMILIES:
        found = layouts(version, patched=False)[family]
        vision = found["of"][0]
        assert [lost(found, layout, "base") for layout in LAYOUTS] == [(0, 0), (vision, 0), (vision, 0)]


@each_affected
def test_unpatched_the_class_with_the_head_loads_everywhere(version):
    for family in FAMILIES:
        assert {lost(layouts(version, patched=False)[family], layout, "head") for layout in LAYOUTS} == {(0, 0)}


@pytest.mark.parametrize(("version", "changed"), cases(row[::2] for row in AFFECTED))
def test_only_the_names_in_question_get_another_answer(version, changed):
    lookups = layouts(version, patched=True)["lookups"]
    assert lookups["names"] > 2000
    assert lookups["changed"] == changed
    assert lookups["registry_kept"]
    assert lookups["fresh"]


@each_affected
def test_copies_by_name_are_reached_and_undone(version):
    lookups = layouts(version, patched=True)["lookups"]
    assert lookups["replaced"]
    assert lookups["copy_reached"]
    assert lookups["copy_undone"]


@each_affected
def test_what_a_user_registers_wins(version):
    assert layouts(version, patched=True)["own_rules_kept"]


@each_affected
def test_lora_adapters_keep_their_names_and_load(version):
    off, on = (layouts(version, patched=patched)["lora"] for patched in (False, True))
    assert on["names"] == off["names"]
    assert on["of"] == off["of"] == 12
    assert on["lost"] == off["lost"] == 0


BY_CLASS = cases(row[:1] for row in AFFECTED[1:])


@pytest.mark.parametrize("version", BY_CLASS)
@pytest.mark.parametrize("kind", ["head", "alike", "nested", "base"])
def test_a_subclass_loads_every_layout_and_writes_that_of_its_base(version, kind):
    report = layouts(version, patched=True)
    assert report["status"][SUBCLASS] == "applied"
    for family in FAMILIES:
        found = report[family]["subclasses"][kind]
        assert [found[layout] for layout in LAYOUTS] == [[0, 0]] * 3
        assert found["saved"] == report[family]["saved"]["base" if kind == "base" else "head"]


@pytest.mark.parametrize("version", BY_CLASS)
def test_unpatched_a_subclass_loses_the_text(version):
    for family in FAMILIES:
        found = layouts(version, patched=False)[family]
        text = found["of"][1] - 1
        for kind in ("head", "nested", "base"):
            assert [found["subclasses"][kind][layout] for layout in LAYOUTS] == [[0, text], [0, text], [0, 0]]
        assert found["subclasses"]["head"]["saved"].keys() == {"model.visual", "model.language_model", "lm_head"}


@pytest.mark.parametrize("version", BY_CLASS)
def test_what_fsdp2_makes_of_a_class_is_saved_in_the_layout_of_the_hub(version):
    for family in FAMILIES:
        found = {patched: layouts(version, patched=patched)[family] for patched in (False, True)}
        assert found[True]["subclasses"]["sharded"] == found[True]["saved"]["fresh"]
        assert found[False]["subclasses"]["sharded"].keys() == {"model.visual", "model.language_model", "lm_head"}


@pytest.mark.parametrize("version", BY_CLASS)
def test_subclasses_of_other_families_get_the_rules_of_their_base_unless_they_are_built_in_another_way(version):
    found = layouts(version, patched=True)["other_families"]
    assert (found["ViT"], found["Mixtral"]) == ("as its base", "as its base")
    assert all(found[f"{label} left as it was"] for label in ("ViT", "Mixtral", "rebuilt"))
    unpatched = layouts(version, patched=False)["other_families"]
    assert unpatched["ViT"] == "none"
    assert found["rebuilt"] == unpatched["rebuilt"]


@pytest.mark.parametrize("version", BY_CLASS)
def test_what_a_user_registers_for_a_subclass_or_its_type_wins(version):
    assert layouts(version, patched=True)["registered"] == layouts(version, patched=False)["registered"] == [True, True]


@pytest.mark.parametrize("version", BY_CLASS)
def test_old_named_lora_adapters_are_loaded_by_peft_as_by_transformers(version):
    off, on = (layouts(version, patched=patched) for patched in (False, True))
    assert on["lora"]["status"] == "applied"
    assert on["lora"]["lost_of_old"] == {"peft": [0, 0], "transformers": [0, 0]}
    assert off["lora"]["lost_of_old"] == {"peft": [4, 12], "transformers": [0, 0]}


def test_inert_between_the_ranges():
    report = layouts("5.8.1", patched=True)
    assert set(report["status"].values()) <= {"not-affected", "not-installed"}
    # PEFT converts by type here, and takes the new name of the tower back: another defect than the patch's.
    assert report["lora"]["lost_of_old"] == {"peft": [4, 4], "transformers": [0, 0]}
    assert report["lookups"]["changed"] == []
    assert not report["lookups"]["replaced"]


@pytest.mark.parametrize(("version", "patch_id"), [("5.5.4", MAPPING), ("5.24.0", TOWER)])
def test_a_renamed_target_is_drift(version, patch_id):
    done = run_on(
        f"transformers=={version}",
        HERE.parent / "renamed_target.py",
        "transformers.conversion_mapping",
        "def get_checkpoint_conversion_mapping(",
        "def look_up_conversion_mapping(",
        patch_id,
    )
    found = results(done)
    assert found["state"] == "drifted"
    assert "get_checkpoint_conversion_mapping to exist" in found["reason"]
    assert found["warnings"] == 1


@pytest.mark.parametrize(("version", "patch_id"), [("5.5.4", MAPPING), ("5.24.0", TOWER)])
def test_the_opt_out(version, patch_id):
    opt_out = {"NRL_DISABLE_QWENVL_VISION_PATCH": "1"}
    found = results(run_on(f"transformers=={version}", HERE.parent / "probe_alone.py", patch_id, **opt_out))
    assert (found["state"], found["present"]) == ("disabled", True)
