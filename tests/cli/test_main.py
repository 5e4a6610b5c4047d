import json
import os
import subprocess
import sys

from standins import ROOT

from nrl_patches import __version__
from nrl_patches.engine.registry import load

GEMMA4 = "transformers.gemma4_kv_sharing_needs_cache"


def command(*args, **environ):
    env = {k: v for k, v in os.environ.items() if not k.startswith("NRL_")} | {"PYTHONPATH": str(ROOT)} | environ
    return subprocess.run(
        [sys.executable, "-m", "nrl_patches", *args], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_version():
    assert command("--version").stdout == f"nrl-patches, version {__version__}\n"


def test_list_shows_every_patch():
    done = command("list")
    assert done.returncode == 0
    for patch in load():
        assert f"{patch.id}\n    {patch.title}\n" in done.stdout


def test_status():
    done = command("status", "--json", NRL_PATCHES_DISABLE=GEMMA4)
    statuses = {status["id"]: status for status in json.loads(done.stdout)}
    assert set(statuses) == set(load().patches)
    assert statuses[GEMMA4]["state"] == "disabled"
    text = command("status", NRL_PATCHES_DISABLE=GEMMA4).stdout
    assert f"disabled      {GEMMA4}\n              named in NRL_PATCHES_DISABLE\n" in text


def test_explain():
    done = command("explain", GEMMA4)
    assert done.returncode == 0
    for part in ("Problem: ", "transformers>=5.5.0,<5.5.2", "pull/45312", "NRL_DISABLE_GEMMA4_KV_SHARING_PATCH=1"):
        assert part in done.stdout


def test_unknown_id():
    done = command("explain", "typo")
    assert done.returncode == 2
    assert "'typo' is not the id of a patch" in done.stderr
