"""What the helper puts together, without Ray."""

import pytest

from nrl_patches import SettingsError
from nrl_patches.ray import runtime_env

HOOK = {"worker_process_setup_hook": "nrl_patches_startup.ray_worker"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("NRL_PATCHES", "NRL_PATCHES_DISABLE", "NRL_PATCHES_ONLY", "NRL_PATCHES_FORCE", "NRL_PATCHES_STRICT"):
        monkeypatch.delenv(name, raising=False)


def test_it_names_the_hook_and_passes_on_the_switches_of_the_driver(monkeypatch):
    assert runtime_env() == HOOK | {"env_vars": {}}
    monkeypatch.setenv("NRL_PATCHES_DISABLE", "vllm.*")
    monkeypatch.setenv("NRL_DISABLE_VLLM_RADIO_LAYER_SCALE_PATCH", "1")
    monkeypatch.setenv("NRL_FORCE_REBUILD_VENVS", "true")  # NeMo RL's own.
    assert runtime_env()["env_vars"] == {
        "NRL_PATCHES_DISABLE": "vllm.*",
        "NRL_DISABLE_VLLM_RADIO_LAYER_SCALE_PATCH": "1",
    }


def test_what_the_user_set_stays_and_is_not_touched(monkeypatch):
    monkeypatch.setenv("NRL_PATCHES_DISABLE", "vllm.*")
    monkeypatch.setenv("NRL_PATCHES_STRICT", "1")
    base = {"working_dir": "/tmp", "env_vars": {"MINE": "1", "NRL_PATCHES_DISABLE": ""}}  # noqa: S108 - nobody opens it
    before = {name: dict(value) if isinstance(value, dict) else value for name, value in base.items()}
    variables = {"MINE": "1", "NRL_PATCHES_DISABLE": "", "NRL_PATCHES_STRICT": "1"}
    assert runtime_env(base) == HOOK | {"working_dir": "/tmp", "env_vars": variables}  # noqa: S108 - the same
    assert base == before


def test_it_may_be_applied_to_its_own_result():
    assert runtime_env(runtime_env()) == runtime_env()


@pytest.mark.parametrize("hook", ["theirs.hook", print])
def test_a_setup_hook_of_the_user_is_refused_with_the_way_out(hook):
    with pytest.raises(SettingsError, match=r"found .*; next step: call nrl_patches_startup.ray_worker\(\) at the"):
        runtime_env({"worker_process_setup_hook": hook})


def test_no_setup_hook_may_be_said_in_words():
    # It is the default of Ray's own RuntimeEnv.
    assert runtime_env({"worker_process_setup_hook": None}) == runtime_env()


def test_neither_the_helper_nor_the_hook_imports_ray(sandbox):
    sandbox.write("ray/__init__.py", "raise AssertionError")
    done = sandbox.run("import nrl_patches.ray, nrl_patches_startup; nrl_patches_startup.ray_worker()")
    assert not done.stderr
