"""A real transformers that nobody has measured: 5.24.0 for who knows 5.23.0 only, and releases still to come.

Those have the code of the newest release under a number of the future: as it is, with the target changed, and with the
defect repaired.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from package_copy import Copy
from releases import BYTECODE, FOLDER, build, run_in
from standins import ROOT

from nrl_patches.matrix.environments import variables

NEWEST = "transformers==5.24.0"
VISUAL = "transformers.qwen_vl_base_model_visual"
REENTRANT = "transformers.gemma4_kv_sharing_reentrant_checkpointing"
SIDE = ROOT / "tests" / "patches" / "transformers" / "unmeasured_side.py"
COMMAND = ROOT / "tests" / "run_command.py"

pytestmark = pytest.mark.xdist_group(NEWEST)

RULE = """        "Qwen2VLModel": [
            PrefixChange(prefix_to_add="language_model", model_prefix="model"),
        ],
"""
REPAIRED = """        "Qwen2VLModel": [
            WeightRenaming(source_patterns=r"^visual", target_patterns="model.visual"),
            WeightRenaming(
                source_patterns=r"^model(?!\\.(language_model|visual))", target_patterns="model.language_model"
            ),
        ],
"""
LOOKUP = "def get_checkpoint_conversion_mapping(model_type):\n"

EDITS = {
    "unchanged": (),
    "target changed": ((LOOKUP, f"{LOOKUP}    model_type = str(model_type)\n"),),
    "defect repaired": ((RULE, REPAIRED),),
}


@pytest.fixture(scope="module")
def future(tmp_path_factory):
    """A function that makes transformers 5.99.0 of 5.24.0's files with one of ``EDITS`` and returns its folders."""
    folders = build(NEWEST, FOLDER)
    (upstream,) = [folder for folder in folders if (folder / "transformers").is_dir()]
    folder = tmp_path_factory.mktemp("future")
    package = folder / "transformers"
    package.mkdir()
    for entry in (upstream / "transformers").iterdir():
        if entry.name not in {"__init__.py", "conversion_mapping.py", "__pycache__"}:
            (package / entry.name).symlink_to(entry)
    init = (upstream / "transformers" / "__init__.py").read_text()
    assert '__version__ = "5.24.0"' in init
    (package / "__init__.py").write_text(init.replace('"5.24.0"', '"5.99.0"'))
    info = folder / "transformers-5.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.99.0\n")

    def make(name):
        # In the same folder each time, so that all the rest is compiled once.
        mapping = (upstream / "transformers" / "conversion_mapping.py").read_text()
        for old, new in EDITS[name]:
            assert mapping.count(old) == 1
            mapping = mapping.replace(old, new)
        (package / "conversion_mapping.py").write_text(mapping)
        return [folder, *folders]

    return make


def observed(folders, **environ):
    done = run_in([*folders, ROOT / "tests"], SIDE, VISUAL, **environ)
    return json.loads(done.stdout.splitlines()[-1])


