"""A release that nobody has measured: recognised by its code, or not."""

import logging

import pytest
from standins import COUNT, only

import nrl_patches
from nrl_patches.engine import decision
from nrl_patches.engine.upstream_code import ABSENT, digest

OTHER = "def count():\n    return 1 + 0\n"


@pytest.fixture
def beyond(sandbox, monkeypatch):
    """Install release 3.0 of a stand-in whose defect was last seen in 2.0, with the code of then or another."""

    def install(core=COUNT, known=COUNT, **fields):
        sandbox.distribution("2.0", core=known)
        code = {place: {"2.0": digest(place)} for place in (f"{sandbox.name}.core:count", f"{sandbox.name}.core")}
        monkeypatch.setattr(decision, "_known_code", lambda _package: code)
        (sandbox.folder / f"{sandbox.name}-2.0.dist-info" / "METADATA").unlink()
        (sandbox.folder / f"{sandbox.name}-2.0.dist-info" / "top_level.txt").unlink()
        (sandbox.folder / f"{sandbox.name}-2.0.dist-info").rmdir()
        sandbox.distribution("3.0", core=core)
        sandbox.patch(**({"affected": f"{sandbox.name}>=1,<=2.0"} | fields))
        return sandbox

    return install


def test_recognised_code_is_patched_and_the_reason_says_so(beyond):
    sandbox = beyond()
    activation = sandbox.activate()
    assert only(activation).state == "pending"
    assert sandbox.core().count() == 2
    assert only(activation).state == "applied"
    name = sandbox.name
    assert only(activation).reason == f"{name} 3.0 was not measured; the code is that of 2.0"


def test_other_code_is_left_alone_and_said_once(beyond, caplog):
    sandbox = beyond(core=OTHER)
    activation = sandbox.activate()
    before = only(activation)
    assert before.state == "unmeasured"
    with caplog.at_level(logging.WARNING, "nrl_patches"):
        assert sandbox.core().count() == 1
        activation.status()
    assert only(activation) == before
    (record,) = caplog.records
    for part in (f"{sandbox.name} 3.0", "2.0, the newest measured", ".core:count", "nrl-patches tripwires", "FORCE"):
        assert part in record.getMessage()


def test_strict_mode_raises_where_nobody_knows(beyond):
    sandbox = beyond(core=OTHER)
    sandbox.activate(NRL_PATCHES_STRICT="1")
    with pytest.raises(nrl_patches.UnmeasuredError, match="the newest measured"):
        sandbox.core()


def test_force_applies_it_all_the_same(beyond):
    sandbox = beyond(core=OTHER)
    activation = sandbox.activate(NRL_PATCHES_FORCE=f"{sandbox.patches}.off_by_one")
    assert sandbox.core().count() == 2
    assert only(activation).state == "applied"


def test_naming_it_says_why_it_is_not_applied(beyond, caplog):
    sandbox = beyond(core=OTHER)
    activation = sandbox.activate()
    sandbox.core()
    caplog.clear()
    activation.apply(f"{sandbox.patches}.off_by_one")
    assert any("unmeasured" in record.getMessage() for record in caplog.records)
    assert only(activation).state == "unmeasured"


def test_what_the_fix_relies_on_counts_as_much_as_its_target(beyond, sandbox):
    helper = COUNT + "\ndef helper():\n    return 1\n"
    beyond(core=helper)
    activation = sandbox.activate()
    sandbox.core()
    assert only(activation).state == "applied"
    activation.undo()
    (patch,) = activation.registry
    patch.relies_on = (f"{sandbox.name}.core",)
    assert decision.decide(patch).answer.value == "unmeasured"


def test_a_release_without_kept_code_is_not_recognised(beyond, monkeypatch):
    sandbox = beyond()
    monkeypatch.setattr(decision, "_known_code", lambda _package: {})
    assert only(sandbox.activate()).state == "unmeasured"


def test_a_patch_in_front_of_the_code_is_drift_and_not_another_release(beyond):
    sandbox = beyond(guard="lambda original: 'is not what it was'")
    activation = sandbox.activate()
    sandbox.core()
    assert only(activation).state == "drifted"


@pytest.mark.parametrize("place", ["core:count", "other.core:count", "no place"])
def test_a_place_that_belongs_to_no_distribution_of_the_patch_is_refused(place):
    with pytest.raises(nrl_patches.DeclarationError, match="relies_on: needs module:qualname"):
        nrl_patches.Patch(
            "m",
            affected="standin<2",
            upstream=("https://example.org/1",),
            opt_out="NRL_DISABLE_COUNT",
            relies_on=(place,),
        )


def test_the_committed_code_covers_the_last_measured_release_of_every_open_range():
    for patch in nrl_patches.bootstrap.activation().registry:
        for name in patch.affected.distributions:
            edge = patch.affected.newest_measured(name)
            if edge is not None:
                places = decision.places_of(patch, name)
                known = decision._known_code("")
                assert places, f"{patch.id} relies on nothing of {name}"
                digests = {place: known[place][str(edge)] for place in places}
                assert any(digest != ABSENT for digest in digests.values()), patch.id
