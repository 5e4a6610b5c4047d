import re

import pytest

import nrl_patches
from nrl_patches import DeclarationError, Observation, Patch
from nrl_patches.declaration import HEADINGS
from nrl_patches.engine import registry

GOOD = {
    "affected": "transformers<5",
    "upstream": ("https://example.org/pull/1",),
    "opt_out": "NRL_DISABLE_X",
}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"afected": "x<1"}, "no field afected"),
        ({"affected": "transformers"}, "affected: .*nothing else"),
        ({"affected": "transformers => 5"}, "affected: .*no requirement"),
        ({"affected": ()}, "affected: needs"),
        ({"upstream": ()}, "upstream: needs at least one"),
        ({"upstream": "https://example.org"}, "upstream: needs"),
        ({"upstream": ("issue 7",)}, "upstream: needs"),
        ({"opt_out": ""}, "opt_out: needs"),
        ({"opt_out": "DISABLE_X"}, "opt_out: needs"),
    ],
)
def test_malformed_fields_name_the_file(changes, complaint):
    with pytest.raises(DeclarationError, match=f"^{re.escape(__file__)}: .*{complaint}"):
        Patch(__name__, **GOOD | changes)


@pytest.mark.parametrize(
    "target", ["transformers.x", "transformers:", ":f", "transformers:a b", "torch.nn:Module.forward"]
)
def test_malformed_targets(target):
    with pytest.raises(DeclarationError, match="fix: "):
        Patch(__name__, **GOOD).fix(target, guard=lambda _: None)


def test_two_fixes_for_one_target_two_probes_and_no_probe():
    patch = Patch(__name__, **GOOD)
    patch.fix("transformers.x:f", guard=lambda _: None)(lambda original: original)
    with pytest.raises(DeclarationError, match="has two fixes"):
        patch.fix("transformers.x:f", guard=lambda _: None)
    with pytest.raises(DeclarationError, match="probe: has none"):
        patch.observe()
    patch.probe(lambda: Observation(present=True))
    with pytest.raises(DeclarationError, match="probe: has two"):
        patch.probe(lambda: Observation(present=True))


def test_a_probe_must_return_an_observation():
    patch = Patch(__name__, **GOOD)
    patch.probe(lambda: 1)
    with pytest.raises(DeclarationError, match="must return an Observation, not int"):
        patch.observe()


@pytest.mark.parametrize("present", [True, False])
def test_a_probe_may_return_a_boolean(present):
    patch = Patch(__name__, **GOOD)
    patch.probe(lambda: present)
    assert patch.observe() == Observation(present=present)


def test_a_release_without_the_targets_module_has_no_defect(sandbox):
    sandbox.distribution(core="")
    sandbox.patch(target=f"{sandbox.name}.later:count")
    patch = next(iter(sandbox.registry()))
    assert patch.observe() == Observation(present=False, evidence={"absent": f"{sandbox.name}.later"})
    sandbox.write(f"{sandbox.name}/later.py", "")
    assert patch.observe() == Observation(present=True)


def test_a_missing_distribution_is_no_observation(sandbox):
    sandbox.patch()
    with pytest.raises(ModuleNotFoundError):
        next(iter(sandbox.registry())).observe()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "does not define `patch`"),
        ("syntax error", "invalid syntax"),
        ("raise RuntimeError('no luck')", "no luck"),
    ],
)
def test_a_file_that_cannot_be_loaded_leaves_the_others_alone(sandbox, text, complaint):
    good = sandbox.patch()
    sandbox.write(f"{sandbox.patches}/broken.py", text)
    loaded = sandbox.registry()
    assert list(loaded.patches) == [good]
    assert [broken.id for broken in loaded.broken] == ["broken"]
    assert complaint in str(loaded.broken[0].error)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("@patch.probe", "", "probe: has none"),
        ("Remove when: it counts right.", "", "docstring: lacks Remove when"),
        ("__name__,", "'somebody.else',", "the first argument of Patch must be __name__"),
    ],
)
def test_what_is_only_known_at_the_end_of_the_file(sandbox, old, new, complaint):
    sandbox.patch()
    file = sandbox.folder / sandbox.patches / "off_by_one.py"
    file.write_text(file.read_text().replace(old, new))
    (broken,) = sandbox.registry().broken
    assert complaint in str(broken.error)


def test_a_broken_file_is_a_failed_status_and_strict_mode_raises(sandbox, caplog):
    sandbox.patch()
    sandbox.write(f"{sandbox.patches}/broken.py", "1/0")
    activation = sandbox.activate()
    status = activation.status()["broken"]
    assert status.state == "failed"
    assert "ZeroDivisionError" in status.traceback
    assert "cannot be loaded" in caplog.text
    with pytest.raises(nrl_patches.SettingsError, match="cannot be loaded"):
        sandbox.activate(NRL_PATCHES_STRICT="1")


def test_every_patch_file_of_this_package_loads_and_is_documented():
    loaded = registry.load()
    assert not loaded.broken
    assert loaded.patches
    for patch in loaded:
        assert all(f"\n{heading}: " in patch.doc for heading in HEADINGS)
        assert patch.title.endswith(".")


def test_retired_ids_are_gone():
    assert not set(registry.RETIRED) & set(registry.load().patches)
