import re
import time

import pytest
from standins import ROOT

import nrl_patches
from nrl_patches.engine.registry import Registry, load
from nrl_patches.engine.settings import VARIABLES, Settings

GEMMA4 = "transformers.gemma4_kv_sharing_needs_cache"
REGISTRY = load()
ALL = set(REGISTRY.patches)


def read(**environ):
    return Settings.read(environ, REGISTRY)


def off(**environ):
    settings = read(**environ)
    assert not settings.problems
    return set(settings.disabled)


def problem(**environ):
    (found,) = map(str, read(**environ).problems)
    assert re.fullmatch(r"\S+: expected .+; found .+; next step: .+", found)
    return found


@pytest.mark.parametrize("value", ["0", "false", "No", " OFF "])
def test_off(value):
    assert off(NRL_PATCHES=value) == ALL


@pytest.mark.parametrize("value", ["", "  ", "1", "true", "YES", "on"])
def test_on(value):
    assert off(NRL_PATCHES=value) == set()


@pytest.mark.parametrize("variable", ["NRL_PATCHES_DISABLE", "NRL_PATCHES_ONLY", "NRL_PATCHES_FORCE"])
@pytest.mark.parametrize("value", ["", " ", ",", " , ,\t"])
def test_empty_lists_are_unset(variable, value):
    assert off(**{variable: value}) == set()


def test_disable_takes_ids_and_globs():
    assert off(NRL_PATCHES_DISABLE=GEMMA4) == {GEMMA4}
    assert off(NRL_PATCHES_DISABLE=f" {GEMMA4} ,, {GEMMA4}") == {GEMMA4}
    assert off(NRL_PATCHES_DISABLE="*gemma4*") == {i for i in ALL if "gemma4" in i}
    assert off(NRL_PATCHES_DISABLE="*") == ALL


def test_only():
    assert off(NRL_PATCHES_ONLY=GEMMA4) == ALL - {GEMMA4}


def test_disable_wins_over_only():
    assert off(NRL_PATCHES_ONLY=GEMMA4, NRL_PATCHES_DISABLE=GEMMA4) == ALL


def test_own_opt_out():
    patch = REGISTRY.patches[GEMMA4]
    assert read(**{patch.opt_out: "1"}).disabled == {GEMMA4: f"{patch.opt_out}=1"}
    assert off(**{patch.opt_out: "0"}) == set()


def test_force():
    assert read(NRL_PATCHES_FORCE=GEMMA4).forced == {GEMMA4}


@pytest.mark.parametrize(
    "excluding",
    [{"NRL_PATCHES_DISABLE": GEMMA4}, {"NRL_PATCHES_ONLY": "*fsdp2"}, {REGISTRY.patches[GEMMA4].opt_out: "1"}],
)
def test_a_forced_patch_that_is_switched_off_stays_off_and_is_named(excluding):
    settings = read(NRL_PATCHES_FORCE=GEMMA4, **excluding)
    assert not settings.forced
    assert GEMMA4 in settings.disabled
    assert GEMMA4 in str(settings.problems[0])


def test_everything_off_is_no_contradiction():
    assert off(NRL_PATCHES="0", NRL_PATCHES_FORCE=GEMMA4, NRL_PATCHES_STRICT="1") == ALL


@pytest.mark.parametrize("variable", ["NRL_PATCHES", "NRL_PATCHES_STRICT", REGISTRY.patches[GEMMA4].opt_out])
@pytest.mark.parametrize("value", ["maybe", "2", "nein danke", "ø", "\udcff", "x" * 100_000])
def test_unreadable_switches_are_said_and_ignored(variable, value):
    found = problem(**{variable: value})
    assert found.startswith(f"{variable}: expected 1 or 0; found ")
    assert found.isascii() or "…" in found
    assert len(found) < 300
    assert not read(**{variable: value}).disabled


def test_unknown_ids_come_with_the_nearest_one():
    found = problem(NRL_PATCHES_DISABLE="transformers.gemma4_kv_sharing_need_cache")
    assert f"did you mean {GEMMA4}?" in found
    assert not read(NRL_PATCHES_DISABLE="transformers.gemma4_kv_sharing_need_cache").disabled


@pytest.mark.parametrize("value", ["\udcff", "ä" * 50_000, "%s%n", "[", "-"])
def test_strange_ids(value):
    assert "expected" in problem(NRL_PATCHES_DISABLE=value)


@pytest.mark.parametrize("value", ["[" * 100_000, "[x" * 50_000, ",".join(f"[{i}" for i in range(15_000))], ids=len)
def test_values_as_long_as_the_system_allows_are_read_at_once(value):
    start = time.process_time()
    problems = list(map(str, read(NRL_PATCHES_DISABLE=value).problems))
    assert time.process_time() - start < 5
    assert 1 <= len(problems) <= 21
    assert "100000 characters" in problems[0] or "14980 more that match no patch" in problems[-1]


