"""What the helper puts together, without Ray and beside a stand-in for it."""

import sys
from pathlib import Path
from types import ModuleType

import nrl_patches_hosts
import pytest

from nrl_patches import SettingsError
from nrl_patches.ray import runtime_env

NAME = "nrl_patches_hosts.ray.worker"
SENT = {"py_modules": [str(Path(nrl_patches_hosts.__file__).parent)]}
FIELD = {"worker_process_setup_hook": NAME} | SENT
VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("NRL_PATCHES", "NRL_PATCHES_DISABLE", "NRL_PATCHES_ONLY", "NRL_PATCHES_FORCE", "NRL_PATCHES_STRICT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ray(monkeypatch):
    """What is looked at of Ray."""
    constants = ModuleType("ray._private.ray_constants")
    constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR = VARIABLE
    for module in (ModuleType("ray"), ModuleType("ray._private"), constants):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return constants


@pytest.mark.usefixtures("ray")
def test_it_sets_the_variable_that_ray_makes_of_the_hook_and_sends_its_module_along():
    assert runtime_env() == SENT | {"env_vars": {VARIABLE: NAME}}


def test_it_names_the_hook_where_ray_is_missing_or_has_no_such_variable(ray, monkeypatch):
    del ray.WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    assert runtime_env() == FIELD | {"env_vars": {}}
    monkeypatch.setitem(sys.modules, "ray", None)
    assert runtime_env() == FIELD | {"env_vars": {}}


def test_it_passes_on_the_switches_of_the_driver(monkeypatch):
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
    base = {"py_modules": ["theirs"], "env_vars": {"MINE": "1", "NRL_PATCHES_DISABLE": ""}}
    before = {name: value.copy() for name, value in base.items()}
    variables = {"MINE": "1", "NRL_PATCHES_DISABLE": "", "NRL_PATCHES_STRICT": "1"}
    assert runtime_env(base) == FIELD | {"py_modules": ["theirs", *SENT["py_modules"]], "env_vars": variables}
    assert base == before


@pytest.mark.parametrize("base", [{}, {"worker_process_setup_hook": "theirs.hook"}, {"env_vars": {VARIABLE: NAME}}])
@pytest.mark.usefixtures("ray")
def test_it_may_be_applied_to_its_own_result(base):
    assert runtime_env(runtime_env(base)) == runtime_env(base)


@pytest.mark.parametrize(
    "base",
    [
        {"worker_process_setup_hook": "theirs.hook"},
        # As a worker sees it.
        {"worker_process_setup_hook": "theirs.hook", "env_vars": {VARIABLE: "theirs.hook"}},
    ],
)
@pytest.mark.usefixtures("ray")
def test_a_setup_hook_of_the_users_is_called_after_ours(base, sandbox):
    found = runtime_env(base)
    assert found.keys() == {"env_vars", "py_modules"}
    assert found["env_vars"][VARIABLE] == NAME
    sandbox.write("theirs.py", "import sys\ndef hook(): print('nrl_patches' in sys.modules)")
    for on, output in (("0", "False"), ("1", "True")):
        variables = found["env_vars"] | {"NRL_PATCHES": on}
        done = sandbox.run("import nrl_patches_hosts.ray; nrl_patches_hosts.ray.worker()", **variables)
        assert done.stdout.strip() == output, done


@pytest.mark.parametrize("field", ["worker_process_setup_hook", VARIABLE])
@pytest.mark.usefixtures("ray")
def test_a_setup_hook_that_is_no_name_is_refused_with_the_way_out(field):
    theirs = {field: print} if field != VARIABLE else {"env_vars": {field: "ray_runtime_env_func::MDEy"}}
    with pytest.raises(SettingsError, match=r"found .*; next step: put the function into a module that workers can"):
        runtime_env(theirs)


def test_no_setup_hook_may_be_said_in_words():
    # It is the default of Ray's own RuntimeEnv.
    assert runtime_env({"worker_process_setup_hook": None}) == runtime_env()


def test_neither_the_helper_nor_the_hook_imports_ray(sandbox):
    sandbox.write("ray/__init__.py", "raise AssertionError")
    done = sandbox.run("import nrl_patches.ray, nrl_patches_hosts.ray; nrl_patches_hosts.ray.worker()")
    assert not done.stderr
