"""vLLM with the openai that NeMo Gym pins: the real one, in front of what the release is installed with."""

import pytest
from releases import FOLDER, ROOT, build, build_part, run_in

from nrl_patches.matrix.environments import Part

RELEASE = "vllm==0.27.1"
OPENAI = Part(("openai==2.7.2", "distro==1.9.0", "sniffio==1.3.1"))
SCRIPT = ROOT / "tests" / "patches" / "vllm" / "import_llm.py"


def imported(**environ):
    path = [build_part(OPENAI, FOLDER), *build(RELEASE, FOLDER), ROOT / "tests"]
    return run_in(path, SCRIPT, **environ).stdout.splitlines()[-1]


@pytest.mark.xdist_group(RELEASE)
def test_without_the_patch_vllm_cannot_be_imported():
    assert imported(NRL_PATCHES="0").startswith("cannot import name 'NamespaceTool'")


@pytest.mark.xdist_group(RELEASE)
def test_with_it_it_can_and_the_name_is_none_of_openai():
    assert imported() == "applied, openai 2.7.2, has NamespaceTool: False"