def test_globs_that_match_nothing():
    assert "a glob that matches a patch" in problem(NRL_PATCHES_DISABLE="vlm.*")


def test_only_with_an_unknown_id_applies_nothing_rather_than_everything():
    settings = read(NRL_PATCHES_ONLY="typo")
    assert set(settings.disabled) == ALL
    assert len(settings.problems) == 1


def test_retired_ids_explain_themselves():
    registry = Registry(REGISTRY.patches, retired={"vllm.old": "retired in 0.2.0: fixed since vLLM 0.9.2"})
    settings = Settings.read({"NRL_PATCHES_DISABLE": "vllm.old"}, registry)
    assert "retired in 0.2.0: fixed since vLLM 0.9.2" in str(settings.problems[0])


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("NRL_PATCHES_DISABLED", "NRL_PATCHES_DISABLE"),
        ("NRL_PATCH_DISABLE", "NRL_PATCHES_DISABLE"),
        ("nrl_patches_only", "NRL_PATCHES_ONLY"),
        ("NRL_PATCHES_ANYTHING", "NRL_PATCHES_ONLY"),
        ("NRL_DISABLE_GEMMA4_PATCH", "NRL_DISABLE_GEMMA4_KV_SHARING_PATCH"),
        ("NRL_DISABLE_GEMMA4", "NRL_DISABLE_GEMMA4_KV_SHARING_PATCH"),
        ("NRL_DISABLE_QWEN_VL_VISION_PATCH", "NRL_DISABLE_QWENVL_VISION_PATCH"),
        ("NRL_DISABLED_QWENVL_VISION_PATCH", "NRL_DISABLE_QWENVL_VISION_PATCH"),
    ],
)
def test_a_misspelt_name_comes_with_the_nearest_one(variable, meant):
    found = problem(**{variable: "1"})
    assert found.startswith(f"{variable}: expected a variable that is read; found ")
    assert found.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize(
    "variable",
    [
        # NeMo RL's own, of its main branch and of a fork
        "NRL_DISABLE_NUMA_BINDING",
        "NRL_DISABLE_NUMA_MEMBIND",
        "NRL_DISABLE_VLLM_PORT_OVERRIDE",
        "NRL_FORCE_REBUILD_VENVS",
        "NRL_IGNORE_VERSION_MISMATCH",
        "NRL_VLLM_USE_V1",
        "NRL_LOG_LEVEL",
        "NRL_CONTAINER",
        "NRL_PATCHES_RELEASES",  # of these tests
        "NRL",
        "NRL_DISABLE_",
        "PATH",
    ],
)
def test_the_names_of_others_are_theirs(variable):
    assert off(**{variable: "1"}) == set()


def test_a_misspelt_name_without_a_value_is_unset():
    assert off(NRL_PATCHES_DISABLED=" ") == set()


def test_misspelt_names_raise_under_strict(sandbox):
    sandbox.patch()
    with pytest.raises(nrl_patches.SettingsError, match="did you mean NRL_DISABLE_OFF_BY_ONE"):
        sandbox.activate(NRL_PATCHES_STRICT="1", NRL_DISABLE_OFF_BY_ONE_PATCH="1")


def test_the_switch_of_a_retired_patch_explains_itself():
    why = "retired in 0.2.0, and NRL_DISABLE_OLD_PATCH with it: fixed since vLLM 0.9.2"
    registry = Registry(REGISTRY.patches, retired={"vllm.old": why})
    (found,) = map(str, Settings.read({"NRL_DISABLE_OLD_PATCH": "1"}, registry).problems)
    assert found.startswith("NRL_DISABLE_OLD_PATCH: expected the switch of a patch of this version; found that of")
    assert why in found


def test_problems_are_logged_and_nothing_is_applied_under_strict(sandbox, caplog):
    sandbox.distribution(core="def count(): return 1")
    sandbox.patch()
    assert sandbox.core().count() == 1
    with pytest.raises(nrl_patches.SettingsError, match="NRL_PATCHES_ONLY"):
        sandbox.activate(NRL_PATCHES_STRICT="1", NRL_PATCHES_ONLY=f"{sandbox.patches}.*,typo")
    assert sandbox.core().count() == 1
    sandbox.activate(NRL_PATCHES_DISABLE="typo")
    assert "NRL_PATCHES_DISABLE: expected the id of a patch" in caplog.text


def test_the_page_of_the_environment_documents_every_variable_and_no_other():
    page = (ROOT / "nrl_patches" / "docs" / "environment.md").read_text()
    rows = dict(re.findall(r"^\| `(NRL_[A-Z0-9_]+)` \| (.+) \|$", page, re.MULTILINE))
    owners = {p.opt_out: [q.id for q in REGISTRY if q.opt_out == p.opt_out] for p in REGISTRY}
    expected = {name: f"`1` switches off {' and '.join(f'`{i}`' for i in ids)}." for name, ids in owners.items()}
    assert rows == dict(VARIABLES) | expected