def command(folders, *args, **environ):
    """Run the command, whatever it exits with."""
    return subprocess.run(
        [sys.executable, COMMAND, *args],
        env=variables(folders, os.environ) | BYTECODE | environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_code_of_the_newest_under_another_number_is_patched_and_says_so(future):
    folders = future("unchanged")
    seen = observed(folders)
    reason = "transformers 5.99.0 was not measured; the code is that of 5.24.0"
    assert seen["before"][VISUAL][0] == "pending"
    assert seen["before"][VISUAL][1].startswith(f"{reason}; waits for")
    for patch_id in (VISUAL, REENTRANT):
        assert seen["after"][patch_id] == ["applied", reason]
    assert seen["present"] is False
    tripwires = command(folders, "tripwires", VISUAL)
    assert tripwires.returncode == 0, tripwires
    assert "needed" in tripwires.stdout
    assert "next step: `nrl-patches matrix transformers` records it" in tripwires.stdout
    doctor = command(folders, "doctor", "--no-imports")
    assert f"note: {VISUAL}: found that {reason}" in doctor.stdout
    assert "transformers 5.99.0, newer than 5.24.0, the newest measured" in doctor.stdout


def test_other_code_is_unmeasured_everywhere_and_not_in_silence(future):
    folders = future("target changed")
    seen = observed(folders)
    state, reason = seen["after"][VISUAL]
    assert state == seen["before"][VISUAL][0] == "unmeasured"
    assert "is newer than 5.24.0, the newest measured, affected" in reason
    assert "transformers.conversion_mapping:get_checkpoint_conversion_mapping" in reason
    assert seen["present"] is True
    assert len([line for line in seen["said"] if line.startswith(f"unmeasured: {VISUAL}: ")]) == 1
    # What is about other code is as before.
    assert seen["after"][REENTRANT][0] == "applied"
    assert seen["after"]["transformers.gemma4_kv_sharing_needs_cache"][0] == "not-affected"

    assert observed(folders, NRL_PATCHES_FORCE=VISUAL)["present"] is False
    assert observed(folders, NRL_PATCHES_STRICT="1")["raised"].startswith("UnmeasuredError: ")
    status = command(folders, "status")
    assert status.returncode == 1
    assert f"unmeasured    {VISUAL}" in status.stdout
    doctor = command(folders, "doctor", "--no-imports")
    assert doctor.returncode == 1
    assert f"problem: {VISUAL}: found unmeasured: " in doctor.stdout
    assert "Nothing found" not in doctor.stdout
    assert re.search(r"Last measured \d+ days? ago", doctor.stdout)
    tripwires = command(folders, "tripwires", VISUAL, "--format", "json")
    assert tripwires.returncode == 1
    (tripwire,) = json.loads(tripwires.stdout)["tripwires"]
    assert tripwire["verdict"] == "uncovered"
    assert "it is gone with the fix" in tripwire["sentence"]
    assert "`nrl-patches matrix transformers` records it" in tripwire["next_step"]
    assert f"NRL_PATCHES_FORCE={VISUAL}" in tripwire["next_step"]


def test_a_repaired_release_is_unmeasured_until_a_tripwire_looks(future):
    folders = future("defect repaired")
    seen = observed(folders)
    assert seen["after"][VISUAL][0] == "unmeasured"
    assert "_build_checkpoint_conversion_mapping[Qwen2VLModel]" in seen["after"][VISUAL][1]
    assert seen["present"] is False
    tripwires = command(folders, "tripwires", VISUAL, "--format", "json")
    assert tripwires.returncode == 0
    (tripwire,) = json.loads(tripwires.stdout)["tripwires"]
    assert tripwire["verdict"] == "not affected"
    assert "`nrl-patches matrix transformers` records it" in tripwire["next_step"]


def test_who_knows_5_23_0_only_is_told_of_5_24_0(tmp_path):
    copy = Copy(tmp_path)
    for source in (ROOT / "nrl_patches" / "patches").glob("transformers/*.py"):
        text = source.read_text().replace("<=5.24.0", "<=5.23.0")
        copy.write(f"nrl_patches/patches/transformers/{source.name}", text)
    folders = [str(folder) for folder in build(NEWEST, FOLDER)]
    path = os.pathsep.join([str(tmp_path), *folders])
    done = copy.python(SIDE, VISUAL, PYTHONPATH=path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done
    seen = json.loads(done.stdout.splitlines()[-1])
    same = "transformers 5.24.0 was not measured; the code is that of 5.23.0"
    assert seen["after"][VISUAL] == ["applied", same]
    assert seen["after"]["transformers.subclass_conversion_mapping"] == ["applied", same]
    assert seen["present"] is False
    # 5.24.0 renamed the parameter for the cache there.
    assert seen["after"][REENTRANT][0] == "unmeasured"
    assert "Gemma4TextAttention.forward" in seen["after"][REENTRANT][1]
